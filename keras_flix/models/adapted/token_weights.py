"""Weights of examples, where a preprocessor makes the targets and their weights."""

from __future__ import annotations

from typing import Any

import keras
import keras_hub
import numpy as np

from keras_flix.features.host_values import host_value, is_tf_symbolic
from keras_flix.models.adapted.tf_batches import weighed


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


def check_weights(outputs: Any, weight: Any) -> None:
    """Raises unless there is one finite weight per example, as far as that is known.

    Args:
        outputs: What a preprocessor that makes targets returned.
        weight: `sample_weight`, or `None`.
    """
    if weight is None:
        return
    _, _, token_weight = keras.utils.unpack_x_y_sample_weight(outputs)
    known = not is_tf_symbolic(weight)
    shape = np.shape(host_value(weight)) if known else weight.shape
    tokens = token_weight.shape
    if getattr(shape, "rank", 0) is None:
        return
    if len(shape) != len(tokens) - 1:
        raise ValueError(
            "`sample_weight` must have one weight per example, which weighs all tokens "
            f"of its response. Received: sample_weight of shape {tuple(shape)}. Pass a "
            "vector."
        )
    if not known:
        return
    if tuple(shape) != tuple(tokens[:-1]):
        raise ValueError(
            "`sample_weight` must have one weight per example. Received: "
            f"{shape[0]} weights for {tokens[0]} examples. Pass equally many."
        )
    finite = np.isfinite(np.asarray(host_value(weight), "float32"))
    if not finite.all():
        raise ValueError(
            "`sample_weight` must hold finite numbers. Received: "
            f"{np.asarray(host_value(weight))[~finite][0]} (at example "
            f"{int(np.argmin(finite))}). Leave an example out by 0."
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
        return keras.utils.pack_x_y_sample_weight(x, y, weighed(token_weight, weight))
    tokens = np.asarray(host_value(token_weight), "float32")
    tokens = tokens * np.asarray(host_value(weight), "float32")[..., None]
    return keras.utils.pack_x_y_sample_weight(x, y, tokens)
