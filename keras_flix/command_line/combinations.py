"""Combinations of values as they are typed."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from keras_flix.features.feature import Feature
from keras_flix.features.schema import FeatureSchema


def parse_features(schema: FeatureSchema, entries: list[str] | None) -> dict[str, Any]:
    """The combination that entries such as `task=qa` name.

    Args:
        schema: The features.
        entries: `feature=value`; `feature=one,two` where that has several;
            `feature=one:0.5,two:0.25` for a blend; `feature=` where there is none;
            and several of these in one, with commas between. One that is always
            active has no entry.

    Example:

    >>> schema = FeatureSchema({"task": ["qa"], "language": ["en", "sw"]})
    >>> parse_features(schema, ["task=qa", "language="])
    {'task': 'qa', 'language': None}
    >>> parse_features(schema, ["task=", "language=en:0.5,sw:0.25"])
    {'task': None, 'language': {'en': 0.5, 'sw': 0.25}}
    >>> parse_features(schema, ["task=qa,language=sw"])
    {'task': 'qa', 'language': 'sw'}
    """
    combination = parse_some_features(schema, entries)
    features = {feature.name: feature for feature in schema.routed}
    missing = [name for name in features if name not in combination]
    if missing and all(name in schema for name in combination):
        name = missing[0]
        raise ValueError(
            f"--features must have an entry of each feature: {', '.join(features)}. "
            f"Received: no entry {name!r}. Write such as "
            f"{name}={features[name].values[0]}, and {name}= where there is none."
        )
    schema.encode_one(combination)
    return combination


def parse_some_features(
    schema: FeatureSchema, entries: Sequence[str] | None
) -> dict[str, Any]:
    """As `parse_features`, where features may be left out; values are not checked."""
    combination: dict[str, Any] = {}
    for entry in [one for text in entries or [] for one in _apart(schema, text)]:
        name, mark, text = entry.partition("=")
        if not mark or name in combination:
            raise ValueError(
                "--features must be entries 'feature=value', one of each feature. "
                f"Received: {entry!r}. Write such as task=qa, and task= where there is "
                "none."
            )
        combination[name] = _entry(schema[name] if name in schema else None, text)
    return combination


def _apart(schema: FeatureSchema, text: str) -> list[str]:
    """The entries in a text, with commas between.

    A comma begins a new entry where something with `=` follows it, unless it is in a
    value: the longest text that is one of the feature's values is that value.
    """
    pieces = text.split(",")
    entries = []
    while pieces:
        name, _, first = pieces[0].partition("=")
        feature = schema[name] if name in schema else None
        count = _longest([first, *pieces[1:]], feature)
        while count < len(pieces):
            more = _longest(pieces[count:], feature)
            if "=" in pieces[count] and not _is_value(pieces[count:][:more], feature):
                break
            count += more
        entries.append(",".join(pieces[:count]))
        pieces = pieces[count:]
    return entries


def _longest(pieces: Sequence[str], feature: Feature | None) -> int:
    """How many pieces make up the value that a text begins with; 1 if none does."""
    counts = range(len(pieces), 1, -1)
    return next((n for n in counts if _is_value(pieces[:n], feature)), 1)


def _is_value(pieces: Sequence[str], feature: Feature | None) -> bool:
    """Whether a text, maybe with a weight at its end, is a value."""
    if feature is None:
        return False
    text = ",".join(pieces)
    return any(typed_value(feature, x) in feature for x in _with_weight(text))


def _with_weight(text: str) -> list[str]:
    """What may be the value: the text, and what stands before a weight."""
    value, _, weight = text.rpartition(":")
    try:
        float(weight)
    except ValueError:
        return [text]
    return [text, value]


def _parts(text: str, feature: Feature) -> list[str]:
    """A list of values, or of values with weights, at its commas."""
    pieces = text.split(",")
    parts = []
    while pieces:
        count = _longest(pieces, feature)
        parts.append(",".join(pieces[:count]))
        pieces = pieces[count:]
    return parts


def _entry(feature: Feature | None, text: str) -> Any:
    blend = None if feature is None else _blend(feature, text)
    if blend is not None:
        return blend
    if feature is not None and feature.multiple:
        return [typed_value(feature, x) for x in _parts(text, feature) if x]
    return typed_value(feature, text) if text else None


def _blend(feature: Feature, text: str) -> dict[str | int, float] | None:
    """Weights of values; `None` where the text is no list of them, or a value."""
    if text in feature:
        return None
    blend = {}
    for part in _parts(text, feature):
        value, mark, weight = part.rpartition(":")
        if not mark:
            return None
        with contextlib.suppress(ValueError):
            blend[typed_value(feature, value)] = float(weight)
            continue
        return None
    return blend


def typed_value(feature: Feature | None, text: str) -> str | int:
    """What a text says of a feature's value: an integer where its values are such."""
    is_number = feature is not None and isinstance(feature.values[0], int)
    return int(text) if is_number and text.lstrip("-").isdecimal() else text
