"""`merge_features`: one combination of values as a plain model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras_hub
from keras import ops

from keras_flix import _compat
from keras_flix.models.adapted.adaptation import Model, adaptation_of
from keras_flix.models.adapted.plain_view import plain_view


def merge_features(model: Model, combination: Mapping[str, Any]) -> Model:
    """A plain model that computes what the adapted one does for one combination.

    Args:
        model: A model adapted by `enable_flix`. It is not changed.
        combination: One value (or id) per feature, such as
            `{"task": "qa", "language": "sw"}`; `None` is absent. The values
            need not have been seen together in training.

    Returns:
        A new model of the original class, without adapters, whose kernels hold
        the sum of the base and the combination's updates. It shares the
        preprocessor of a task, and can be saved with `save_to_preset`. What was
        frozen before `enable_flix` is frozen in it, all else trains.

    Raises:
        ValueError: If the combination is not of the model's features, or the
            base is quantized.
    """
    adaptation = adaptation_of(model)
    for path, layer in adaptation.layers.items():
        if layer.quantization_mode is not None:
            raise ValueError(
                "Only floating-point kernels can be merged: a sum with a quantized "
                "one would have to be rounded again. Received: layer "
                f"{path!r} with quantization_mode={layer.quantization_mode!r}. Load "
                "the model without quantization, `load_adapters` into it and merge "
                "there; that plain model can be quantized."
            )
    ids = adaptation.schema.encode_one(combination)
    filling = _Filling(
        deltas={
            id(layer): layer.delta_of_ids(ids) for layer in adaptation.layers.values()
        },
        tables={id(table.variable) for table in adaptation.tables()},
        frozen={id(one) for one in adaptation.frozen_before if not _compat.is_on(one)},
    )
    with plain_view(model):
        if isinstance(model, (keras_hub.models.Task, keras_hub.models.Backbone)):
            merged = _hub_copy(model, filling)
        else:
            merged = filling.fill(model, _compat.clone(model))
    return merged


def _hub_copy(model: Any, filling: _Filling) -> Any:
    config = model.get_config()
    if getattr(model, "tie_word_embeddings", False):
        # KerasHub's Llama leaves it out of its config.
        config["tie_word_embeddings"] = True
    if isinstance(model, keras_hub.models.Task):
        # With its weights: the logits of KerasHub's Gemma3n keep those embeddings
        # that the backbone has when the task is made.
        config["backbone"] = _hub_copy(model.backbone, filling)
        # Its tokenizer's vocabulary is not in its config, and it has no weights.
        config["preprocessor"] = model.preprocessor
    return filling.fill(model, type(model).from_config(config))


@dataclasses.dataclass(frozen=True)
class _Filling:
    """What the weights of a plain copy of an adapted model are.

    Attributes:
        deltas: By id of an adapted layer, the update of its kernel.
        tables: Ids of the adapters' variables.
        frozen: Ids of layers and variables that were frozen before `enable_flix`, and
            are.
    """

    deltas: dict[int, Any]
    tables: set[int]
    frozen: set[int]

    def fill(self, model: Any, copied: Any) -> Any:
        """Gives `copied` the weights of `model` with the updates; returns it.

        All of it trains but what is frozen.
        """
        old_layers = [model, *_compat.flatten_layers(model)]
        new_layers = [copied, *_compat.flatten_layers(copied)]
        if len(old_layers) != len(new_layers):
            raise ValueError(
                "A model must be rebuilt by its config to be merged. Received: a "
                f"{type(model).__name__} with {len(old_layers)} layers, whose config "
                f"builds {len(new_layers)}. Merge its backbone instead."
            )
        _compat.switch(_compat.with_flags(copied), True)
        for old, new in zip(old_layers, new_layers):
            _compat.switch([new], id(old) not in self.frozen)
            own = [v for v in _compat.own_variables(old) if id(v) not in self.tables]
            for source, target in zip(own, _compat.own_variables(new), strict=True):
                value = source.value
                if id(old) in self.deltas and source is old.kernel:
                    total = ops.add(ops.cast(value, "float32"), self.deltas[id(old)])
                    value = ops.cast(total, source.dtype)
                # A copy: JAX would share the buffer, and training donates buffers.
                target.assign(ops.copy(value))
                if id(source) in self.frozen:
                    target.trainable = False
        return copied
