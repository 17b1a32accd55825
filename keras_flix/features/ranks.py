"""The rank of a feature's values: one number, or one by value."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from keras_flix.features.values import OTHERS, Value, nearest_value, plain_value

Rank = int | Mapping[Any, int]


def checked_rank(
    name: str, values: Sequence[Value], rank: Any
) -> int | dict[Value, int]:
    """The rank of a feature; raises unless there is a positive one for each value.

    Args:
        name: The feature's name.
        values: Its values.
        rank: What was given.
    """
    if not isinstance(rank, Mapping):
        return _checked_number(name, rank)
    rank = {plain_value(value): r for value, r in rank.items()}
    known = set(values)
    unknown = [v for v in rank if v != OTHERS and v not in known]
    if unknown:
        raise ValueError(
            f"A rank by value of feature {name!r} must name its values or '*'. "
            f"Received: rank={dict(rank)!r}, where {unknown[0]!r} is unknown."
            f"{nearest_value(unknown[0], values)}"
        )
    missing = [v for v in values if v not in rank]
    if missing and OTHERS not in rank:
        raise ValueError(
            f"A rank by value of feature {name!r} must cover every value. Received: "
            f"rank={dict(rank)!r}, without {missing!r}. Add them, or '*' for all "
            "others."
        )
    return {v: _checked_number(name, r) for v, r in rank.items()}


def _checked_number(name: str, rank: Any) -> int:
    if isinstance(rank, bool) or not isinstance(rank, numbers.Integral):
        raise ValueError(
            f"The rank of feature {name!r} must be an integer. Received: "
            f"rank={rank!r}. Pass a positive integer such as 4."
        )
    if rank < 1:
        raise ValueError(
            f"The rank of feature {name!r} must be at least 1. Received: rank={rank}. "
            "To leave a feature out, remove it from the schema."
        )
    return int(rank)
