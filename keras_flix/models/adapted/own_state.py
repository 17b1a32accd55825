"""What a base model keeps and changes itself, which no adapter file has."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import keras

from keras_flix import _compat


def warn_of_own_state(model: keras.Model, layers: Sequence[keras.layers.Layer]) -> None:
    """Warns if training changes variables of an adapted model's frozen base.

    Frozen weights get no gradients, and Keras' `BatchNormalization` keeps its
    statistics where it is frozen. Other layers may not ask: `SpectralNormalization`
    divides its kernel anew in every step.

    Args:
        model: The model.
        layers: All layers in it.
    """
    inputs = _compat.symbolic_inputs(model)
    if inputs is None or not any(map(_has_state, layers)):
        return
    parts: list[Any] = model._adaptation.parts
    try:
        for part in parts:
            part._adaptation.disabled = True
        assigned = _compat.assigned_variables(model, inputs, training=True)
    except Exception:
        # Some layers need more than the small sizes that stand for unknown ones.
        return
    finally:
        for part in parts:
            part._adaptation.disabled = False
    seeds = {id(variable) for variable in _compat.seed_states(model)}
    moving = [variable.path for variable in assigned if id(variable) not in seeds]
    if moving:
        warnings.warn(
            "The base of an adapted model should stay as it is, since files of "
            f"adapters do not hold it. Received: layers that assign {moving[:3]}"
            f"{', ...' * (len(moving) > 3)} while they run, though they are frozen. "
            "Save the whole model (`model.save`) besides the adapters, or use a model "
            "without such layers.",
            stacklevel=4,
        )


def _has_state(layer: Any) -> bool:
    """Whether a layer has variables that were made not to be trained."""
    is_quantized = getattr(layer, "quantization_mode", None) is not None
    return not is_quantized and _compat.has_untrained_variables(layer)
