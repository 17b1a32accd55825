"""What an adapter file says it holds, before that is read."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from keras_flix.features.schema import FeatureSchema

Pair = tuple[int, int, tuple[str, str]]
"""Of a feature in a layer: the number of values, the width along the rank, and the
names of its `A` and `B`."""


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


def table_names(layer: str, feature: str) -> tuple[str, str]:
    """What the tables of a feature in a layer are called in an adapter file."""
    return f"{layer}/flix_{feature}_a", f"{layer}/flix_{feature}_b"


def pairs_of(
    schema: FeatureSchema,
    layers: Sequence[str],
    of: Mapping[str, Container[str]],
    ranks: Mapping[str, Mapping[str, int]],
    experts: Mapping[str, int],
) -> Iterator[Pair]:
    """What the tables must be, of each layer and each feature that it is `of`."""
    # Once, not per layer: a feature may have very many values.
    highest = {feature.name: max(feature.ranks) for feature in schema}
    for path in layers:
        for f in schema:
            if path in of[f.name]:
                rank = ranks.get(f.name, {}).get(path, highest[f.name])
                width = rank * experts.get(path, 1)
                yield len(f.values), width, table_names(path, f.name)


def stand_ins(
    pairs: Iterable[Pair],
    count: int,
    file: Any,
    trained: set[str],
) -> dict[str, np.ndarray]:
    """The tables of a file as zeros without memory; raises if they are not right.

    Args:
        pairs: What they must be.
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


def check_tables(
    pairs: Iterable[Pair], tables: Mapping[str, np.ndarray], source: str
) -> None:
    """Raises unless tables that are to be written are as their schema says.

    Args:
        pairs: What they must be.
        tables: The tables, by name.
        source: Where they come from.
    """
    named = set()
    for values, rank, (a, b) in pairs:
        for name, axis in ((a, 2), (b, 1)):
            named.add(name)
            shape = tables[name].shape if name in tables else ()
            if len(shape) != 3 or (shape[0], shape[axis]) != (values, rank):
                raise ValueError(
                    "The adapter weights in a file must be as its schema says. At "
                    f"{name!r}, expected: {values} values and rank {rank}. Received: "
                    f"{shape or 'no table'} in {source}. Nothing was written: load "
                    "the last good file into a fresh model."
                )
    besides = sorted(tables.keys() - named)
    if besides:
        raise ValueError(
            "The adapter weights in a file must be those of its schema. Received: "
            f"{besides[0]!r} besides in {source}. Nothing was written: leave it out."
        )


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
