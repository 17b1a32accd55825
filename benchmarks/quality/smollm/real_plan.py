"""The trials on the real base, in order of importance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.quality import arm_search
from benchmarks.quality.arm_search import Setting
from benchmarks.quality.evidence_arms import Arm
from benchmarks.quality.smollm.real_settings import Trial

SIZE = "smollm_cpu"
"""Folder of the results."""

FIRST_RATE = 2e-3

Load = Callable[[Trial], "dict[str, Any] | None"]


def lora(rank: int) -> Arm:
    """One always-on feature."""
    return Arm(f"lora_{rank}", {"shared": rank})


def rslora(rank: int) -> Arm:
    """A LoRA whose scale falls with the root of its rank, and is 1 at rank 12."""
    return Arm(f"rslora_{rank}", {"shared": rank}, alpha={"shared": (12 * rank) ** 0.5})


MAIN = (
    lora(12),
    Arm("flix_shared", {"task": 4, "language": 4, "shared": 4}),
)
"""The arms that are searched first, and then run with more seeds."""

OTHERS = (
    Arm("task_shared", {"task": 6, "shared": 6}),
    Arm("flix", {"task": 6, "language": 6}),
    Arm("task_only", {"task": 12}),
    Arm("flix_family", {"task": 4, "language": 4, "shared": 4, "family": 4}),
    Arm("flix_ranks_2_2_8", {"task": 2, "language": 2, "shared": 8}),
    Arm(
        "flix_dropout",
        {"task": 4, "language": 4, "shared": 4},
        dropout={"task": 0.3, "language": 0.3},
    ),
    rslora(48),
    Arm("shuffled", {"task": 4, "language": 4, "shared": 4}, labels="shuffled"),
)
"""All of active rank 12 where the name states none other, but for `flix_family`."""

UNTRAINED = Trial(Arm("untrained", {"shared": 1}), 0.0, steps=0)


AMOUNTS = ({"examples": 20}, {"examples": 5})
"""What falls: the examples of a seen cell."""

SIZES = ({"languages": 12}, {"languages": 4})
"""What grows: the languages of the mixture, as in the paper's Figure 2."""


def trial_of(arm: Arm, setting: Setting, seed: int = 0, **mixture: int) -> Trial:
    """A trial of an arm with one of the settings of its search.

    Args:
        arm: The arm.
        setting: Its targets, rate and ranks.
        seed: See `Trial`.
        **mixture: Another size of the mixture, see `Trial`.
    """
    targets = "all_linear" if setting.targets else "attention"
    times = "" if setting.times == 1 else f"_x{setting.times}"
    changed = dataclasses.replace(
        arm,
        name=f"{arm.name}@{targets}{times}",
        ranks={name: rank * setting.times for name, rank in arm.ranks.items()},
        targets=setting.targets,
    )
    return Trial(changed, setting.rate, seed=seed, **mixture)


def score_of(arm: Arm, load: Load) -> arm_search.Score:
    """The nats per answer of an arm's settings in seen validation cells."""

    def score(setting: Setting) -> float | None:
        result = load(trial_of(arm, setting))
        return None if result is None else result["validation"]

    return score


def best_of(arm: Arm, load: Load) -> Setting | None:
    """The best setting of an arm, `None` until its search is over."""
    score = score_of(arm, load)
    tried = arm_search.search(FIRST_RATE, score)
    if not arm_search.is_over(tried, score):
        return None
    return arm_search.best_of(tried, score)


def in_order(load: Load, seeds: int = 3) -> Iterator[Trial]:
    """The trials as far as they are known, those with results among them.

    Args:
        load: The result of a trial, or `None`. Which trials come later depends on
            what was found, so that each is run before the next is asked for.
        seeds: Of the main arms, at their best settings.
    """
    yield from searches(MAIN, load)
    yield UNTRAINED
    for seed in range(1, seeds):
        for arm in MAIN:
            if best := best_of(arm, load):
                yield trial_of(arm, best, seed)
    for mixture in (*AMOUNTS, *SIZES):
        for arm in MAIN:
            if best := best_of(arm, load):
                yield trial_of(arm, best, **mixture)
    for arm in OTHERS:
        yield from searches([arm], load)


def searches(arms: Any, load: Load) -> Iterator[Trial]:
    """Trials of the arms in turns, so that all have as many when a run is stopped."""
    for count in range(arm_search.BUDGET):
        for arm in arms:
            tried = arm_search.search(FIRST_RATE, score_of(arm, load))
            if count < len(tried):
                yield trial_of(arm, tried[count])
