"""Tables of the trials on the real base, from the stored results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

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
        "test_outside": found["scores"].get("outside"),
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


def main_results() -> list[tuple[Arm, Results]]:
    """The main arms in their best setting, the baseline first."""
    return [(arm, results_of(arm, best_of(arm))) for arm in plan.MAIN if tried_of(arm)]


def step_at(curve: list[dict[str, float]], nats: float) -> float | None:
    """When a curve first is as low as that, between its points on a line."""
    last: dict[str, float] | None = None
    for point in curve:
        if point["nats"] <= nats:
            if last is None:
                return point["step"]
            part = (last["nats"] - nats) / (last["nats"] - point["nats"])
            return last["step"] + part * (point["step"] - last["step"])
        last = point
    return None


def compute() -> str:
    """Steps and seconds until validation is as good as the baseline's at its end."""
    rows = []
    _, baseline = main_results()[0]
    for arm, results in main_results():
        common = sorted(results.keys() & baseline.keys())
        steps, seconds, paces = [], [], []
        for seed in common:
            found = results[seed]
            steps_of_all = Trial.from_config(found["trial"]).steps
            pace = found["processor_seconds"]["train"] / steps_of_all
            step = step_at(found["curve"], baseline[seed]["curve"][-1]["nats"])
            paces.append(pace)
            if step is not None:
                steps.append(step)
                seconds.append(step * pace)
        reached = f"{len(steps)} of {len(common)}"
        row = [f"`{arm.name}`", seeds_of({seed: results[seed] for seed in common})]
        row += [f"{np.mean(paces):.2f}", reached]
        row += [f"{np.mean(of):.0f}" if of else "" for of in (steps, seconds)]
        rows.append(row)
    head = ["arm", "seeds", "seconds of a step", "seeds that reach it"]
    return markdown([*head, "after steps", "after seconds"], rows)


def outside() -> str:
    """The base's own answers to prompts outside the mixture, after training."""
    rows = []
    untrained = load(plan.UNTRAINED)
    found: list[tuple[str, Results]] = (
        [("untrained", {0: untrained})] if untrained else []
    )
    found += [(arm.name, results_of(arm, best_of(arm))) for arm in with_results()]
    for name, results in found:
        scores = [
            one["test_outside"] for one in results.values() if one["test_outside"]
        ]
        if not scores:
            continue
        row = [f"`{name}`", f"{len(scores)}"]
        for cell in ("none", "de"):
            for metric, form in (("exact_match", ".0f"), ("nats", ".2f")):
                values = [one[f"outside/{cell}"][metric] for one in scores]
                row.append(f"{np.mean(values):{form}}")
        rows.append(row)
    head = ["arm", "seeds"]
    for values in ("no values", "as German"):
        head += [f"answers kept (%), {values}", f"nats, {values}"]
    return markdown(head, rows)


def sized(mixtures: Iterable[Mapping[str, int]], name: str) -> str:
    """The main arms on mixtures of other sizes, those that have results."""
    rows = []
    for mixture in ({}, *mixtures):
        baseline: Results = {}
        for arm in plan.MAIN:
            if not tried_of(arm):
                continue
            trial = plan.trial_of(arm, best_of(arm), **mixture)
            result = load(trial)
            if result is None:
                continue
            results = {0: result}
            apart = [""] * len(DIFFERENCES)
            if arm == BASELINE:
                baseline = results
            elif baseline:
                apart = differences(results, baseline)
            row = [f"{getattr(trial, name)}", f"`{arm.name}`"]
            rows.append([*row, *scored(results), *apart])
    if len({row[0] for row in rows}) < 2:
        rows = []
    return markdown([name, "arm", *HEAD, *titles(f"minus `{BASELINE.name}`")], rows)


TABLES = {
    "arms": arms,
    "searches": searches,
    "compute": compute,
    "outside": outside,
    "amounts": lambda: sized(plan.AMOUNTS, "examples"),
    "sizes": lambda: sized(plan.SIZES, "languages"),
}
