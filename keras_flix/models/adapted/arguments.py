"""Arguments of an adapted model's entry points, as Keras takes them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any


def by_name(
    method: Callable[..., Any], x: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments after `x` of a bound method, by name as far as they have one."""
    if not args:
        return args, kwargs
    parameters = list(inspect.signature(method).parameters.values())
    if inspect.Parameter.VAR_POSITIONAL in [p.kind for p in parameters]:
        return args, kwargs
    # Raises what Python does for too many, or for one that is given twice.
    inspect.signature(method).bind_partial(x, *args, **kwargs)
    names = [parameter.name for parameter in parameters[1:]]
    return (), {**dict(zip(names, args)), **kwargs}
