"""Numbers and tables as texts, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of a table as a text, the first column to the left.

    >>> print(aligned([["task", "norm"], ["qa", "12.5"]]))
    task  norm
    qa    12.5
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
        for row in rows
    )


def number(x: Any) -> str:
    """A number as a table shows it.

    >>> number(1234.5), number(0.012345), number(float("nan"))
    ('1.23e+03', '0.0123', '-')
    """
    return "-" if np.isnan(x) else f"{x:.3g}"


def plain(x: Any) -> Any:
    """Arrays, tuples and dicts of them as JSON types; `None` stands for NaN.

    >>> plain({"norms": np.array([1.5, np.nan])})
    {'norms': [1.5, None]}
    """
    if isinstance(x, Mapping):
        return {name: plain(value) for name, value in x.items()}
    if isinstance(x, np.ndarray):
        x = x.tolist()
    if isinstance(x, (list, tuple)):
        return [plain(value) for value in x]
    return None if isinstance(x, float) and np.isnan(x) else x
