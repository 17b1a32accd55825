"""Ranks that differ by layer: those of experts, and those that are stated by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from keras_flix._utils.near_names import hint
from keras_flix.features.ranks import checked_rank
from keras_flix.features.schema import FeatureSchema
from keras_flix.layers.expert_kernel import ExpertKernel
from keras_flix.models.places import Places
from keras_flix.models.targets import paths_matching

ByFeature = int | Mapping[str, int]
"""A rank of all features, or by feature; those that are not named keep theirs."""
LayerRanks = Mapping[str, ByFeature] | None
"""By a layer's name, or a regex of its whole path."""
RanksByPath = dict[str, dict[str, int]]
"""By feature, the rank of all its values in layers with one of their own, by path."""


def find_layer_ranks(
    schema: FeatureSchema,
    layers: Mapping[str, Any],
    places: Places,
    layer_ranks: LayerRanks = None,
    expert_rank: ByFeature | None = None,
) -> RanksByPath:
    """The ranks that layers have of their own.

    Args:
        schema: The features.
        layers: The layers that are to be adapted, by path.
        places: Which features have only some of them.
        layer_ranks: See `enable_flix`.
        expert_rank: Likewise.
    """
    stated: list[tuple[str, list[str], Any]] = []
    if expert_rank is not None:
        kernels = [p for p, one in layers.items() if isinstance(one, ExpertKernel)]
        if not kernels:
            raise ValueError(
                "`expert_rank` must come with experts that are adapted. Received: "
                f"expert_rank={expert_rank!r}, and experts=None. Pass "
                "experts='shared' or 'each', or leave it out."
            )
        stated.append(("expert_rank", kernels, expert_rank))
    for pattern, rank in _checked(layer_ranks).items():
        error = (
            "`layer_ranks` must name layers that are adapted. Received: "
            f"{pattern!r}, which matches none of them."
        )
        label = f"layer_ranks[{pattern!r}]"
        stated.append((label, paths_matching(pattern, layers, error), rank))
    found: RanksByPath = {}
    for label, paths, rank in stated:
        for name, number in _by_feature(schema, label, rank):
            inside = [path for path in paths if path in places.get(name, layers)]
            if not inside and isinstance(rank, Mapping):
                raise ValueError(
                    "A rank by layer must be of a feature that has adapter weights "
                    f"there. Received: {label}={rank!r}, where {name!r} has none. "
                    "Leave it out."
                )
            own = found.setdefault(name, {}) if inside else {}
            for path in inside:
                if path in own:
                    raise ValueError(
                        "A layer must have one rank of each feature. Received: "
                        f"{own[path]} and {number}, by {label}, of feature {name!r} "
                        f"in {path!r}. Write patterns that share no layer."
                    )
                own[path] = number
    return found


def _checked(layer_ranks: Any) -> Mapping[str, Any]:
    if layer_ranks is None:
        return {}
    if not isinstance(layer_ranks, Mapping):
        raise ValueError(
            "`layer_ranks` must be a dict from a layer's name, or a regex of its whole "
            f"path, to a rank, or to ranks by feature. Received: {layer_ranks!r}. "
            "Write such as {'query': 8}."
        )
    return layer_ranks


def _by_feature(
    schema: FeatureSchema, label: str, rank: Any
) -> Iterator[tuple[str, int]]:
    by_feature = (
        rank if isinstance(rank, Mapping) else dict.fromkeys(schema.names, rank)
    )
    for name, number in by_feature.items():
        if name not in schema:
            raise ValueError(
                f"`{label}` must name features of the model: {schema.names}. Received: "
                f"{name!r}.{hint(name, schema.names)}"
            )
        if isinstance(number, Mapping):
            raise ValueError(
                "A rank by layer must be one number for all values of a feature. "
                f"Received: {label}={rank!r}. Ranks by value are those of `rank`."
            )
        yield name, checked_rank(name, (), number)  # type: ignore[misc]
