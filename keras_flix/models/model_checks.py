"""What a model must fulfil to be adapted."""

from __future__ import annotations

import numbers
from typing import Any

import keras
import keras_hub

from keras_flix import _compat
from keras_flix.features.input_entries import TEXT_KEYS
from keras_flix.features.schema import FeatureSchema
from keras_flix.layers.checks import check_backend
from keras_flix.layers.holds_tables import HoldsTables
from keras_flix.layers.quantized import check_quantized_layers
from keras_flix.models.adapted.adaptation import is_adapted
from keras_flix.models.adapted.devices import check_devices
from keras_flix.models.targets import Placed


def checked_seed(seed: Any) -> int:
    """The seed as an integer, drawn if `None`; raises for what is no seed."""
    if seed is None:
        return _compat.fresh_seed()
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral) or seed < 0:
        raise ValueError(
            "`seed` must be a non-negative integer or None. Received: "
            f"seed={seed!r}. None draws one."
        )
    return int(seed)


def checked_walk(model: Any, schema: FeatureSchema) -> list[Placed]:
    """All layers of a model; raises for one that cannot be adapted."""
    check_backend()
    if not isinstance(model, keras.Model):
        raise ValueError(
            "`model` must be a keras.Model. Received: an object of type "
            f"{type(model).__name__}. For a single layer, use FlixEinsumDense or "
            "FlixDense."
        )
    _compat.untrack_assistant(model)
    walk = _compat.layers_with_parents(model)
    inner = [layer for layer, _ in walk]
    if is_adapted(model) or any(isinstance(layer, HoldsTables) for layer in inner):
        raise ValueError(
            "A model can be adapted once. Received: a model that `enable_flix` has "
            "adapted already, or one over layers of such a model. Start from a fresh "
            "model, or use `merge_features(model, ...)`, which returns a plain one; "
            "another model over adapted layers takes their features by "
            "`share_features(model, other)`."
        )
    if not model.built:
        raise ValueError(
            "`model` must be built, since adapters take their shapes from its "
            f"kernels. Received: an unbuilt {type(model).__name__}. Call it on a "
            "batch first."
        )
    check_quantized_layers(inner)
    check_devices(model, inner)
    check_names(model, schema)
    return walk


def check_names(model: keras.Model, schema: FeatureSchema) -> None:
    """Raises if a feature is called like one of the model's own inputs."""
    names = _compat.input_names(model)
    if isinstance(model, keras_hub.models.Task):
        names = [*names, *TEXT_KEYS]
    taken = [f.name for f in schema.routed if {f.name, f.ids_key} & set(names)]
    if taken:
        raise ValueError(
            "A feature must not be called like one of the model's own inputs "
            f"{names}. Received: feature {taken[0]!r}. Rename the feature."
        )


def check_stock(layer: Any) -> None:
    if getattr(layer, "lora_enabled", False):
        raise ValueError(
            "A target must not have a LoRA of Keras' own. Received: layer "
            f"{layer.path!r}, on which `enable_lora` was called. Start from a "
            "model without it; FLix with one always-on feature is a LoRA."
        )
