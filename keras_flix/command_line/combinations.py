"""Combinations of values as they are typed."""

from __future__ import annotations

import contextlib
from typing import Any

from keras_flix.features.feature import Feature
from keras_flix.features.schema import FeatureSchema


def parse_features(schema: FeatureSchema, entries: list[str] | None) -> dict[str, Any]:
    """The combination that entries such as `task=qa` name.

    Args:
        schema: The features.
        entries: `feature=value`; `feature=one,two` where that has several;
            `feature=one:0.5,two:0.25` for a blend; `feature=` where there is none.
            One that is always active has no entry.

    Example:

    >>> schema = FeatureSchema({"task": ["qa"], "language": ["en", "sw"]})
    >>> parse_features(schema, ["task=qa", "language="])
    {'task': 'qa', 'language': None}
    >>> parse_features(schema, ["task=", "language=en:0.5,sw:0.25"])
    {'task': None, 'language': {'en': 0.5, 'sw': 0.25}}
    """
    combination: dict[str, Any] = {}
    for entry in entries or []:
        name, mark, text = entry.partition("=")
        if not mark or name in combination:
            raise ValueError(
                "--features must be entries 'feature=value', one of each feature. "
                f"Received: {entry!r}. Write such as task=qa, and task= where there is "
                "none."
            )
        combination[name] = _entry(schema[name] if name in schema else None, text)
    schema.encode_one(combination)
    return combination


def _entry(feature: Feature | None, text: str) -> Any:
    blend = None if feature is None else _blend(feature, text)
    if blend is not None:
        return blend
    if feature is not None and feature.multiple:
        return [_value(feature, x) for x in text.split(",") if x]
    return _value(feature, text) if text else None


def _blend(feature: Feature, text: str) -> dict[str | int, float] | None:
    """Weights of values; `None` where the text is no list of them, or a value."""
    if text in feature.values:
        return None
    blend = {}
    for part in text.split(","):
        value, mark, weight = part.rpartition(":")
        if not mark:
            return None
        with contextlib.suppress(ValueError):
            blend[_value(feature, value)] = float(weight)
            continue
        return None
    return blend


def _value(feature: Feature | None, text: str) -> str | int:
    is_number = feature is not None and isinstance(feature.values[0], int)
    return int(text) if is_number and text.lstrip("-").isdecimal() else text
