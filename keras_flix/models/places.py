"""Which of the adapted layers each feature has adapter weights in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_flix.features.feature import Feature
from keras_flix.features.schema import FeatureSchema
from keras_flix.models.targets import Placed, find_targets, paths_matching

Places = Mapping[str, Sequence[str]]
"""By feature, the paths of its layers; those that are in all are not named."""


def find_places(
    model: keras.Model,
    schema: FeatureSchema,
    targets: str | Sequence[str] | None,
    walk: Sequence[Placed],
    beside: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], Places]:
    """The layers that any feature targets, by path, and which each does.

    Args:
        model: The model.
        schema: Its features, with their own targets.
        targets: Those of the features that have none, see `enable_flix`.
        walk: All layers of the model.
        beside: What is adapted besides the targets of the features that state none,
            such as kernels of experts.
    """
    beside = beside or {}
    own = [feature for feature in schema if feature.targets is not None]
    if not own:
        return {**find_targets(model, targets, walk), **beside}, {}
    found: dict[str, dict[str, Any]] = {
        feature.name: _own_targets(model, feature, walk) for feature in own
    }
    if len(own) < len(schema):
        common = {**find_targets(model, targets, walk), **beside}
        found |= {f.name: common for f in schema if f.targets is None}
    elif beside:
        raise ValueError(
            "`experts` are adapted for the features that state no targets. Received: "
            f"experts, where each of {schema.names} states its own. Leave one of them "
            "out."
        )
    elif targets is not None:
        raise ValueError(
            "`targets` are those of the features that state none. Received: "
            f"targets={targets!r}, where each of {schema.names} states its own. Leave "
            "one of them out."
        )
    position = {id(layer): i for i, (layer, _) in enumerate(walk)}
    union = {key: layer for layers in found.values() for key, layer in layers.items()}
    last = len(walk)
    layers = dict(sorted(union.items(), key=lambda x: position.get(id(x[1]), last)))
    return layers, {
        feature.name: [path for path in layers if path in found[feature.name]]
        for feature in schema
        if len(found[feature.name]) < len(layers)
    }


def _own_targets(
    model: keras.Model, feature: Feature, walk: Sequence[Placed]
) -> dict[str, keras.layers.Layer]:
    own = feature.targets
    return find_targets(model, own if isinstance(own, str) else list(own or ()), walk)


def places_among(layers: Mapping[str, Any], feature: Feature) -> list[str]:
    """Which of a model's adapted layers a feature targets that is added to it."""
    if feature.targets is None:
        return list(layers)
    if isinstance(feature.targets, str):
        raise ValueError(
            "A feature that is added can target layers that are adapted already. "
            f"Received: targets={feature.targets!r} of feature {feature.name!r}. Name "
            "them, or pass None for all of them."
        )
    chosen: set[str] = set()
    for target in feature.targets:
        chosen |= set(
            paths_matching(
                target,
                layers,
                "A feature that is added can target layers that are adapted already. "
                f"Received: {target!r} of feature {feature.name!r}, which matches none "
                "of them.",
            )
        )
    return [key for key in layers if key in chosen]
