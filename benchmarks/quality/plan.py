"""Which trials each table is made of."""

from __future__ import annotations

import dataclasses
from typing import Any

from benchmarks.quality import store
from benchmarks.quality.cldr_mix import TASKS, Data
from benchmarks.quality.evidence_arms import Arm
from benchmarks.quality.trial import Trial


@dataclasses.dataclass(frozen=True)
class Size:
    """How large everything is.

    Attributes:
        rank: Rank of each feature of the FLix arms.
        steps, batch_size: Of training.
        data: The mixture.
        arms: Those of the headline; all if `None`.
        first_rates: Where the search for an arm's learning rate begins.
        base: Folder of the base, next to this file.
    """

    name: str
    rank: int
    steps: int
    batch_size: int
    data: Data
    first_rates: tuple[float, float]
    base: str = "base"
    arms: tuple[str, ...] | None = None


SIZES = {
    size.name: size
    for size in (
        Size("cpu", 2, 300, 32, Data(), (6e-3, 1.2e-2)),
        # Three times as long, for the arms that matter: who is still learning?
        Size(
            "cpu_long",
            2,
            900,
            32,
            Data(),
            (6e-3, 1.2e-2),
            arms=("flix_shared", "lora", "lora_24"),
        ),
        # For the tests: that every step of the way works, not what comes out.
        Size(
            "smoke",
            1,
            3,
            8,
            Data(tasks=2, languages=4, train_per_cell=4, test_per_cell=1),
            (6e-3, 1.2e-2),
        ),
        Size(
            "gpu",
            8,
            3000,
            128,
            Data(train_per_cell=60, test_per_cell=30, validation_per_cell=10),
            (1e-3, 2e-3),
            base="base_gpu",
        ),
    )
}


def arms_of(size: Size) -> dict[str, Arm]:
    """The arms of the headline by name, of equal active rank where not said."""
    r = size.rank
    flix = {"task": r, "language": r, "shared": r}
    tables = r * (size.data.tasks + size.data.languages + 1)
    arms = [
        Arm("flix", {"task": r, "language": 2 * r}),
        Arm("flix_shared", flix),
        Arm("flix_family", {**flix, "family": r}),
        Arm("task_only", {"task": 3 * r}),
        Arm("language_only", {"language": 3 * r}),
        Arm("lora", {"shared": 3 * r}),
        # As many parameters as a rank of at most 64 allows: the smaller side of
        # the base's narrowest kernel.
        Arm("lora_params", {"shared": min(tables, 64)}),
        *(Arm(f"lora_{rank}", {"shared": rank}) for rank in (2, 12, 24)),
        # LoRA is tuned over what it adapts, too.
        Arm(f"lora_{3 * r}_attention", {"shared": 3 * r}, targets=None),
        Arm("lora_per_cell", {"cell": 3 * r}),
        Arm("arithmetic", {"task": r, "language": 2 * r}, apart=True),
        Arm("shuffled", flix, labels="shuffled"),
        Arm("peft_lora", {"shared": 3 * r}, outside="lora"),
        Arm("peft_poly", {"task": 3 * r}, outside="poly"),
    ]
    return {a.name: a for a in arms if size.arms is None or a.name in size.arms}


HEADLINE = ("flix_shared", "lora", "lora_24")
"""The arms that get several seeds, besides the LoRA of the attention layers."""


def trial_of(size: Size, arm: Arm, rate: float, seed: int = 0, **options: Any) -> Trial:
    """A trial of a size."""
    usual = {"data": size.data, "steps": size.steps, "batch_size": size.batch_size}
    options = {**usual, **options}
    return Trial(arm, rate, seed=seed, base=size.base, **options)


def tuned_rate(size: Size, arm: Arm) -> tuple[float | None, list[Trial]]:
    """The learning rate that is best on validation examples of seen cells.

    The search goes on by factors of two until the best rate has been compared
    with both its neighbours.

    Returns:
        The rate, or `None` and the trials that are needed to find it.
    """
    # Fewer tables want a higher rate.
    rates = {rate * (2 if arm.targets is None else 1) for rate in size.first_rates}
    while True:
        trials = {rate: trial_of(size, arm, rate) for rate in sorted(rates)}
        results = {rate: store.known(size.name, t.key) for rate, t in trials.items()}
        missing = [trials[rate] for rate, result in results.items() if result is None]
        if missing:
            return None, missing
        best = max(results, key=lambda rate: results[rate]["validation"])
        if size.name == "smoke":
            return best, []
        around = {best / 2, best * 2} - rates
        if not around:
            return best, []
        rates |= around


RETUNED = {"growth": (1, 4), "mixture": (1, 4), "unknown": (1, 2)}
"""Tables whose LoRAs train with their headline rate and a part of it besides.

A rate that suits one mixture may be too high for another; FLix keeps its own.
"""

SEEDED = {"unknown": ("flix_shared", "task_only", "lora_24")}
"""Arms of tables after the first that get several seeds."""


