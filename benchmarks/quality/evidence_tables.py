"""Tables of the evidence, from the stored results."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sized
from typing import Any

import numpy as np

from benchmarks.quality import cldr_mix, hierarchical, plan, store
from benchmarks.quality.evidence_arms import Arm
from benchmarks.quality.scoring import Cells
from keras_flix.evaluation.bootstrap import Comparison

KIND_TITLES = {
    "seen": "seen",
    "few_shot": "few-shot",
    "held_out": "held-out",
    "new_language": "new languages",
}
VIEW_TITLES = {
    "true": "as trained",
    "without_task": "task absent",
    "without_language": "language absent",
    "random": "random ids",
}
Keep = Callable[[str, str], bool]


def cells_of(
    results: Iterable[Mapping[str, Any]],
    kind: str,
    view: str = "true",
    metric: str = "scores",
    keep: Keep = lambda task, language: True,
) -> dict[str, list[float]]:
    """Scores of the cells of one kind, one per seed."""
    found: dict[str, list[float]] = {}
    for result in results:
        cells: Cells = result[metric]
        if metric == "scores":
            cells = result[metric][view]
        for name, score in cells.items():
            task, language = name.split("/")
            if cldr_mix.kind_of(task, language) == kind and keep(task, language):
                found.setdefault(name, []).append(score)
    return found


def mean(cells: Mapping[str, list[float]]) -> float:
    """The mean over cells of the mean over seeds, in percent."""
    return float(np.mean([np.mean(scores) for scores in cells.values()]))


def results_of(
    size: plan.Size, arm: Arm, table: str = "headline", **options: Any
) -> list[dict[str, Any]]:
    """The results of all seeds that were run with an arm's learning rate."""
    found = []
    rates, _ = plan.rates_for(size, table, arm)
    for seed in range(20):
        trials = [plan.trial_of(size, arm, rate, seed, **options) for rate in rates]
        results = [store.load(size.name, trial.key) for trial in trials]
        if tried := [result for result in results if result is not None]:
            found.append(max(tried, key=lambda result: result["validation"]))
    return found


def compare(
    ours: list[dict[str, Any]],
    theirs: list[dict[str, Any]],
    kind: str,
    seeds: Collection[int] | None = None,
) -> Comparison:
    """Compares two arms in cells of one kind.

    Args:
        ours, theirs: Results, one per seed.
        kind: Of the cells.
        seeds: Those to compare; all that both have if `None`.
    """

    def by_seed(results: list[dict[str, Any]]) -> dict[int, dict[str, float]]:
        found = {result["trial"].get("seed", 0): result for result in results}
        return {
            seed: {name: one[0] for name, one in cells_of([result], kind).items()}
            for seed, result in found.items()
            if seeds is None or seed in seeds
        }

    return hierarchical.compare(by_seed(ours), by_seed(theirs))


TARGETS = {None: "attention", "all-linear": "all linear"}


def seeds_of(results: Sized) -> str:
    """How many seeds; one is a lead only."""
    return f"{len(results)}" if len(results) > 1 else "1 (a lead)"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def means(results: list[dict[str, Any]], **options: Any) -> list[float | None]:
    """The mean exact match in each kind of cell, `None` where there are none."""
    found = [cells_of(results, kind, **options) for kind in cldr_mix.KINDS]
    return [mean(cells) if cells else None for cells in found]


def shown(values: Iterable[float | None]) -> list[str]:
    """Numbers for a table."""
    return ["–" if value is None else f"{value:.1f}" for value in values]


def kinds(results: list[dict[str, Any]], **options: Any) -> list[str]:
    """`means` for a table."""
    return shown(means(results, **options))


def best_lora(size: plan.Size) -> str:
    """The single LoRA, of any rank and targets, that is best in validation."""
    found = {
        name: results[0]["validation"]
        for name, arm in plan.arms_of(size).items()
        if arm.ranks.keys() == {"shared"} and arm.outside is None
        if (results := results_of(size, arm))
    }
    return max(found, key=lambda name: found[name])


def headline(size: plan.Size) -> str:
    """All arms, with their differences from the best LoRA."""
    arms = plan.arms_of(size)
    rival = best_lora(size)
    theirs = results_of(size, arms[rival])
    rows = []
    for name, arm in arms.items():
        results = results_of(size, arm)
        apart = ["", ""]
        if name != rival:
            apart[0] = str(compare(results, theirs, "held_out", {0}))
            if min(len(results), len(theirs)) > 1:
                apart[1] = str(compare(results, theirs, "held_out"))
        rows.append(
            [
                f"`{name}`",
                TARGETS[arm.targets],
                f"{arm.active_rank}",
                f"{results[0]['trainable_parameters']:,}",
                f"{results[0]['trial']['learning_rate']:g}",
                seeds_of(results),
                *kinds(results),
                *apart,
            ]
        )
    head = ["arm", "targets", "active rank", "trained parameters", "rate", "seeds"]
    head += [*KIND_TITLES.values()]
    head += [f"held-out, minus `{rival}`, first seed (95 %)"]
    head += [f"held-out, minus `{rival}`, all common seeds (95 %)"]
    if not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    return markdown(head, rows)


def listed(size: plan.Size, table: str) -> str:
    """The variants of a table, next to the headline arms that they vary."""
    entries = plan.variants(size)[table]
    rows = []
    for name in sorted({arm.name.split("@")[0] for arm, _ in entries}):
        results = results_of(size, plan.arms_of(size)[name])
        rows.append([f"`{name}`", "", *kinds(results[:1])])
    for arm, options in entries:
        name, variant = arm.name.split("@")
        results = results_of(size, arm, **options)
        rows.append([f"`{name}`", variant.replace("_", " "), *kinds(results)])
    return markdown(["arm", "variant", *KIND_TITLES.values()], rows)


