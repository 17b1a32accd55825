"""The name that somebody may have meant, for errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import islice
from typing import Any

COMPARED, COMPARED_NAMES = 100, 10_000
"""So many characters, of so many names, are compared."""


def most_alike(
    name: Any, known: Iterable[Any], count: int, cutoff: float = 0.0
) -> list[Any]:
    """Those of `known` that are written most like `name`, the nearest first.

    Args:
        name: What was given.
        known: What could have been meant; each is compared as `str` writes it.
        count: At most so many are returned.
        cutoff: Those less alike than this, in `[0, 1]`, are left out.
    """
    # Of a few and short ones: comparing takes the product of the lengths.
    texts = {str(one)[:COMPARED]: one for one in islice(known, COMPARED_NAMES)}
    near = difflib.get_close_matches(str(name)[:COMPARED], texts, count, cutoff)
    return [texts[text] for text in near]


def nearest(name: Any, known: Iterable[Any]) -> Any:
    """Which of `known` is written most like `name`; `None` if there are none.

    >>> nearest("swa", ["en", "sw", "yo"])
    'sw'
    """
    return next(iter(most_alike(name, known, 1)), None)


def hint(name: Any, known: Iterable[Any]) -> str:
    """The end of an error's text: which known name is the nearest, if any.

    >>> hint("swa", ["en", "sw", "yo"])
    " The nearest is 'sw'."
    """
    near = nearest(name, known)
    return "" if near is None else f" The nearest is {near!r}."