def rates_for(size: Size, table: str, arm: Arm) -> tuple[list[float], list[Trial]]:
    """The rates that a variant is trained with, of which the best counts.

    Returns:
        The rates, of the headline arm that an arm is a variant of; or none, and the
        trials that are needed to know them.
    """
    name = arm.name.split("@")[0]
    rate, search = tuned_rate(size, arms_of(size)[name])
    if rate is None:
        return [], search
    parts = RETUNED.get(table, (1,)) if name.startswith("lora") else (1,)
    return [rate / part for part in parts], []


def variants(size: Size) -> dict[str, list[tuple[Arm, dict[str, Any]]]]:
    """By table, the arms and options of trials; names are `headline arm@variant`.

    A variant trains with the learning rate of its headline arm.
    """
    arms = arms_of(size)
    flix, lora = arms["flix_shared"], arms["lora"]
    r = size.rank

    def named(arm: Arm, variant: str, **changes: Any) -> Arm:
        return dataclasses.replace(arm, name=f"{arm.name}@{variant}", **changes)

    growth = []
    for data in (
        *(dataclasses.replace(size.data, tasks=n) for n in (1, 2, 4)),
        *(dataclasses.replace(size.data, languages=n) for n in (4, 12)),
    ):
        variant = f"{data.tasks}x{data.languages}"
        growth += [(named(arm, variant), {"data": data}) for arm in (flix, lora)]
    # The first task alone is the beginning of `growth`, so that trial serves both.
    alone = [entry for entry in growth if entry[1]["data"].tasks == 1]
    alone += [
        (
            named(arm, f"only_{task}"),
            {"data": dataclasses.replace(size.data, only=task)},
        )
        for task in TASKS[1:4]
        for arm in (flix, lora)
    ]
    dropout = [
        (
            named(
                flix,
                f"dropout_{rate}{'_rescaled' * rescale}{'_batch' * per_batch}",
                dropout={"task": rate, "language": rate},
                rescale=rescale,
                per_batch=per_batch,
            ),
            {},
        )
        for rescale, per_batch, rates in (
            (False, False, (0.2, 0.5, 0.9)),
            (True, False, (0.5,)),
            (False, True, (0.5,)),
        )
        for rate in rates
    ]
    splits = [
        (
            named(
                flix,
                f"ranks_{t}_{n}_{s}",
                ranks={
                    axis: rank
                    for axis, rank in (("task", t), ("language", n), ("shared", s))
                    if rank
                },
            ),
            {},
        )
        for t, n, s in (
            (2 * r, r // 2, r // 2),
            (r // 2, 2 * r, r // 2),
            (r // 2, r // 2, 2 * r),
        )
    ]
    targets = [(named(arm, "attention", targets=None), {}) for arm in (flix, lora)]
    scale = [
        (named(flix, variant, **changes), {})
        for variant, changes in (
            ("initial_third", {"initial": 1 / 3}),
            ("initial_triple", {"initial": 3.0}),
        )
    ]
    cost = [
        (named(arm, f"steps_{steps}"), {"steps": steps})
        for steps in (size.steps // 4, size.steps // 2)
        for arm in (flix, lora)
    ]
    unknown = [
        (
            named(arms[name], "unknown"),
            {"data": dataclasses.replace(size.data, unknown=8)},
        )
        for name in (
            "flix",
            "flix_shared",
            "flix_family",
            "task_only",
            "lora",
            "lora_24",
        )
        if name in arms
    ]
    axes = [
        (named(arms[name], "axes"), {"ablate": True})
        for name in ("flix", "flix_shared")
        if name in arms
    ]
    chrf = [(named(arm, "chrf"), {"generate": True}) for arm in (flix, lora)]
    return {
        "mixture": alone,
        "unknown": unknown,
        "growth": growth,
        "dropout": dropout,
        "ranks": splits,
        "targets": targets,
        "scale": scale,
        "cost": cost,
        "axes": axes,
        "chrf": chrf,
    }


def trials_of(size: Size, table: str, seeds: int) -> list[Trial]:
    """The trials of a table, as far as they are known by now.

    Learning rates come first: until they are found, only their trials are asked for.
    """
    needed: list[Trial] = []
    if table == "headline":
        for name, arm in arms_of(size).items():
            rate, search = tuned_rate(size, arm)
            several = name in HEADLINE or arm.targets is None
            count = seeds if several else 1
            if rate is not None:
                search = [trial_of(size, arm, rate, seed) for seed in range(count)]
            needed += search
        return needed
    for arm, options in variants(size)[table]:
        rates, search = rates_for(size, table, arm)
        needed += search
        seeded = arm.name.split("@")[0] in SEEDED.get(table, ())
        needed += [
            trial_of(size, arm, rate, seed, **options)
            for rate in rates
            for seed in range(seeds if seeded else 1)
        ]
    return needed


def missing_trials(size: Size, table: str, seeds: int) -> list[Trial]:
    """Those of `trials_of` that have no result yet, each once."""
    found = {trial.key: trial for trial in trials_of(size, table, seeds)}
    return [t for key, t in found.items() if store.load(size.name, key) is None]
