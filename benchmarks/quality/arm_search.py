"""The search that every arm gets, with the same number of trials for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

BUDGET = 6
"""Trials for each arm."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is searched for.

    Attributes:
        rate: The learning rate.
        targets: As in `enable_flix`.
        times: What all ranks are multiplied with.
    """

    rate: float
    targets: str | None = "all-linear"
    times: int = 1


Score = Callable[[Setting], "float | None"]
"""What a setting has on validation examples, less being better; `None` if not run."""


def search(first_rate: float, score: Score) -> list[Setting]:
    """The settings that an arm is tried with, as far as scores tell by now.

    First the targets; then the rate, doubled, and on in the direction that is
    better; then the ranks, four times as high, at the best rate and at half of it.

    Returns:
        Settings in order, of which all but the last have a score: `BUDGET` when the
        search is over.
    """
    tried: list[Setting] = []

    def next_setting() -> Setting:
        best = best_of(tried, score) if tried else Setting(first_rate)
        match len(tried):
            case 0:
                return best
            case 1:
                return dataclasses.replace(tried[0], targets=None)
            case 2:
                return dataclasses.replace(best, rate=first_rate * 2)
            case 3:
                better = best.rate > first_rate
                rate = first_rate * 4 if better else first_rate / 2
                return dataclasses.replace(best, rate=rate)
            case 4:
                return dataclasses.replace(best, times=4)
        return dataclasses.replace(tried[4], rate=tried[4].rate / 2)

    while len(tried) < BUDGET:
        tried.append(next_setting())
        if score(tried[-1]) is None:
            break
    return tried


def best_of(tried: list[Setting], score: Score) -> Setting:
    """The setting with the lowest score; those without one come last."""

    def known(setting: Setting) -> float:
        found = score(setting)
        return float("inf") if found is None else found

    return min(tried, key=known)


def is_over(tried: list[Setting], score: Score) -> bool:
    """Whether all trials of a search have been run."""
    return len(tried) == BUDGET and score(tried[-1]) is not None
