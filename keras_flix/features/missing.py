"""What pandas, numpy and others write for a value that is missing: all are `None`."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np


def is_missing(value: Any) -> bool:
    """Whether one value is missing: `None`, NaN, NA, NaT, or masked.

    >>> [is_missing(value) for value in (None, float("nan"), np.ma.masked, "", 0)]
    [True, True, True, False, False]
    """
    if value is None or value is np.ma.masked:
        return True
    if isinstance(value, (str, numbers.Integral)):
        return False
    if isinstance(value, (np.datetime64, np.timedelta64)):
        return bool(np.isnat(value))
    if isinstance(value, numbers.Number):
        return bool(value != value)
    kind = type(value)
    # pandas is not imported for this: its NA cannot be compared.
    return (
        kind.__name__ in ("NAType", "NaTType")
        and kind.__module__.partition(".")[0] == "pandas"
    )


def without_masks(entry: Any) -> Any:
    """An array without a mask: `None` where it hides an entry; a weight of zero."""
    if entry is np.ma.masked:
        return None
    if not isinstance(entry, np.ma.MaskedArray):
        return entry
    if entry.dtype.kind == "f" and entry.ndim == 2:
        return entry.filled(0.0)
    values = entry.data.astype(object)
    values[np.ma.getmaskarray(entry)] = None
    return values


def whole_numbers(entries: list[Any], besides_nan: bool = True) -> list[Any]:
    """Integers that became floats beside a NaN, as in pandas, as integers again.

    Args:
        entries: One per example.
        besides_nan: Whether to leave them alone where there is no NaN.

    >>> whole_numbers([0.0, float("nan"), 1.0])
    [0, nan, 1]
    >>> whole_numbers([0.0, 1.0])
    [0.0, 1.0]
    """
    floats = [isinstance(entry, (float, np.floating)) for entry in entries]
    if besides_nan and not any([f and e != e for f, e in zip(floats, entries)]):
        return entries
    return [
        int(entry) if is_float and float(entry).is_integer() else entry
        for is_float, entry in zip(floats, entries)
    ]
