"""`merge_features`: one combination of values as a plain model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import keras_hub
from keras import ops

from keras_flix import _compat
from keras_flix.plain_view import plain_view
from keras_flix.routed_model import surgery_of


def merge_features(model: keras.Model, combination: Mapping[str, Any]) -> keras.Model:
    """A plain model that computes what the adapted one does for one combination.

    Args:
        model: A model adapted by `enable_flix`. It is not changed.
        combination: One value (or id) per feature, such as
            `{"task": "qa", "language": "sw"}`; `None` is absent. The values
            need not have been seen together in training.

    Returns:
        A new model of the original class, without adapters, whose kernels hold
        the sum of the base and the combination's updates. It shares the
        preprocessor of a task, and can be saved with `save_to_preset`.

    Raises:
        ValueError: If the combination is not of the model's features, or the
            base is quantized.
    """
    surgery = surgery_of(model)
    for path, layer in surgery.layers.items():
        if layer.quantization_mode is not None:
            raise ValueError(
                "Only floating-point kernels can be merged: a sum with a quantized "
                "one would have to be rounded again. Received: layer "
                f"{path!r} with quantization_mode={layer.quantization_mode!r}. Load "
                "the model without quantization, `load_adapters` into it and merge "
                "there; that plain model can be quantized."
            )
    ids = surgery.schema.encode_one(combination)
    deltas = {id(layer): layer.delta_of_ids(ids) for layer in surgery.layers.values()}
    merged = _plain_copy(model)
    old_layers = [model, *_compat.flatten_layers(model)]
    new_layers = [merged, *_compat.flatten_layers(merged)]
    if len(old_layers) != len(new_layers):
        raise ValueError(
            "A model must be rebuilt by its config to be merged. Received: a "
            f"{type(model).__name__} with {len(old_layers)} layers, whose config "
            f"builds {len(new_layers)}. Merge its backbone instead."
        )
    for old, new in zip(old_layers, new_layers):
        skip: set[int] = set()
        if id(old) in deltas:
            skip = {id(v) for v in old._adapter.named_variables.values()}
        sources = [v for v in _compat.own_variables(old) if id(v) not in skip]
        for source, target in zip(sources, _compat.own_variables(new), strict=True):
            value = source.value
            if id(old) in deltas and source is old.kernel:
                total = ops.add(ops.cast(value, "float32"), deltas[id(old)])
                value = ops.cast(total, source.dtype)
            # A copy: JAX would share the buffer, and training donates buffers.
            target.assign(ops.copy(value))
    return merged


def _plain_copy(model: keras.Model) -> keras.Model:
    with plain_view(model):
        if isinstance(model, (keras_hub.models.Task, keras_hub.models.Backbone)):
            copied = _hub_copy(model)
        else:
            copied = _compat.clone(model)
    copied.trainable = True
    return copied


def _hub_copy(model: Any) -> Any:
    config = model.get_config()
    if isinstance(model, keras_hub.models.Task):
        config["backbone"] = _hub_copy(model.backbone)
        # Its tokenizer's vocabulary is not in its config, and it has no weights.
        config["preprocessor"] = model.preprocessor
    return type(model).from_config(config)
