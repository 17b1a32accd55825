"""What the update of a value is multiplied by, given its rank."""

from __future__ import annotations

import dataclasses
import math
import numbers
from typing import Any

SCALES = ("rank", "sqrt")
"""What alpha may be divided by: the rank, or its square root."""


@dataclasses.dataclass(frozen=True)
class Scaling:
    """The scale of a feature's updates.

    With `by="sqrt"` it is that of Kalajdzievski, "A Rank Stabilization Scaling Factor
    for Fine-Tuning with LoRA" (arXiv 2312.03732).

    Attributes:
        alpha: `None` is a scale of 1.
        by: `"rank"` divides alpha by the rank, `"sqrt"` by its square root.

    Example:

    >>> Scaling(8.0).of(4), Scaling(8.0, "sqrt").of(4), Scaling(None).of(4)
    (2.0, 4.0, 1.0)
    """

    alpha: float | None
    by: str = "rank"

    def of(self, rank: int) -> float:
        """`s_f` of a value of that rank."""
        if self.alpha is None:
            return 1.0
        return self.alpha / (math.sqrt(rank) if self.by == "sqrt" else rank)

    def __str__(self) -> str:
        if self.alpha is None:
            return "1"
        return f"{self.alpha:g} / {'sqrt(rank)' if self.by == 'sqrt' else 'rank'}"

    def arguments(self) -> str:
        """How it is written: without `scale`, where that is the default."""
        scale = f", scale={self.by!r}" if self.by != "rank" else ""
        return f"alpha={self.alpha}{scale}"


def check_alpha(alpha: Any) -> float | None:
    """The alpha as a float, or `None`; raises for what is no scale."""
    if alpha is None:
        return None
    if (
        isinstance(alpha, bool)
        or not isinstance(alpha, numbers.Real)
        or not (0 < float(alpha) < math.inf)
    ):
        raise ValueError(
            f"`alpha` must be a positive number or None. Received: alpha={alpha!r}. "
            "None means a scale of 1."
        )
    return float(alpha)


def check_scale(scale: Any) -> str:
    """The name of a scale; raises for any other."""
    if not isinstance(scale, str) or scale not in SCALES:
        raise ValueError(
            "`scale` must be 'rank' (alpha / rank) or 'sqrt' (alpha / sqrt(rank)). "
            f"Received: scale={scale!r}. Pass one of these."
        )
    return scale


def check_has_alpha(name: str, alpha: float | None, scale: str | None) -> None:
    """Raises for a feature whose scale would say nothing, for want of an alpha."""
    if scale == "sqrt" and alpha is None:
        raise ValueError(
            "scale='sqrt' must come with an alpha, which it divides by the square root "
            f"of the rank. Received: alpha=None for feature {name!r}. Pass alpha=, "
            "such as 16."
        )
