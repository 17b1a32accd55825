"""Interleaved timings: every arm takes a step per round, in one process."""

from __future__ import annotations

import functools
import gc
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.cost.arm import Arm

METHOD = (
    "One training step (forward, backward, optimizer) of every arm per round, all in "
    "one process, every other round in reverse order, after warm-up. Seconds are "
    "medians; a ratio is the median of the rounds' ratios, with their quartiles. "
    "`cpu` is the same from the process' CPU time, which a busy machine distorts "
    "less; `cpu_without_optimizer` (PyTorch, which runs eagerly) leaves the "
    "optimizer out."
)
CLOCKS = ("wall", "cpu", "cpu_without_optimizer")

Ratios = Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
"""By name: the arms whose times are multiplied, and those they are divided by."""


def time_arms(
    arms: Mapping[str, Arm], rounds: int, warm_up: int, steps: int = 1
) -> dict[str, list]:
    """Seconds of each arm's steps by each clock, round by round."""
    for arm in arms.values():
        for _ in range(warm_up):
            arm.checked_step(steps)
    calls = {n: functools.partial(a.timed_step, steps) for n, a in arms.items()}
    return interleaved(calls, rounds)


def interleaved(
    timed: Mapping[str, Callable[[], tuple[float, ...]]], rounds: int
) -> dict[str, list]:
    """What each call returns, round by round, every other round in reverse order."""
    # The models stay: without this, every collection walks through them.
    gc.collect()
    gc.freeze()
    seconds: dict[str, list] = {name: [] for name in timed}
    for index in range(rounds):
        names = list(timed) if index % 2 == 0 else list(timed)[::-1]
        for name in names:
            gc.collect()
            seconds[name].append(timed[name]())
    gc.unfreeze()
    return seconds


def summary(seconds: Mapping[str, list], ratios: Ratios, clock: str) -> dict[str, Any]:
    """Medians per arm and paired ratios, by one of `CLOCKS`."""
    index = CLOCKS.index(clock)
    times = {name: [step[index] for step in steps] for name, steps in seconds.items()}
    return {
        "seconds": {n: round(statistics.median(t), 4) for n, t in times.items()},
        "ratios": {
            name: quartiles(paired(times, above, below))
            for name, (above, below) in ratios.items()
            if {*above, *below} <= set(times)
        },
    }


def paired(
    times: Mapping[str, list], above: tuple[str, ...], below: tuple[str, ...]
) -> list[float]:
    """The ratio of every round."""
    values = [1.0] * len(times[above[0]])
    for name in above:
        values = [value * time for value, time in zip(values, times[name])]
    for name in below:
        values = [value / time for value, time in zip(values, times[name])]
    return values


def quartiles(values: list[float]) -> dict[str, Any]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": round(median, 4), "quartiles": [round(low, 4), round(high, 4)]}


def timings(
    arms: Mapping[str, Arm],
    ratios: Ratios,
    rounds: int,
    warm_up: int,
    eager: bool,
    steps: int = 1,
) -> dict[str, Any]:
    """All timings, as they go to a result file."""
    seconds = time_arms(arms, rounds, warm_up, steps)
    clocks = CLOCKS if eager else CLOCKS[:2]
    return {
        "method": METHOD,
        "rounds": rounds,
        "warm_up": warm_up,
        "steps_at_once": steps,
        **{clock: summary(seconds, ratios, clock) for clock in clocks},
        "samples": {
            name: [[round(t, 4) for t in step[: len(clocks)]] for step in steps]
            for name, steps in seconds.items()
        },
    }
