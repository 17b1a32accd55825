"""Tables of the evidence, from the stored results."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sized
from typing import Any

from benchmarks.quality import hierarchical, plan
from benchmarks.quality.evidence_rows import (
    Group,
    cells_of,
    growth_curves,
    mixture_rows,
    results_of,
    unknown_rows,
)
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


def shown(values: Iterable[float | None]) -> list[str]:
    """Numbers for a table."""
    return ["–" if value is None else f"{value:.1f}" for value in values]


def kinds(results: list[dict[str, Any]], **options: Any) -> list[str]:
    """The means of a `Group` for a table."""
    return shown(Group(results, **options).means())


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


def growth(size: plan.Size) -> str:
    """Scores of the cells that all lengths of the mixture share."""
    rows = []
    for axis, points in growth_curves(size).items():
        for (arm, count), group in sorted(points.items(), key=lambda point: point[0]):
            values = shown(group.means()[:3])
            rows.append([f"`{arm}`", f"{count} {axis}", *values])
    return markdown(["arm", "mixture", *list(KIND_TITLES.values())[:3]], rows)


def mixture(size: plan.Size) -> str:
    """`mixture_rows` as a table."""
    rows = [
        [f"`{arm}`", title, *shown(group.means())]
        for arm, title, group in mixture_rows(size)
    ]
    return markdown(["arm", "trained as", *KIND_TITLES.values()], rows)


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
            [
                f"`{name}`",
                seeds_of(groups[0].results),
                *(n for group in groups for n in shown(group.means()[:3])),
            ]
            for name, *groups in unknown_rows(size)
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
