"""Tables of the search for a recipe, from the stored results."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality import cldr_mix, hierarchical, recipes
from benchmarks.quality.arm_search import Setting
from benchmarks.quality.evidence_tables import KIND_TITLES, TARGETS, markdown, seeds_of
from benchmarks.quality.trial import Trial

Results = dict[int, dict[str, Any]]
"""By seed."""

KINDS = ("seen", "few_shot", "held_out")
BASELINE = "lora"
SEEDS = 20


def results_of(
    trial: Callable[[int], Any], known: Callable[[Any], Any] = recipes.known
) -> Results:
    """The stored results of all seeds of a trial; `known` looks them up."""
    found = {seed: known(trial(seed)) for seed in range(SEEDS)}
    return {seed: result for seed, result in found.items() if result is not None}


def cells(result: dict[str, Any], metric: str, kind: str) -> dict[str, float]:
    """The cells of one kind."""
    found = result["nats"] if metric == "nats" else result["scores"]["true"]
    kinds = result.get("kinds") or {
        name: cldr_mix.kind_of(*name.split("/")) for name in found
    }
    return {name: value for name, value in found.items() if kinds[name] == kind}


def mean(results: Iterable[dict[str, Any]], metric: str, kind: str) -> float:
    """The mean over seeds and cells."""
    values = [list(cells(result, metric, kind).values()) for result in results]
    return float(np.mean(values))


def columns(results: Results) -> list[str]:
    """Exact match in cells of each kind, and the nats of two."""
    found = results.values()
    return [
        *(f"{mean(found, 'exact', kind):.1f}" for kind in KINDS),
        *(f"{mean(found, 'nats', kind):.2f}" for kind in ("seen", "held_out")),
    ]


COLUMNS = [*(KIND_TITLES[kind] for kind in KINDS), "nats, seen", "nats, held-out"]


def by_seed(
    results: Results, metric: str, kind: str = "held_out"
) -> hierarchical.Scores:
    """Scores in cells of one kind."""
    return {seed: cells(result, metric, kind) for seed, result in results.items()}


def difference(ours: Results, theirs: Results, metric: str, kind: str) -> str:
    """Ours minus theirs, with an interval; empty without a common seed."""
    if not ours.keys() & theirs.keys():
        return ""
    one = hierarchical.compare(
        by_seed(ours, metric, kind), by_seed(theirs, metric, kind)
    )
    if metric == "exact":
        return str(one)
    return f"{one.difference:+.2f} [{one.low:+.2f}, {one.high:+.2f}]"


DIFFERENCES = (
    ("exact", "seen"),
    ("exact", "few_shot"),
    ("exact", "held_out"),
    ("nats", "held_out"),
)


def differences(ours: Results, theirs: Results) -> list[str]:
    """Ours minus theirs: exact match by kind of cell, and nats."""
    return [difference(ours, theirs, *entry) for entry in DIFFERENCES]


def titles(against: str) -> list[str]:
    """Of the columns of `differences`."""
    kinds = [KIND_TITLES[kind] for kind in KINDS]
    return [f"{what}, {against}" for what in (*kinds, "nats, held-out")]


def of_arm(name: str, setting: Setting) -> Results:
    """The results of an arm in one setting."""
    return results_of(lambda seed: recipes.trial_of(name, setting, seed))


def of_recipe(name: str, recipe: str, setting: Setting) -> Results:
    """The results of a recipe, or of the arm without one on the same data."""

    def trial(seed: int) -> Trial:
        if not recipe:
            return recipes.trial_of(name, setting, seed)
        return recipes.recipe_trial(name, recipe, setting, seed)

    return results_of(trial, lambda one: recipes.known(one, recipes.RECIPE_SIZE))


def setting_columns(ranks: Mapping[str, int], setting: Setting) -> list[str]:
    """Targets, learning rate, active rank, of an arm of these ranks by feature."""
    rank = sum(ranks.values()) * setting.times
    return [TARGETS[setting.targets], f"{setting.rate:g}", f"{rank}"]


def arms(by: str = recipes.SEEN) -> str:
    """All arms in their best setting, with differences from the best LoRA."""
    best = {name: recipes.tuned(name, by=by) for name in recipes.RANKS}
    chosen = {name: setting for name, setting in best.items() if setting is not None}
    if BASELINE not in chosen:
        return ""
    baseline = of_arm(BASELINE, chosen[BASELINE])
    rows = []
    for name, setting in chosen.items():
        results = of_arm(name, setting)
        apart = [""] * len(DIFFERENCES)
        if name != BASELINE:
            apart = differences(results, baseline)
        rows.append(
            [
                f"`{name}`",
                *setting_columns(recipes.RANKS[name], setting),
                f"{results[0]['trainable_parameters']:,}",
                seeds_of(results),
                *columns(results),
                *apart,
            ]
        )
    head = ["arm", "targets", "rate", "active rank", "trained parameters", "seeds"]
    return markdown([*head, *COLUMNS, *titles(f"minus `{BASELINE}`")], rows)


def arms_by_held_out() -> str:
    """The same trials, chosen by validation examples of held-out cells."""
    return arms(recipes.HELD_OUT)


def searches() -> str:
    """Every setting that was tried."""
    rows = []
    for name in recipes.RANKS:
        best = recipes.tuned(name)
        for setting in recipes.search(name):
            result = recipes.known(recipes.trial_of(name, setting))
            if result is not None:
                row = [f"`{name}`", *setting_columns(recipes.RANKS[name], setting)]
                row += [f"{result['validation_nats']:.3f}"]
                row += [f"{result['validation_held_out_nats']:.3f}"]
                row += [*columns({0: result})[:3], "best" if setting == best else ""]
                rows.append(row)
    head = ["arm", "targets", "rate", "active rank", "validation nats, seen"]
    head += ["validation nats, held-out", *COLUMNS[:3], ""]
    return markdown(head, rows)


def all_results() -> list[tuple[str, str, Results]]:
    """Arm, recipe and results of the recipes' folder: arms before their recipes."""
    best = {n: recipes.tuned(n) for n in recipes.RANKS if n in recipes.RECIPES}
    found = [
        (name, recipe, of_recipe(name, recipe, setting))
        for name, setting in best.items()
        if setting is not None
        for recipe in ("", *recipes.RECIPES[name])
    ]
    return [entry for entry in found if entry[2]]


