"""The values of a feature: strings or integers, each of them once."""

from __future__ import annotations

import collections
import numbers
import unicodedata
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

from keras_flix._utils.near_names import nearest
from keras_flix.features.encoding import ABSENT
from keras_flix.features.missing import is_missing

Value = str | int

OTHERS = "*"
"""In the place of a value's or a feature's name: all that are not named."""


def plain_value(value: Any) -> Any:
    """A value as a feature holds it: texts that look the same are the same.

    Unicode has several ways to write one text. All become NFC; numpy's strings and
    integers become Python's. What is no value comes back as it is.

    >>> plain_value("Yoru\\N{LATIN SMALL LETTER A}\\N{COMBINING ACUTE ACCENT}")
    'Yoruá'
    """
    if isinstance(value, str):
        return str(unicodedata.normalize("NFC", value))
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    return value


def checked_values(
    name: str, values: Any, always: bool, multiple: bool
) -> tuple[Value, ...]:
    """The values of a feature; raises unless they are all strings or all integers.

    Args:
        name: The feature's name, which is the value of one that is always active.
        values: What was given.
        always: Whether the feature is active in every example.
        multiple: Whether an example may have several values.
    """
    if isinstance(values, (str, bytes)):
        raise ValueError(
            f"The values of feature {name!r} must be a list. "
            f"Received: values={values!r}, a single string. "
            f"Write [{values!r}]."
        )
    if not isinstance(values, Iterable) or isinstance(values, (Set, Mapping)):
        raise ValueError(
            f"The values of feature {name!r} must be a list, whose order "
            f"gives their ids. Received: values={values!r} of type "
            f"{type(values).__name__}. Pass a list; for a set, "
            "sorted(values)."
        )
    given = list(values)
    checked = tuple(map(plain_value, given))
    if always and not checked:
        checked = (name,)
    if "" in checked:
        raise ValueError(
            f"The values of feature {name!r} must not be empty strings, "
            "which stand for absence in string tensors. Received: "
            f"values={list(checked)!r}. Give the value a name."
        )
    if OTHERS in checked:
        raise ValueError(
            f"The values of feature {name!r} must not contain {OTHERS!r}, which "
            "stands for all others where ranks, rates and limits go by value. "
            f"Received: values={list(checked)!r}. Give the value another name."
        )
    if not checked:
        raise ValueError(
            f"Feature {name!r} must have at least one value. "
            "Received: values=[]. List the values that occur in the "
            "mixture."
        )
    kinds = {type(v) for v in checked}
    if not (kinds <= {str} or kinds <= {int}):
        remedy = "Convert them to strings."
        if any(map(is_missing, checked)):
            remedy = "Leave out what is missing: it is absence, and no value."
        raise ValueError(
            f"The values of feature {name!r} must be all strings or "
            f"all integers. Received: values={list(checked)!r}. {remedy}"
        )
    if ABSENT in checked:
        raise ValueError(
            f"The values of feature {name!r} must not contain {ABSENT}, "
            f"which means absent. Received: values={list(checked)!r}. Convert "
            "them to strings."
        )
    duplicates = [v for v, count in collections.Counter(checked).items() if count > 1]
    if duplicates:
        _refuse_look_alikes(name, given, duplicates[0])
        raise ValueError(
            f"The values of feature {name!r} must be unique. "
            f"Received: values={list(checked)!r}, where {duplicates!r} "
            "occur more than once. Remove the repeated ones."
        )
    if always and len(checked) != 1:
        raise ValueError(
            f"Feature {name!r} has always=True and must have exactly "
            f"one value. Received: values={list(checked)!r}. Leave `values` "
            "out, or set always=False."
        )
    if always and multiple:
        raise ValueError(
            f"Feature {name!r} cannot have both always=True and "
            "multiple=True. Received: always=True, multiple=True. Choose "
            "one of them."
        )
    return checked


def _refuse_look_alikes(name: str, given: list[Any], value: Value) -> None:
    written = {v for v in given if plain_value(v) == value}
    if len(written) > 1:
        raise ValueError(
            f"The values of feature {name!r} must not look the same. Received: "
            f"{' and '.join(map(ascii, sorted(written)))}, two ways in which Unicode "
            f"writes {value!r}. Keep one of them: inputs may be written either way."
        )


def nearest_value(value: Any, values: Sequence[Value]) -> str:
    """What an error says of the values there are, and of that which may be meant."""
    near = nearest(value, map(str, values))
    known = ", ".join(repr(v) for v in values[:8])
    more = ", ..." if len(values) > 8 else ""
    hint = "" if near is None else f" The nearest known value is {near!r}."
    return f"{hint} Known values: {known}{more}."
