"""`FeatureDropout`: how a feature is dropped from examples in training."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping
from typing import Any

from keras_flix._utils.switches import checked_switch


@dataclasses.dataclass(frozen=True)
class FeatureDropout:
    """Drops a feature at random in training, for a whole forward pass.

    A plain number stands for `FeatureDropout(number)`.

    Args:
        rate: Probability in `[0, 1)` of dropping the feature.
        rescale: Whether the feature counts `1 / (1 - rate)` times where it is
            kept, so that its mean contribution stays the same.
        per_batch: Whether one draw decides for all examples of a batch,
            instead of one draw per example.

    Example:

    >>> FeatureDropout(0.5, rescale=True).weight
    2.0
    """

    rate: float
    rescale: bool = False
    per_batch: bool = False

    def __post_init__(self) -> None:
        rate = self.rate
        if (
            isinstance(rate, bool)
            or not isinstance(rate, numbers.Real)
            or not 0.0 <= float(rate) < 1.0
        ):
            raise ValueError(
                f"A dropout rate must be a number in [0, 1). Received: {rate!r}. "
                "Pass 0.0 for none."
            )
        object.__setattr__(self, "rate", float(rate))
        for name in ("rescale", "per_batch"):
            object.__setattr__(self, name, checked_switch(name, getattr(self, name)))

    @property
    def weight(self) -> float:
        """What the feature counts where it is kept."""
        return 1.0 / (1.0 - self.rate) if self.rescale else 1.0

    def get_config(self) -> float | dict[str, Any]:
        """The rate alone where all else is as usual; else a dict of JSON types."""
        if self == FeatureDropout(self.rate):
            return self.rate
        return dataclasses.asdict(self)


def as_dropout(dropout: Any) -> FeatureDropout:
    """A `FeatureDropout` out of a number, a config, or itself."""
    if isinstance(dropout, FeatureDropout):
        return dropout
    if isinstance(dropout, Mapping):
        return FeatureDropout(**dropout)
    return FeatureDropout(dropout)
