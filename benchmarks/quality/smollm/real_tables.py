"""Tables of the trials on the real base, from the stored results."""

from __future__ import annotations

from typing import Any

from benchmarks.quality import arm_search, recipe_tables, store
from benchmarks.quality.arm_search import BUDGET, Setting
from benchmarks.quality.evidence_arms import Arm
from benchmarks.quality.evidence_tables import (
    KIND_TITLES,
    markdown,
    seeds_of,
)
from benchmarks.quality.recipe_tables import (
    COLUMNS,
    DIFFERENCES,
    Results,
    columns,
    differences,
    mean,
    setting_columns,
    titles,
)
from benchmarks.quality.smollm import real_plan as plan
from benchmarks.quality.smollm.real_settings import Trial

BASELINE = plan.MAIN[0]


def load(trial: Trial) -> dict[str, Any] | None:
    """A stored result, in the form that other tables of scores have."""
    found = store.load(plan.SIZE, trial.key)
    if found is None:
        return None
    test = found["scores"]["test"]
    return {
        **found,
        "nats": {cell: one["nats"] for cell, one in test.items()},
        "scores": {"true": {cell: one["exact_match"] for cell, one in test.items()}},
        "kinds": found["groups"],
    }


def tried_of(arm: Arm) -> list[Setting]:
    """The settings of an arm that have a result, in the order of its search."""
    score = plan.score_of(arm, load)
    tried = arm_search.search(plan.FIRST_RATE, score)
    return [setting for setting in tried if score(setting) is not None]


def best_of(arm: Arm) -> Setting:
    """The best setting of those that have a result."""
    return arm_search.best_of(tried_of(arm), plan.score_of(arm, load))


def results_of(arm: Arm, setting: Setting) -> Results:
    """The results of all seeds."""
    return recipe_tables.results_of(
        lambda seed: plan.trial_of(arm, setting, seed), load
    )


def with_results() -> list[Arm]:
    """The arms that have any, the baseline first."""
    return [arm for arm in (*plan.MAIN, *plan.OTHERS) if tried_of(arm)]


NEW = "new_language"
HEAD = [*COLUMNS[:3], KIND_TITLES[NEW], *COLUMNS[3:]]


def scored(results: Results) -> list[str]:
    """Exact match by kind of cell, and nats."""
    found = columns(results)
    return [*found[:3], f"{mean(results.values(), 'exact', NEW):.1f}", *found[3:]]


def arms() -> str:
    """The best setting of every arm so far, with differences from the best LoRA."""
    rows = []
    for arm in with_results():
        tried, setting = tried_of(arm), best_of(arm)
        results = results_of(arm, setting)
        apart = [""] * len(DIFFERENCES)
        if arm != BASELINE and tried_of(BASELINE):
            apart = differences(results, results_of(BASELINE, best_of(BASELINE)))
        rows.append(
            [
                f"`{arm.name}`",
                f"{len(tried)} of {BUDGET}",
                *setting_columns(arm.ranks, setting),
                f"{results[0]['trainable_parameters']:,}",
                seeds_of(results),
                *scored(results),
                *apart,
            ]
        )
    head = ["arm", "trials", "targets", "rate", "active rank", "trained parameters"]
    return markdown([*head, "seeds", *HEAD, *titles(f"minus `{BASELINE.name}`")], rows)


def searches() -> str:
    """Every setting that was tried."""
    rows = []
    for arm in with_results():
        best = best_of(arm)
        for setting in tried_of(arm):
            results = results_of(arm, setting)
            row = [f"`{arm.name}`", *setting_columns(arm.ranks, setting)]
            row += [f"{results[0]['validation']:.2f}", *scored({0: results[0]})]
            rows.append([*row, "best" if setting == best else ""])
    head = ["arm", "targets", "rate", "active rank", "validation nats, seen"]
    return markdown([*head, *HEAD, ""], rows)


TABLES = {"arms": arms, "searches": searches}
