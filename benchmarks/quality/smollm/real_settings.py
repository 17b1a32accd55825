"""What fixes a trial on the real base."""

from __future__ import annotations

import dataclasses
from typing import Any

from benchmarks.quality import evidence_arms, keys

UNDERSTOOD = {
    "name",
    "ranks",
    "dropout",
    "rescale",
    "per_batch",
    "alpha",
    "initial",
    "targets",
    "labels",
}
"""What an arm may state here."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """What fixes a trial.

    Its defaults must stay what they are: stored results leave out what is as usual.

    Attributes:
        arm: The arm.
        learning_rate: The peak, after a warm-up of a tenth of the steps; from
            there it falls to zero on a cosine.
        seed: Of the initial tables, the order of the examples and dropout.
        steps, batch_size: Of training. No steps leave the base as it is.
        tasks, languages, examples: Of the mixture, examples those of a seen cell.
        temperature: With which cells are drawn in training.
        dtype: Of products with the base's kernels.
    """

    arm: evidence_arms.Arm
    learning_rate: float
    seed: int = 0
    steps: int = 300
    batch_size: int = 16
    tasks: int = 12
    languages: int = 24
    examples: int = 60
    temperature: float = 2.0
    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        strange = set(keys.unusual(self.arm)) - UNDERSTOOD
        if strange:
            raise ValueError(
                f"An arm on the real base may state {sorted(UNDERSTOOD)}. Received: "
                f"{sorted(strange)} of {self.arm.name!r}. Leave them at their defaults."
            )

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Trial:
        """The trial that `config` described."""
        return cls(**{**config, "arm": evidence_arms.Arm(**config["arm"])})

    def config(self) -> dict[str, Any]:
        """The trial as JSON types, without what is as usual."""
        return keys.unusual(self)

    @property
    def key(self) -> str:
        """The name of its file."""
        return keys.key_of(self.arm.name, self.config())
