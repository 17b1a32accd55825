"""`BaseFingerprint`: what tells one base model from another, in adapter files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from keras_flix._utils.displayed import Displayed, count

Settings = Mapping[str, Any]
"""Entries of a layer's config by name: numbers, strings, and lists of them."""


@dataclasses.dataclass(frozen=True, repr=False)
class BaseFingerprint(Displayed):
    """Digests of a model's base weights, by the paths of the variables.

    Attributes:
        variables: By path, the digest of a variable, 8 hexadecimal digits.
        settings: By path of a layer, those entries of its config that change what it
            computes, such as `{"final_norm": {"epsilon": 1e-06}}`. Adapter files of
            0.1 have none.
    """

    variables: Mapping[str, str]
    settings: Mapping[str, Settings] = dataclasses.field(default_factory=dict)

    def _line(self) -> str:
        count_of = count(len(self.variables), "variable")
        return f"BaseFingerprint({self.digest!r}, {count_of})"

    @property
    def digest(self) -> str:
        """One digest of all variables: 16 hexadecimal digits."""
        lines = (f"{path} {digest}\n" for path, digest in self._sorted())
        return hashlib.blake2b("".join(lines).encode(), digest_size=8).hexdigest()

    def differences(self, other: BaseFingerprint) -> list[str]:
        """The paths that both have, with other digests, in order."""
        return [
            path
            for path, digest in self._sorted()
            if other.variables.get(path, digest) != digest
        ]

    def other_settings(self, other: BaseFingerprint) -> list[str]:
        """The settings that both have and that differ, in order: `layer: entry=own`,
        and what the other has."""
        found = []
        for layer, own in self.settings.items():
            theirs = other.settings.get(layer, {})
            for name, value in own.items():
                if name in theirs and not _alike(value, theirs[name]):
                    found.append(
                        f"{layer}: {name}={value!r} for {name}={theirs[name]!r}"
                    )
        return found

    def _sorted(self) -> list[tuple[str, str]]:
        return sorted(self.variables.items())

    def get_config(self) -> dict[str, Any]:
        """The fingerprint as a dict of JSON types."""
        # Most layers have the settings of others: each of these is listed once.
        distinct: dict[str, int] = {}
        layers = {
            layer: distinct.setdefault(json.dumps(settings), len(distinct))
            for layer, settings in self.settings.items()
        }
        return {
            "digest": self.digest,
            "variables": dict(self._sorted()),
            "settings": [json.loads(text) for text in distinct],
            "layers": layers,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> BaseFingerprint:
        """The fingerprint that `get_config` described."""
        variables = config["variables"]
        if not isinstance(variables, dict):
            raise TypeError("The variables of a fingerprint must be a dict.")
        distinct, layers = config.get("settings", []), config.get("layers", {})
        if not all(isinstance(settings, dict) for settings in distinct):
            raise TypeError("The settings of a fingerprint must be a list of dicts.")
        return cls(
            {str(path): str(digest) for path, digest in variables.items()},
            {str(path): distinct[place] for path, place in layers.items()},
        )


def _alike(one: Any, other: Any) -> bool:
    """Whether two entries of configs are the same; numbers to six digits."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_alike, one, other))
    try:
        # A float may have been rounded to 32 bits on its way through a checkpoint.
        return math.isclose(one, other, rel_tol=1e-6)
    except (TypeError, OverflowError):
        return bool(one == other)
