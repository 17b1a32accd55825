"""`base_configuration`: what layers do with their weights, by their configs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import keras_hub
import numpy as np

from keras_flix import _compat

WITHOUT_EFFECT = re.compile(
    # What the entry is called, or a part of its name between underscores.
    r"name|trainable|.*dtype|autocast|seed|features|.*_policy|(.*_)?(dropout|initializer"
    r"|regularizer|constraint)(_.*)?|rate|lora_.*|quantization_.*|gptq_.*|awq_.*"
    r"|max_length|batch_shape|batch_input_shape|sparse|ragged"
    r"|image_(shape|size)|data_format|unroll|use_cache|.*flash.*|backbone|preprocessor|image_converter|tokenizer"
    r"|registered_name|module|build_config|synchronized|momentum"
)
"""Entries that do not change what a layer computes from the same weights: those of
training, precision and speed, names, and sizes that the weights show.

Of batch normalization, momentum is one of training."""
LENGTH = re.compile(r"(max_)?sequence_length")
"""So is a length, unless positions are scaled by how much longer it is than another."""
SCALED = re.compile(r"(.*_)?pretraining_sequence_length")


def base_configuration(model: keras.Model) -> dict[str, dict[str, Any]]:
    """The settings of a model's layers that change what they compute.

    Args:
        model: Any built model, adapted or not: adapters have no part in it.

    Returns:
        By path of a layer, or class of a KerasHub model, the entries of its config by
        name: numbers, strings and lists of them, those of inner objects as
        `outer.inner`. Layers without such entries are left out.
    """
    found: dict[str, dict[str, Any]] = {}
    for layer in [model, *_compat.flatten_layers(model)]:
        settings = dict(_settings(_config(layer)))
        # Models are named anew each time that they are made.
        own = isinstance(layer, keras.Model)
        key = type(layer).__name__ if own else layer.path
        if settings and key is not None:
            found.setdefault(key, settings)
    return found


def _config(layer: Any) -> Mapping[str, Any]:
    """The config of a layer as the plain one that it was; empty if it has none."""
    if isinstance(layer, keras.Model) and not isinstance(
        layer, (keras_hub.models.Backbone, keras_hub.models.Task)
    ):
        # It tells the layers once more, and how they hang together.
        return {}
    base = getattr(layer, "plain_class", None)
    adaptation = getattr(layer, "_adaptation", None)
    base = base if adaptation is None else adaptation.base_class
    try:
        # KerasHub's `Gemma3VisionOutput` returns none.
        return (type(layer) if base is None else base).get_config(layer) or {}
    # A class of the user's own may raise whatever it likes.
    except Exception:
        return {}


def _settings(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    scaled = any(SCALED.fullmatch(str(name)) for name in config)
    for name, entry in config.items():
        if WITHOUT_EFFECT.fullmatch(str(name)):
            continue
        if LENGTH.fullmatch(str(name)) and not scaled:
            continue
        entry = _as_json(entry)
        if isinstance(entry, Mapping):
            yield from _settings(entry, f"{prefix}{name}.")
        elif _is_plain(entry):
            yield f"{prefix}{name}", entry
        elif isinstance(entry, list):
            yield from _settings(dict(enumerate(entry)), f"{prefix}{name}.")


def _is_plain(entry: Any) -> bool:
    if isinstance(entry, list):
        return all(_is_plain(one) for one in entry)
    return entry is None or isinstance(entry, (bool, int, float, str))


def _as_json(entry: Any) -> Any:
    """Lists for tuples and arrays, and Python's numbers for numpy's."""
    if isinstance(entry, (np.ndarray, np.generic)):
        entry = entry.tolist()
    if isinstance(entry, (list, tuple)):
        return [_as_json(one) for one in entry]
    return entry
