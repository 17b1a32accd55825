"""Settings that may be nested: as JSON on the command line, as YAML in a file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any


def read(text: str) -> Any:
    """What is typed: JSON where it is such, else the text itself.

    >>> read("8"), read("sqrt"), read('{"query": 8}'), read(".*_0/query")
    (8, 'sqrt', {'query': 8}, '.*_0/query')
    """
    try:
        return json.loads(
            text, parse_constant=lambda name: name, object_pairs_hook=once_each
        )
    except RepeatedKeyError:
        raise
    except (ValueError, RecursionError):
        if text[:1] in ("{", "["):
            raise ValueError("JSON where it begins with { or [") from None
        return text


def nested(rule: str, fits: Callable[[Any], bool]) -> Callable[[Sequence[str]], Any]:
    """Reads one value.

    Args:
        rule: What it must be.
        fits: Whether it is, as far as that is known without the model.
    """

    def parse(texts: Sequence[str]) -> Any:
        value = _one(rule, texts)
        if not fits(value):
            raise ValueError(rule)
        return value

    return parse


def listed(rule: str, kinds: tuple[type, ...]) -> Callable[[Sequence[str]], Any]:
    """Reads values of these kinds: one or several as they are typed, or a list."""

    def parse(texts: Sequence[str]) -> list[Any]:
        values = [_one(rule, [text]) for text in texts]
        if len(values) == 1 and isinstance(values[0], list):
            (values,) = values
        if any(type(value) not in kinds or value == "" for value in values):
            raise ValueError(rule)
        return values

    return parse


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)


def is_mapping_of(names: Sequence[str]) -> Callable[[Any], bool]:
    """Whether it is a mapping whose keys are among these names."""
    return lambda value: isinstance(value, dict) and value.keys() <= {*names}


def of_node(node: Any) -> Any:
    """What a node of YAML says, in JSON's types.

    What stands without quotes is a number where it is one in JSON, and true, false or
    null; all else is text, so that `no` is a word. Raises `RecursionError` for what
    holds itself.
    """
    if node.id == "mapping":
        return once_each((of_scalar_text(k), of_node(v)) for k, v in node.value)
    if node.id == "sequence":
        return [of_node(one) for one in node.value]
    if node.style is not None:
        return node.value
    return None if node.tag.endswith(":null") else read(node.value)


class RepeatedKeyError(ValueError):
    """Says that a mapping has a key twice, of which one would be lost."""


def once_each(entries: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping of these entries; raises if two have the same key."""
    found: dict[str, Any] = {}
    for key, value in entries:
        if key in found:
            raise RepeatedKeyError(f"a mapping that has {key!r} once")
        found[key] = value
    return found


def of_scalar_text(node: Any) -> str:
    """The text of a key; raises if it is none."""
    if node.id != "scalar":
        raise ValueError("a mapping whose keys are texts")
    return str(node.value)


def _one(rule: str, texts: Sequence[str]) -> Any:
    if len(texts) != 1 or not texts[0]:
        raise ValueError(rule)
    try:
        return read(texts[0])
    except ValueError as error:
        raise ValueError(f"{rule}, and {error}") from None
