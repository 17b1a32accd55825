"""`merge_features`: one combination of values as a plain model."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import keras_hub
from keras import ops

from keras_flix import _compat
from keras_flix.layers.expert_kernel import ExpertKernel
from keras_flix.models.adapted.adaptation import Model, adaptation_of
from keras_flix.models.adapted.plain_view import plain_view
from keras_flix.models.adapted.trained_base import token_variables


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
        ValueError: If the combination is not of the model's features, the base is
            quantized, or the kernel of an adapted layer is used by another one.

    Warns:
        UserWarning: If kernels in half precision are too coarse for the updates, so
            that a quarter of them or more is rounded away.
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
            (id(layer.holder()), id(layer.kernel)): layer.delta_of_ids(ids)
            for layer in adaptation.layers.values()
        },
        tables={
            *(id(table.variable) for table in adaptation.tables()),
            *map(id, token_variables(model).values()),
        },
        rows={k: f for lyr in adaptation.token_rows for k, f in lyr.filled().items()},
        frozen={id(one) for one in adaptation.frozen_before if not _compat.is_on(one)},
    )
    with plain_view(model):
        if isinstance(model, (keras_hub.models.Task, keras_hub.models.Backbone)):
            merged = _hub_copy(model, filling)
        else:
            merged = filling.fill(model, _compat.clone(model))
    _check_kernels(model, merged)
    filling.warn_of_rounding()
    return merged


def _check_kernels(model: Any, merged: Any) -> None:
    """Raises if an update would reach others that read its layer's kernel."""
    olds, news = map(_compat.flatten_layers, (model, merged))
    places = {id(old): new for old, new in zip(olds, news, strict=True)}
    adaptation = model._adaptation
    layers = {
        path: ExpertKernel(places[id(layer.holder())], layer.attribute, path)
        if isinstance(layer, ExpertKernel)
        else places[id(layer)]
        for path, layer in adaptation.layers.items()
    }
    watches = [
        _compat.Watch(path, places[id(reader)], layers[path].kernel)
        for path, reader in adaptation.readers.items()
    ]
    inputs = _compat.symbolic_inputs(merged)
    try:
        shared = _compat.kernels_read_elsewhere(merged, inputs, layers, watches)
    except Exception:
        # Some layers need more than the small sizes that stand for unknown ones.
        return
    if shared:
        raise ValueError(
            "A kernel that an update is added to must be used by its own layer only. "
            f"Received: layers {shared}, whose kernels other layers read, too, as tied "
            "ones do: they would get the update as well. Use the adapted model, or "
            "leave these layers out of `targets`."
        )


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


LOST = 0.25
"""Of the updates' norm, what may be rounded away without a warning."""


@dataclasses.dataclass
class _Filling:
    """What the weights of a plain copy of an adapted model are.

    Attributes:
        deltas: By the ids of a layer and its adapted kernel, the update; of experts,
            that of each.
        tables: Ids of the adapters' variables.
        rows: By id of a variable some rows of which train, what puts them into it.
        frozen: Ids of layers and variables that were frozen before `enable_flix`, and
            are.
        added: The square of the norm of all updates.
        lost: The same of what the kernels' dtype has rounded away of them.
    """

    deltas: dict[tuple[int, int], Any]
    tables: set[int]
    rows: dict[int, Callable[[Any], Any]]
    frozen: set[int]
    added: float = 0.0
    lost: float = 0.0

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
                delta = self.deltas.get((id(old), id(source)))
                if delta is not None:
                    value = self.merged(value, delta, source.dtype)
                if id(source) in self.rows:
                    value = self.rows[id(source)](value)
                # A copy: JAX would share the buffer, and training donates buffers.
                target.assign(ops.copy(value))
                if id(source) in self.frozen:
                    target.trainable = False
        return copied

    def merged(self, kernel: Any, delta: Any, dtype: str) -> Any:
        """A kernel with its update, in the kernel's dtype."""
        old = ops.cast(kernel, "float64" if dtype == "float64" else "float32")
        delta = ops.broadcast_to(ops.cast(delta, old.dtype), ops.shape(old))
        new = ops.cast(ops.add(old, delta), dtype)
        if dtype in ("bfloat16", "float16"):
            rest = ops.subtract(ops.subtract(ops.cast(new, "float32"), old), delta)
            self.added += _squares(delta)
            self.lost += _squares(rest)
        return new

    def warn_of_rounding(self) -> None:
        """Tells of updates that are finer than the kernels' dtype."""
        share = (self.lost / self.added) ** 0.5 if self.added else 0.0
        if share >= LOST:
            warnings.warn(
                f"{share:.0%} of the merged updates, by their norm, was rounded away, "
                "since the kernels are in half precision. Load the base with "
                "dtype='float32' and merge there, or go on with the adapted model, "
                "which adds updates in full.",
                stacklevel=3,
            )


def _squares(x: Any) -> float:
    return float(ops.convert_to_numpy(ops.sum(ops.square(x))))
