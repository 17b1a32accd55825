"""What has another shape here than there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def unlike(
    expected: Mapping[str, Any], found: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Names whose shapes differ, sorted, with both; `"none"` for what is not there.

    >>> list(unlike({"a": (1,), "b": (2,)}, {"b": (2,), "c": (3,)}))
    [('a', (1,), 'none'), ('c', 'none', (3,))]
    """
    for name in sorted(expected.keys() | found.keys()):
        pair = expected.get(name, "none"), found.get(name, "none")
        if pair[0] != pair[1]:
            yield name, *pair