def tried() -> str:
    """All recipes, with differences from the same arm and from the best LoRA.

    Both of the recipes' folder; empty where they were not run there.
    """
    rows: list[list[str]] = []
    found = all_results()
    plain = {name: results for name, recipe, results in found if not recipe}
    for name, recipe, results in found:
        row = [f"`{name}`", recipe, seeds_of(results), *columns(results)]
        row += differences(results, plain.get(name, {})) if recipe else [""] * 4
        same = name == BASELINE and not recipe
        rival = {} if same else plain.get(BASELINE, {})
        row += [difference(results, rival, "nats", "held_out")]
        rows.append(row)
    head = ["arm", "recipe", "seeds", *COLUMNS, *titles("minus without")]
    return markdown([*head, f"nats, held-out, minus `{BASELINE}`"], rows)


def base() -> str:
    """What the bases answer untrained."""
    record = json.loads(
        Path(cldr_mix.base_folder(recipes.BASE), "instructed.json").read_text()
    )
    rows = [
        [
            f"`{name}`",
            *(f"{found[kind]['exact_match']:.1f}" for kind in KINDS),
            *(f"{found[kind]['nats']:.2f}" for kind in ("seen", "held_out")),
        ]
        for name, found in record["untrained"].items()
    ]
    return markdown(["base", *COLUMNS], rows)


TABLES = {
    "base": base,
    "arms": arms,
    "arms_by_held_out": arms_by_held_out,
    "searches": searches,
    "recipes": tried,
}
