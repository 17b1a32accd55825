"""Compiled functions and gradients, in the words of the current backend."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops


def compiled(function: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """`function` of tensors with values unknown while it is traced.

    On torch, which does not trace, it runs as it is.
    """
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        function = jax.jit(function)
    elif backend == "tensorflow":
        import tensorflow as tf

        function = tf.function(function)

    def call(*arrays: Any) -> np.ndarray:
        return ops.convert_to_numpy(function(*map(ops.convert_to_tensor, arrays)))

    return call


def gradients(function: Callable[..., Any], *arrays: np.ndarray) -> list[np.ndarray]:
    """The gradient of a scalar `function` with respect to each of its arguments."""
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        found = jax.grad(function, argnums=tuple(range(len(arrays))))(*arrays)
    elif backend == "tensorflow":
        import tensorflow as tf

        tensors = [tf.Variable(array) for array in arrays]
        with tf.GradientTape() as tape:
            result = function(*(tensor.value() for tensor in tensors))
        found = [tf.convert_to_tensor(g) for g in tape.gradient(result, tensors)]
    else:
        import torch

        tensors = [torch.tensor(array, requires_grad=True) for array in arrays]
        found = torch.autograd.grad(function(*tensors), tensors)
    return [ops.convert_to_numpy(gradient) for gradient in found]