def axes(size: plan.Size) -> str:
    """What is left of a trained model without one of its features."""
    rows = []
    for arm, options in plan.variants(size)["axes"]:
        results = results_of(size, arm, **options)
        for view in results[0]["scores"] if results else ():
            cells = kinds(results, view=view)
            rows.append([f"`{arm.name.split('@')[0]}`", VIEW_TITLES[view], *cells])
    return markdown(["arm", "ids at test", *KIND_TITLES.values()], rows)


def chrf(size: plan.Size) -> str:
    """chrF of generated answers."""
    rows = []
    for arm, options in plan.variants(size)["chrf"]:
        results = results_of(size, arm, **options)
        if results:
            for metric, title in (("chrf", "chrF"), ("generated", "exact match")):
                cells = kinds(results, metric=metric)
                rows.append([f"`{arm.name.split('@')[0]}`", title, *cells])
    return markdown(["arm", "metric", *KIND_TITLES.values()], rows)


def common(smallest: cldr_mix.Data) -> Keep:
    """Only the cells of the smallest mixture."""
    return lambda task, language: (
        task in smallest.chosen_tasks and language in smallest.chosen_languages
    )


def growth(size: plan.Size) -> str:
    """Scores of the cells that all lengths of the mixture share."""
    rows = []
    for axis, points in growth_curves(size).items():
        for (arm, count), values in sorted(points.items()):
            rows.append([f"`{arm}`", f"{count} {axis}", *shown(values)])
    return markdown(["arm", "mixture", *list(KIND_TITLES.values())[:3]], rows)


def growth_curves(
    size: plan.Size,
) -> dict[str, dict[tuple[str, int], list[float | None]]]:
    """By what grows, then by arm and length: scores of the cells in all lengths."""
    entries = plan.variants(size)["growth"]
    entries += [(plan.arms_of(size)[name], {}) for name in ("flix_shared", "lora")]
    curves: dict[str, dict[tuple[str, int], list[float | None]]] = {}
    for axis, other in (("tasks", "languages"), ("languages", "tasks")):
        chosen = [
            (arm, options, options.get("data", size.data)) for arm, options in entries
        ]
        chosen = [
            c for c in chosen if getattr(c[2], other) == getattr(size.data, other)
        ]
        smallest = min((data for _, _, data in chosen), key=lambda d: getattr(d, axis))
        curves[axis] = {}
        for arm, options, data in chosen:
            results = results_of(size, arm, "growth", **options)[:1]
            if results:
                values = means(results, keep=common(smallest))[:3]
                curves[axis][arm.name.split("@")[0], getattr(data, axis)] = values
    return curves


def mixture_rows(size: plan.Size) -> list[tuple[str, str, list[float | None]]]:
    """One model per task against one model for all tasks, on the same cells."""
    rows = []
    for name in ("flix_shared", "lora"):
        alone = [
            (arm, options)
            for arm, options in plan.variants(size)["mixture"]
            if arm.name.startswith(f"{name}@")
        ]
        tasks = {t for _, options in alone for t in options["data"].chosen_tasks}
        one = [
            result
            for arm, options in alone
            for result in results_of(size, arm, "mixture", **options)
        ]
        everything = results_of(size, plan.arms_of(size)[name])[:1]

        def keep(task: str, language: str, tasks: Any = frozenset(tasks)) -> bool:
            return task in tasks

        for title, results in (("a model per task", one), ("one model", everything)):
            rows.append((name, title, means(results, keep=keep)))
    return rows


def mixture(size: plan.Size) -> str:
    """`mixture_rows` as a table."""
    rows = [[f"`{arm}`", title, *shown(m)] for arm, title, m in mixture_rows(size)]
    return markdown(["arm", "trained as", *KIND_TITLES.values()], rows)


def is_unknown(task: str, language: str) -> bool:
    """Whether pretraining showed nothing of a language."""
    return language in cldr_mix.UNKNOWN_LANGUAGES


def unknown_rows(
    size: plan.Size,
) -> list[tuple[str, list[dict[str, Any]], list[float | None], list[float | None]]]:
    """By arm: results, scores in languages the base does not know, and in others."""
    rows = []
    for arm, options in plan.variants(size)["unknown"]:
        if results := results_of(size, arm, "unknown", **options):
            own = means(results, keep=is_unknown)[:3]
            others = means(results, keep=lambda t, n: not is_unknown(t, n))[:3]
            rows.append((arm.name.split("@")[0], results, own, others))
    return rows


def unknown(size: plan.Size) -> str:
    """`unknown_rows` as a table."""
    titles = list(KIND_TITLES.values())[:3]
    head = [
        "arm",
        "seeds",
        *(f"{which}, {title}" for which in ("unknown", "known") for title in titles),
    ]
    return markdown(
        head,
        [
            [f"`{name}`", seeds_of(results), *shown(own), *shown(others)]
            for name, results, own, others in unknown_rows(size)
        ],
    )


SPECIAL = {
    "unknown": unknown,
    "headline": headline,
    "axes": axes,
    "chrf": chrf,
    "growth": growth,
    "mixture": mixture,
}


def table(size: plan.Size, name: str) -> str:
    """One table in Markdown."""
    return SPECIAL[name](size) if name in SPECIAL else listed(size, name)
