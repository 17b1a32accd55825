"""Batches inside of a `tf.data` pipeline, which TensorFlow traces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import tree


def passed_through(tensor: Any, function: Callable[[Any], None], batch: Any) -> Any:
    """`tensor`, when `function` has seen the batch that it belongs to.

    Args:
        tensor: A tensor of the pipeline, such as a mask.
        function: Called with the structure of `batch`, in which tensors are numpy
            arrays. What it raises ends the pipeline.
        batch: A structure of tensors and what else there is.
    """
    import tensorflow as tf

    leaves = tree.flatten(batch)
    is_tensor = [tf.is_tensor(leaf) for leaf in leaves]

    def see(known: np.ndarray, *values: np.ndarray) -> np.ndarray:
        left = iter(values)
        filled = [next(left) if t else leaf for t, leaf in zip(is_tensor, leaves)]
        function(tree.pack_sequence_as(batch, filled))
        return known

    tensors = [leaf for leaf, t in zip(leaves, is_tensor) if t]
    seen = tf.numpy_function(see, [tensor, *tensors], tensor.dtype)
    seen.set_shape(tensor.shape)
    return seen


def weighed(token_weight: Any, weight: Any) -> Any:
    """Token weights `(batch, length)` times a weight per example, as float32."""
    import tensorflow as tf

    weight = tf.cast(weight, "float32")[..., tf.newaxis]
    return tf.cast(token_weight, "float32") * weight
