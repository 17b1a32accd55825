"""Weights of examples, where a preprocessor makes the targets and their weights."""

from __future__ import annotations

from typing import Any

import keras
import keras_hub
import numpy as np

from keras_flix.features.host_values import host_value, is_tf_symbolic


def makes_targets(preprocessor: Any) -> bool:
    """Whether a preprocessor makes `y` and the weights of its tokens itself."""
    return isinstance(
        preprocessor,
        (
            keras_hub.models.CausalLMPreprocessor,
            keras_hub.models.Seq2SeqLMPreprocessor,
            keras_hub.models.MaskedLMPreprocessor,
        ),
    )


def refuse_targets(preprocessor: Any, y: Any) -> None:
    """Raises for a `y` that the preprocessor would drop."""
    if y is None or not makes_targets(preprocessor):
        return
    raise ValueError(
        "A task whose preprocessor makes the targets from its texts takes no `y`. "
        f"Received: y of type {type(y).__name__}, with a "
        f"{type(preprocessor).__name__}. Leave it out, such as `fit(x, "
        "sample_weight=...)` or `(x, None, sample_weight)`; what is to be learned "
        "goes into `x`, such as 'responses'."
    )


def weigh(outputs: Any, weight: Any) -> Any:
    """A preprocessor's `(x, y, token_weight)` with each example's weight in it.

    Args:
        outputs: As the preprocessor returned it.
        weight: One weight per example, or `None`.

    Returns:
        The same, with float32 weights `(batch, length)`.
    """
    if weight is None:
        return outputs
    x, y, token_weight = keras.utils.unpack_x_y_sample_weight(outputs)
    if is_tf_symbolic(token_weight):
        import tensorflow as tf

        weight = tf.cast(weight, "float32")
        _check(weight.shape.rank, token_weight.shape.rank, weight.shape)
        weight = weight[..., tf.newaxis]
        return keras.utils.pack_x_y_sample_weight(
            x, y, tf.cast(token_weight, "float32") * weight
        )
    tokens = np.asarray(host_value(token_weight), "float32")
    weight = np.asarray(host_value(weight), "float32")
    _check(weight.ndim, tokens.ndim, weight.shape)
    if weight.shape != tokens.shape[:-1]:
        raise ValueError(
            "`sample_weight` must have one weight per example. Received: "
            f"{len(weight)} weights for {len(tokens)} examples. Pass equally many."
        )
    if not np.isfinite(weight).all():
        raise ValueError(
            "`sample_weight` must hold finite numbers. Received: "
            f"{weight[~np.isfinite(weight)][0]} (at example "
            f"{int(np.argmin(np.isfinite(weight)))}). Leave an example out by 0."
        )
    return keras.utils.pack_x_y_sample_weight(x, y, tokens * weight[..., None])


def _check(rank: int | None, token_rank: int | None, shape: Any) -> None:
    if rank is not None and token_rank is not None and rank != token_rank - 1:
        raise ValueError(
            "`sample_weight` must have one weight per example, which weighs all tokens "
            f"of its response. Received: sample_weight of shape {tuple(shape)}. Pass a "
            "vector."
        )
