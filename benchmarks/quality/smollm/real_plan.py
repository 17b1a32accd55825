"""The trials on the real base, in order of importance."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.quality.evidence_arms import Arm
from benchmarks.quality.smollm.real_trial import Trial

SIZE = "smollm_cpu"
"""Folder of the results."""

ATTENTION, ALL = None, "all-linear"
TARGETS = {"attention": ATTENTION, "all_linear": ALL}
RATES = (2e-3, 4e-3, 1e-3)
"""The middle rate, and its neighbours; the search goes on by factors of two."""

Load = Callable[[Trial], dict[str, Any] | None]


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
"""The arms that come first, tuned over rate and targets, then run with more seeds."""

OTHERS = (
    Arm("flix", {"task": 6, "language": 6}),
    Arm("task_shared", {"task": 6, "shared": 6}),
    lora(4),
    lora(48),
    Arm("task_only", {"task": 12}),
    Arm("flix_family", {"task": 4, "language": 4, "shared": 4, "family": 4}),
    Arm("flix_ranks_2_2_8", {"task": 2, "language": 2, "shared": 8}),
    Arm(
        "flix_dropout",
        {"task": 4, "language": 4, "shared": 4},
        dropout={"task": 0.3, "language": 0.3},
    ),
    rslora(48),
    lora(24),
    Arm("shuffled", {"task": 4, "language": 4, "shared": 4}, labels="shuffled"),
)
"""All of active rank 12 where the name states none other, but for `flix_family`."""


def aimed(arm: Arm) -> list[Arm]:
    """The arm for each of the targets."""
    return [
        dataclasses.replace(arm, name=f"{arm.name}@{name}", targets=targets)
        for name, targets in TARGETS.items()
    ]


UNTRAINED = Trial(Arm("untrained", {"shared": 1}), 0.0, steps=0)


def in_order(load: Load, seeds: int = 3) -> Iterator[Trial]:
    """The trials as far as they are known, those with results among them.

    Args:
        load: The result of a trial, or `None`. Which trials come later depends on
            what was found, so that each is run before the next is asked for.
        seeds: Of the main arms, at their best rates and targets.
    """
    # First one rate of every main arm and target, then its neighbours.
    for rate in RATES:
        for arm in MAIN:
            yield from (Trial(one, rate) for one in aimed(arm))
    yield UNTRAINED
    for arm in MAIN:
        for one in aimed(arm):
            yield from search(one, load)
    for seed in range(1, seeds):
        for arm in MAIN:
            if best := best_of(aimed(arm), load):
                yield dataclasses.replace(best, seed=seed)
    for arm in OTHERS:
        for one in aimed(arm):
            yield from search(one, load)


def search(arm: Arm, load: Load) -> Iterator[Trial]:
    """Trials until the best rate has been compared with both its neighbours."""
    rates = list(RATES)
    while True:
        yield from (Trial(arm, rate) for rate in rates)
        results = ranked([Trial(arm, rate) for rate in rates], load)
        if len(results) < len(rates):
            return
        best = results[0].learning_rate
        missing = [rate for rate in (best / 2, best * 2) if rate not in rates]
        if not missing:
            return
        rates += missing


def best_of(arms: Sequence[Arm], load: Load) -> Trial | None:
    """The trial of seed 0 with the fewest nats in seen validation cells, if any."""
    results = ranked([trial for arm in arms for trial in search(arm, load)], load)
    return results[0] if results else None


def ranked(trials: Sequence[Trial], load: Load) -> list[Trial]:
    """Those that have a result, the fewest nats in seen validation cells first."""
    found = [(load(trial), trial) for trial in trials]
    done = [(result["validation"], trial) for result, trial in found if result]
    return [trial for _, trial in sorted(done, key=lambda pair: pair[0])]
