"""`BaseFingerprint`: what tells one base model from another, in adapter files."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class BaseFingerprint:
    """Digests of a model's base weights, by the paths of the variables.

    Attributes:
        variables: By path, the digest of a variable, 8 hexadecimal digits.
    """

    variables: Mapping[str, str]

    @property
    def digest(self) -> str:
        """One digest of all: 16 hexadecimal digits."""
        lines = (f"{path} {digest}\n" for path, digest in self._sorted())
        return hashlib.blake2b("".join(lines).encode(), digest_size=8).hexdigest()

    def differences(self, other: BaseFingerprint) -> list[str]:
        """The paths that both have, with other digests, in order."""
        return [
            path
            for path, digest in self._sorted()
            if other.variables.get(path, digest) != digest
        ]

    def _sorted(self) -> list[tuple[str, str]]:
        return sorted(self.variables.items())

    def get_config(self) -> dict[str, Any]:
        """The fingerprint as a dict of JSON types."""
        return {"digest": self.digest, "variables": dict(self._sorted())}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> BaseFingerprint:
        """The fingerprint that `get_config` described."""
        variables = config["variables"]
        if not isinstance(variables, dict):
            raise TypeError("The variables of a fingerprint must be a dict.")
        return cls({str(path): str(digest) for path, digest in variables.items()})
