"""`paired_bootstrap`: whether one model is better than another, beyond chance."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_flix._utils.displayed import Displayed, Rows
from keras_flix._utils.near_names import nearest

CHUNK = 2**22
"""How many numbers are drawn at once."""


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison(Displayed):
    """How much better one model is than another: what `paired_bootstrap` returns.

    Attributes:
        difference: Mean of the first minus mean of the second.
        low: Where the interval of the difference begins.
        high: Where it ends.
    """

    difference: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.difference:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"

    def _line(self) -> str:
        return f"Comparison({self})"

    def _tables(self) -> Iterable[tuple[str, Rows]]:
        numbers = dataclasses.asdict(self)
        return [("", [list(numbers), [f"{x:+.1f}" for x in numbers.values()]])]


def paired_bootstrap(
    first: Mapping[Any, float | Sequence[float]],
    second: Mapping[Any, float | Sequence[float]],
    samples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compares the scores of two models in the same cells.

    Cells are drawn with replacement, as many as there are, and the mean difference
    is taken over those: the interval tells what other cells of the same kind might
    have shown. Chance in training is no part of it: several seeds are averaged before
    cells are drawn, which makes that chance smaller but does not show it.

    Args:
        first: By cell (such as a pair of task and language), the score of one
            model, or its scores with several seeds, whose mean is taken.
        second: The scores of the other model, with the same cells.
        samples: How often to draw.
        confidence: The share of the drawn differences that the interval holds,
            between the percentiles on both sides.
        seed: The same seed gives the same interval.

    Returns:
        A `Comparison`.

    Raises:
        ValueError: If the cells differ or there are none, a score is no finite
            number, or an option is out of range.

    Example:

    >>> flix = {("qa", "sw"): 60.0, ("qa", "yo"): 50.0, ("parse", "sw"): 70.0}
    >>> lora = {("qa", "sw"): [50.0, 58.0], ("qa", "yo"): 49.0, ("parse", "sw"): 61.0}
    >>> print(paired_bootstrap(flix, lora))
    +5.3 [+1.0, +9.0]
    """
    if set(first) != set(second) or not first:
        raise ValueError(
            "Two models must be compared in the same cells, at least one. Received: "
            f"{len(first)} cells and {len(second)} cells{_odd_one(first, second)}. "
            "Evaluate both on the same datasets."
        )
    if samples < 1 or not 0 < confidence < 1:
        raise ValueError(
            "`samples` must be at least 1, and `confidence` between 0 and 1. "
            f"Received: samples={samples!r}, confidence={confidence!r}. Leave them "
            "at 10_000 and 0.95."
        )
    differences = np.asarray([_mean(first, k) - _mean(second, k) for k in first])
    generator = np.random.default_rng(seed)
    count = len(differences)
    rounds = max(1, CHUNK // count)
    means = np.concatenate(
        [
            differences[generator.integers(count, size=(size, count))].mean(axis=1)
            for size in [rounds] * (samples // rounds) + [samples % rounds]
        ]
    )
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Comparison(float(differences.mean()), float(low), float(high))


def _mean(scores: Mapping[Any, Any], cell: Any) -> float:
    try:
        values = np.asarray(scores[cell], "float64")
    except (TypeError, ValueError):
        values = np.empty(0)
    if not values.size or not np.isfinite(values).all():
        raise ValueError(
            "The score of a cell must be a finite number, or a list of those with "
            f"several seeds. Received: {scores[cell]!r} for {cell!r}. Choose one "
            "metric, and leave cells without a score out of both models."
        )
    return float(values.mean())


def _odd_one(first: Mapping[Any, Any], second: Mapping[Any, Any]) -> str:
    for here, there, name in ((first, second, "first"), (second, first, "second")):
        for key in here:
            if key not in there:
                near = nearest(key, there)
                hint = "" if near is None else f"; the other's nearest is {near!r}"
                return f", where {key!r} is only in the {name}{hint}"
    return ""
