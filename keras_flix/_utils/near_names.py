"""The name that somebody may have meant, for errors."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable
from itertools import islice
from typing import Any

COMPARED, COMPARED_NAMES = 100, 10_000
"""So many characters, of so many names, are compared."""

NEAR = 0.6
"""How alike two names are at least, of which one may have been meant."""


def most_alike(
    name: Any, known: Iterable[Any], count: int, cutoff: float = 0.0
) -> list[Any]:
    """Those of `known` that are written most like `name`, the nearest first.

    Case, width and blanks at the ends make no difference.

    Args:
        name: What was given.
        known: What could have been meant; each is compared as `str` writes it.
        count: At most so many are returned.
        cutoff: Those less alike than this, in `[0, 1]`, are left out.
    """
    # Of a few and short ones: comparing takes the product of the lengths.
    texts: dict[str, Any] = {}
    for one in islice(known, COMPARED_NAMES):
        texts.setdefault(_folded(one), one)
    near = difflib.get_close_matches(_folded(name), texts, count, cutoff)
    return [texts[text] for text in near]


def _folded(name: Any) -> str:
    text = unicodedata.normalize("NFKC", str(name)[:COMPARED])
    return text.casefold().strip()


def nearest(name: Any, known: Iterable[Any]) -> Any:
    """Which of `known` is written most like `name`; `None` if none is near.

    >>> nearest("SWA", ["en", "sw", "yo"])
    'sw'
    >>> nearest("German", ["en", "sw", "yo"]) is None
    True
    """
    return next(iter(most_alike(name, known, 1, NEAR)), None)


def hint(name: Any, known: Iterable[Any]) -> str:
    """The end of an error's text: which known name is the nearest, if one is near.

    >>> hint("swa", ["en", "sw", "yo"])
    " The nearest is 'sw'."
    """
    near = nearest(name, known)
    return "" if near is None else f" The nearest is {near!r}."


def the_nearest(name: Any, known: Iterable[Any]) -> str:
    """The end of an error's text where nothing matched: three names, near or not.

    >>> the_nearest("atention", ["attention", "mlp"])
    " The nearest are ['attention']"
    """
    names = list(known)
    return f" The nearest are {most_alike(name, names, 3, 0.3) or names[:3]}"
