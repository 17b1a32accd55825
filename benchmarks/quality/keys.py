"""Names of stored results: a digest of what fixes a trial."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any


def unusual(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults, as JSON types.

    So a trial's key stays what it was when trials learn something new.
    """
    found = {}
    for field in dataclasses.fields(value):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        one = getattr(value, field.name)
        if one != default:
            found[field.name] = unusual(one) if dataclasses.is_dataclass(one) else one
    return found


def key_of(name: str, config: dict[str, Any]) -> str:
    """A file name: the arm's, and a digest of all that fixes the trial."""
    text = json.dumps(config, sort_keys=True)
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"
