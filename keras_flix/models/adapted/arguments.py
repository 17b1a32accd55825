"""Arguments of an adapted model's entry points, as Keras takes them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

PARTS = ("x", "y", "sample_weight")


def by_name(
    method: Callable[..., Any], x: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments after `x` of a bound method, by name as far as they have one."""
    parameters = list(inspect.signature(method).parameters.values())
    if not args or any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return args, kwargs
    # Raises what Python does for too many, or for one that is given twice.
    inspect.signature(method).bind_partial(x, *args, **kwargs)
    names = [parameter.name for parameter in parameters[1:]]
    return (), {**dict(zip(names, args)), **kwargs}


def split_for_validation(x: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Arguments of `fit` with the last examples as validation data.

    Keras' own rule, by which `validation_split=0.2` takes the last fifth, for columns
    that may be lists: KerasHub's tasks take those, and refuse them for this.
    """
    kwargs = dict(kwargs)
    share = kwargs.pop("validation_split")
    data = (x, *(kwargs.pop(name, None) for name in PARTS[1:]))
    count = len(next(iter(_columns(data))))
    at = math.floor(count * (1.0 - share))
    if not 0 < at < count:
        raise ValueError(
            "`validation_split` must leave examples for training and for validation. "
            f"Received: validation_split={share} of {count} examples. Pass another "
            "share, or more examples."
        )
    x, *others = _rows(data, slice(at))
    kwargs |= dict(zip(PARTS[1:], others))
    return x, {**kwargs, "validation_data": _rows(data, slice(at, None))}


def _columns(data: Any) -> list[Any]:
    # As in KerasHub's pipelines, a list is a column, and no structure.
    if isinstance(data, (tuple, Mapping)):
        parts = data.values() if isinstance(data, Mapping) else data
        return [column for part in parts for column in _columns(part)]
    return [] if data is None else [data]


def _rows(data: Any, rows: slice) -> Any:
    if isinstance(data, Mapping):
        return {name: _rows(part, rows) for name, part in data.items()}
    if isinstance(data, tuple):
        return tuple(_rows(part, rows) for part in data)
    return None if data is None else data[rows]
