"""What tables and figures of the evidence are made of: results, means, intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from benchmarks.quality import cldr_mix, hierarchical, plan, store
from benchmarks.quality.evidence_arms import Arm
from benchmarks.quality.scoring import Cells

Keep = Callable[[str, str], bool]


def everything(task: str, language: str) -> bool:
    """All cells."""
    return True


def cells_of(
    results: Iterable[Mapping[str, Any]],
    kind: str,
    view: str = "true",
    metric: str = "scores",
    keep: Keep = everything,
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


def interval(cells: Mapping[str, list[float]]) -> tuple[float, float]:
    """Where the mean may lie, 95 %: other cells, and other seeds if there are several.

    What `hierarchical` draws for a difference, here from nothing.
    """
    seeds = range(min(map(len, cells.values())))
    ours = {seed: {name: s[seed] for name, s in cells.items()} for seed in seeds}
    none = {seed: dict.fromkeys(cells, 0.0) for seed in seeds}
    one = hierarchical.compare(ours, none, samples=500)
    return one.low, one.high


@dataclasses.dataclass(frozen=True)
class Group:
    """Results that are shown together.

    Attributes:
        results: Of one arm: one per seed, or one per model where each has its cells.
        view: The ids at test, one of `VIEW_TITLES`.
        metric: What is shown of them.
        keep: Which cells count.
    """

    results: list[dict[str, Any]]
    view: str = "true"
    metric: str = "scores"
    keep: Keep = everything

    def _cells(self) -> list[dict[str, list[float]]]:
        options: dict[str, Any] = {"metric": self.metric, "keep": self.keep}
        return [
            cells_of(self.results, kind, self.view, **options)
            for kind in cldr_mix.KINDS
        ]

    def means(self) -> list[float | None]:
        """The mean exact match in each kind of cell, `None` where there are none."""
        return [mean(cells) if cells else None for cells in self._cells()]

    def intervals(self) -> list[tuple[float, float] | None]:
        """The `interval` of each of `means`."""
        return [interval(cells) if cells else None for cells in self._cells()]


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


def common(smallest: cldr_mix.Data) -> Keep:
    """Only the cells of the smallest mixture."""
    return lambda task, language: (
        task in smallest.chosen_tasks and language in smallest.chosen_languages
    )


def growth_curves(size: plan.Size) -> dict[str, dict[tuple[str, int], Group]]:
    """By what grows, then by arm and length: the cells that are in all lengths."""
    entries = plan.variants(size)["growth"]
    entries += [(plan.arms_of(size)[name], {}) for name in ("flix_shared", "lora")]
    curves: dict[str, dict[tuple[str, int], Group]] = {}
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
                place = arm.name.split("@")[0], getattr(data, axis)
                curves[axis][place] = Group(results, keep=common(smallest))
    return curves


def mixture_rows(size: plan.Size) -> list[tuple[str, str, Group]]:
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
        together = results_of(size, plan.arms_of(size)[name])[:1]

        def keep(task: str, language: str, tasks: Any = frozenset(tasks)) -> bool:
            return task in tasks

        for title, results in (("a model per task", one), ("one model", together)):
            rows.append((name, title, Group(results, keep=keep)))
    return rows


def is_unknown(task: str, language: str) -> bool:
    """Whether pretraining showed nothing of a language."""
    return language in cldr_mix.UNKNOWN_LANGUAGES


def is_known(task: str, language: str) -> bool:
    """Whether pretraining showed a language."""
    return not is_unknown(task, language)


def unknown_rows(size: plan.Size) -> list[tuple[str, Group, Group]]:
    """By arm: languages that the base does not know, and the others."""
    rows = []
    for arm, options in plan.variants(size)["unknown"]:
        if results := results_of(size, arm, "unknown", **options):
            own, others = (Group(results, keep=k) for k in (is_unknown, is_known))
            rows.append((arm.name.split("@")[0], own, others))
    return rows
