"""Keywords and names of earlier versions, which still work and say what to write."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def renamed_keyword(old: str, new: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator of a function one of whose keywords was called otherwise.

    >>> @renamed_keyword("axis", "feature")
    ... def shown(feature):
    ...     return feature
    >>> with warnings.catch_warnings(record=True) as found:
    ...     warnings.simplefilter("always")
    ...     shown(axis="task"), str(found[0].message)
    ('task', '`axis=` of `shown` is called `feature=` now.')
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def renamed(*args: P.args, **kwargs: P.kwargs) -> R:
            if old in kwargs:
                if new in kwargs:
                    raise TypeError(
                        f"`{function.__name__}` takes `{new}` once. Received: "
                        f"`{old}=`, its former name, besides. Leave that out."
                    )
                warn_renamed(f"`{old}=` of `{function.__name__}`", f"`{new}=`")
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return renamed

    return decorate


def warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """Warns whoever called the caller that `old` is called `new` now."""
    warnings.warn(f"{old} is called {new} now.", DeprecationWarning, stacklevel)
