"""What an adapter file says it holds, before that is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_flix.features.schema import FeatureSchema


def checked_places(
    schema: FeatureSchema, layers: Sequence[str], places: Any
) -> dict[str, list[str]]:
    """By feature, the layers that it has adapter weights in, where not in all."""
    if not isinstance(places, dict) or not places.keys() <= set(schema.names):
        raise ValueError("The places must be by feature.")
    for found in places.values():
        if (
            not isinstance(found, list)
            or not found
            or len(set(found)) < len(found)
            or not set(found) <= set(layers)
        ):
            raise ValueError("The places must be lists of different layers.")
    everywhere = len(places) < len(schema)
    if not everywhere and set(layers) != {path for x in places.values() for path in x}:
        raise ValueError("Every layer must have a feature.")
    return places


def checked_ranks(
    places: Mapping[str, set[str]], ranks: Any
) -> dict[str, dict[str, int]]:
    """By feature, the ranks of layers that have one of their own.

    Args:
        places: By feature, the layers that it has adapter weights in.
        ranks: What a file says.
    """
    if not isinstance(ranks, dict) or not ranks.keys() <= places.keys():
        raise ValueError("The ranks of layers must be by feature.")
    for name, by_path in ranks.items():
        if not isinstance(by_path, dict) or not by_path.keys() <= places[name]:
            raise ValueError("The ranks of layers must be of a feature's layers.")
        if not all(_is_count(rank) for rank in by_path.values()):
            raise ValueError("The ranks of layers must be positive integers.")
    return ranks


def checked_experts(layers: Sequence[str], experts: Any) -> dict[str, int]:
    """How many experts have adapters of their own, by path of their kernel."""
    if not isinstance(experts, dict) or not experts.keys() <= set(layers):
        raise ValueError("The numbers of experts must be by layer.")
    if not all(_is_count(count) for count in experts.values()):
        raise ValueError("The numbers of experts must be positive integers.")
    return experts


def _is_count(number: Any) -> bool:
    return type(number) is int and number > 0


def stand_ins(
    pairs: Iterable[tuple[int, int, tuple[str, str]]],
    count: int,
    file: Any,
    trained: set[str],
) -> dict[str, np.ndarray]:
    """The tables of a file as zeros without memory; raises if they are not right.

    Args:
        pairs: Of a feature in a layer, the number of values, the width along the
            rank, and the names of its `A` and `B`.
        count: How many pairs these are.
        file: The open file.
        trained: Names of other tensors.
    """
    names = set(file.keys()) - trained
    tables: dict[str, np.ndarray] = {}
    # Counted first: a short header can stand for any number of pairs.
    if len(names) == 2 * count:
        for values, rank, (a, b) in pairs:
            for name, axis in ((a, 2), (b, 1)):
                if name in names:
                    tables[name] = _stand_in(file, name, values, axis, rank)
    if tables.keys() != names:
        raise ValueError(
            f"Its {len(names)} tensors are not two for each of its {count} pairs of a "
            "layer and a feature."
        )
    return tables


def _stand_in(file: Any, name: str, count: int, axis: int, rank: int) -> np.ndarray:
    table = empty(file.get_slice(name), name)
    shape = table.shape
    if len(shape) != 3 or (shape[0], shape[axis]) != (count, rank):
        raise ValueError(
            "Adapter weights must be of shape (values, d_in, rank) and (values, rank, "
            f"d_out). Received: shape {shape} at {name!r}, for {count} values and "
            f"rank {rank}."
        )
    return table


def empty(part: Any, name: str) -> np.ndarray:
    """What stands for a tensor that was not read: zeros that take no memory."""
    dtype, shape = part.get_dtype(), tuple(part.get_shape())
    if dtype != "F32":
        raise ValueError(
            f"Weights must be F32. Received: {dtype} of shape {shape} at {name!r}."
        )
    return np.broadcast_to(np.float32(0), shape)
