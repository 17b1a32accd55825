"""Which layers of a model train whole, beside its adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import keras_hub

from keras_flix import _compat
from keras_flix._utils.near_names import the_nearest
from keras_flix.models.adapted.trained_base import heads
from keras_flix.models.targets import Placed, below_parent, compiled

CLASSIFIERS = (keras_hub.models.TextClassifier, keras_hub.models.ImageClassifier)
"""The tasks that begin with a fresh head, for the labels of a data set."""


def find_whole_layers(
    model: keras.Model, train: Sequence[str] | None, walk: Sequence[Placed]
) -> list[keras.layers.Layer]:
    """The layers that `train` selects, with those inside of them.

    Args:
        model: The model, not adapted yet.
        train: See `enable_flix`.
        walk: All layers of the model.
    """
    if train is None:
        if not isinstance(model, CLASSIFIERS):
            return []
        return [
            layer
            for layer in heads(model)
            if _compat.is_on(layer) and _quantized(layer) is None
        ]
    if isinstance(train, Mapping):
        raise ValueError(_one_per_value(train))
    if isinstance(train, str) or not isinstance(train, (list, tuple, set)):
        raise ValueError(
            "`train` must be None or a list of layer names or regexes. Received: "
            f"train={train!r}. Pass a list; an empty one lets adapters alone train."
        )
    chosen: dict[int, keras.layers.Layer] = {}
    for target in train:
        for layer in _matching(target, walk):
            inside = [layer, *_compat.flatten_layers(layer)]
            chosen |= {id(one): one for one in inside}
    for layer in chosen.values():
        if _quantized(layer) is not None:
            raise ValueError(
                "A layer that trains whole must have floating-point weights. Received: "
                f"layer {layer.path!r} with quantization_mode={_quantized(layer)!r}. "
                "Quantize the model without it, or leave it out of `train`."
            )
    return list(chosen.values())


def check_whole_or_rows(
    whole: Sequence[keras.layers.Layer],
    tokens: Mapping[Any, Sequence[int]],
    layers: Mapping[str, Any],
) -> None:
    """Raises if all rows of an embedding are to train or to be adapted, and some."""
    for layer in tokens:
        if any(layer is one for one in layers.values()):
            raise ValueError(
                "An embedding is adapted, or trains by the rows of some tokens. "
                f"Received: layer {layer.path!r} in `targets`, and trainable_tokens. "
                "Leave one out."
            )
        if any(layer is one for one in whole):
            raise ValueError(
                "An embedding trains whole, or by the rows of some tokens. Received: "
                f"layer {layer.path!r}, which `train` selects, and trainable_tokens. "
                "Leave one out."
            )


def _quantized(layer: Any) -> str | None:
    return getattr(layer, "quantization_mode", None)


def _matching(target: Any, walk: Sequence[Placed]) -> list[keras.layers.Layer]:
    """The layers with weights that a name or a regex selects; raises for none."""
    pattern = compiled(target)
    matches = [
        layer
        for layer, parents in walk
        if layer.name == target
        or pattern.fullmatch(layer.path or layer.name)
        or pattern.fullmatch(below_parent(layer, parents))
    ]
    found = [layer for layer in matches if layer.weights]
    if found:
        return found
    if matches:
        raise ValueError(
            "A layer that trains whole must have weights. Received: "
            f"train=[{target!r}], where {matches[0].name!r} has none. Leave it out."
        )
    names = sorted({layer.name for layer, _ in walk if layer.weights})
    raise ValueError(
        "`train` must name layers, or match their whole paths as a regex. Received: "
        f"{target!r}, which matches nothing.{the_nearest(target, names)}."
    )


def _one_per_value(train: Mapping[Any, Any]) -> str:
    layer, feature = next(iter(train.items()), ("head", "task"))
    return (
        "A layer trains whole once, for all values of a feature. Received: "
        f"train={dict(train)!r}, which asks for one per value. Write "
        f"train=[{layer!r}]. Where values of {feature!r} have labels of their own, "
        "give it an output for each label of all of them, and a loss over those of "
        "each example's: these are then heads of their own. Where they share labels, "
        "name "
        f"{layer!r} in `targets` too: each value then has an update of it."
    )
