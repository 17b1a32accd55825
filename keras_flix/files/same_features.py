"""Whether the features of an adapter file are those of an adapted model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras_flix.features.feature import Feature
from keras_flix.features.schema import FeatureSchema
from keras_flix.files.adapter_file import Adapters
from keras_flix.models.adapted.adaptation import Adaptation

SHOWN = 8
"""So many values are listed in an error."""
COMMON = "that of the feature"


def check_layer_ranks(
    adaptation: Adaptation, theirs: Adapters, features: Sequence[str] | None = None
) -> None:
    """Raises if ranks of layers, or adapters of experts, are not those of a model.

    Args:
        adaptation: Of the model.
        theirs: The adapters.
        features: The features to compare; `None` for all.
    """
    # Which layers there are is for others to compare.
    both = [path for path in adaptation.layers if path in theirs.layers]
    for name in adaptation.schema.names if features is None else features:
        own, saved = adaptation.ranks.get(name, {}), theirs.ranks.get(name, {})
        for path in both:
            if own.get(path) != saved.get(path):
                raise ValueError(
                    f"The ranks of feature {name!r} must be the same in each layer. "
                    f"Expected: {own.get(path, COMMON)} in {path!r}. Received: "
                    f"{saved.get(path, COMMON)} in {theirs.source!r}. Load it into a "
                    "plain model, or adapt the model with the same `layer_ranks` and "
                    "`expert_rank`."
                )
    for path in both:
        counts = adaptation.experts.get(path, 1), theirs.experts.get(path, 1)
        if counts[0] != counts[1]:
            own_kind, kind = ("each" if count > 1 else "shared" for count in counts)
            raise ValueError(
                "Experts must have adapters in the same way. Expected: "
                f"experts={own_kind!r} in {path!r}. Received: experts={kind!r} in "
                f"{theirs.source!r}. Load it into a plain model, or adapt the model "
                "likewise."
            )


def check_schema(own: FeatureSchema, saved: FeatureSchema, path: Any) -> None:
    """Raises if the features of a file are not those of a model."""
    for expected, found in zip([*own, None], [*saved, None], strict=False):
        if _essence(expected) != _essence(found):
            raise ValueError(
                "The features of an adapter file must be those of the model, in "
                "order, with their values and ranks. "
                f"Expected: {_described(expected)}. Received: {_described(found)} in "
                f"{str(path)!r}. Load it into a plain model, or adapt the model with "
                f"these features{_update(expected, found, path)}."
            )
    for one, other in zip(own, saved):
        if one.scaling != other.scaling:
            raise ValueError(
                f"The scale of feature {one.name!r} in an adapter file must be that "
                f"of the model. Expected: {one.scaling.arguments()}. Received: "
                f"{other.scaling.arguments()} in {str(path)!r}. Load it into a plain "
                "model, or adapt the model with this scale."
            )


def _essence(feature: Feature | None) -> Any:
    if feature is None:
        return None
    return (
        *(feature.name, feature.values, feature.ranks),
        *(feature.multiple, feature.always),
    )


def _described(feature: Feature | None) -> str:
    """A feature in a few words: lists of values may be long."""
    if feature is None:
        return "no more feature"
    ranks = sorted(set(feature.ranks))
    shown = ", ".join(map(repr, feature.values[:SHOWN]))
    return (
        f"feature {feature.name!r} with {len(feature.values)} values "
        f"({shown}{', ...' if len(feature.values) > SHOWN else ''}) of "
        + (f"rank {ranks[0]}" if len(ranks) == 1 else f"the ranks {feature.ranks[:8]}")
        + ", multiple=True" * feature.multiple
        + ", always=True" * feature.always
    )


def _update(own: Feature | None, saved: Feature | None, path: Any) -> str:
    """The remedy where a file has other values of a feature of the model."""
    if own is None or saved is None or own.name != saved.name:
        return ""
    if set(own.values) == set(saved.values):
        return ""
    values = list(saved.values[:2])
    return (
        f"; or take its values over, by `update_from(model, {str(path)!r}, "
        f"{{{own.name!r}: {values}}})`"
    )
