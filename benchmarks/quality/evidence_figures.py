"""Figures of the evidence, drawn from the stored results."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.quality import cldr_mix, evidence_tables, plan, training_flops
from benchmarks.quality.evidence_arms import Arm
from benchmarks.quality.evidence_rows import (
    Group,
    growth_curves,
    mixture_rows,
    results_of,
    unknown_rows,
)
from benchmarks.quality.figure_parts import (
    FLIX_COLOR,
    FOLDER,
    KIND_NAMES,
    LORA_COLOR,
    NAMES,
    OTHER_COLOR,
    bars,
    label_points,
    name_of,
    name_rows,
    note,
    page,
    point_rows,
    rows_height,
    save,
)

ARM_COLORS = {"flix_shared": FLIX_COLOR, "lora": LORA_COLOR}
VIEW_NAMES = {**evidence_tables.VIEW_TITLES, "random": "random values"}
HELD_OUT = cldr_mix.KINDS.index("held_out")


def headline(size: plan.Size) -> Any:
    """Everything that was trained: exact match by kind of pair."""
    arms = plan.arms_of(size)
    found = {name: results_of(size, arm) for name, arm in arms.items()}
    found = {name: results for name, results in found.items() if results}
    figure, axes = page(width=8.5, height=rows_height(len(found)))
    names = [
        f"{name_of(arms[name])} ({len(results)} seeds)"
        if len(results) > 1
        else f"{name_of(arms[name])} *"
        for name, results in found.items()
    ]
    point_rows(axes, names, [Group(results) for results in found.values()])
    note(figure, "* one seed: a lead, and the interval is over pairs alone")
    return figure


def held_out(size: plan.Size) -> Any:
    """Held-out pairs: the difference from the best LoRA, with 95 % intervals."""
    arms = plan.arms_of(size)
    rival = evidence_tables.best_lora(size)
    theirs = results_of(size, arms[rival])
    found = {n: results_of(size, arm) for n, arm in arms.items() if n != rival}
    found = {name: results for name, results in found.items() if results}
    figure, axes = page(width=8.5, height=rows_height(len(found)) * 0.75)
    # All with the first seed, so that they are alike; some with all seeds besides.
    ways: tuple[tuple[set[int] | None, float, str, str], ...] = (
        ({0}, -0.15, "none", "first seed: a lead"),
        (None, 0.15, "full", "all common seeds"),
    )
    for place, (name, results) in enumerate(found.items()):
        for seeds, aside, fill, _ in ways:
            if seeds is None and min(len(results), len(theirs)) < 2:
                continue
            one = evidence_tables.compare(results, theirs, "held_out", seeds)
            axes.errorbar(
                one.difference,
                place + aside,
                xerr=[[one.difference - one.low], [one.high - one.difference]],
                fmt="o",
                fillstyle=fill,
                color=ARM_COLORS.get(name, OTHER_COLOR),
                capsize=3,
            )
    for _, _, fill, title in ways:
        axes.plot([], [], "o", color=OTHER_COLOR, fillstyle=fill, label=title)
    name_rows(axes, [name_of(arms[name]) for name in found])
    axes.legend(fontsize=8, loc="lower left")
    axes.axvline(0, color="#555555", linewidth=1)
    axes.set_xlabel(
        f"exact match on held-out pairs, minus that of {name_of(arms[rival])}:\n"
        "percentage points, with 95 % intervals"
    )
    return figure


def growth(size: plan.Size) -> Any:
    """The gap as the mixture grows."""
    figure, both = page(columns=2, width=10)
    for axes, (axis, points) in zip(both, growth_curves(size).items()):
        for arm, color in ARM_COLORS.items():
            lengths = sorted(length for name, length in points if name == arm)
            for kind, style in (("seen", "-"), ("held_out", "--")):
                row = cldr_mix.KINDS.index(kind)
                groups = [points[arm, length] for length in lengths]
                heights: Any = [group.means()[row] for group in groups]
                spans: Any = [group.intervals()[row] for group in groups]
                # Side by side, where bars of equal places would cover each other.
                aside = 1.02 if arm == "lora" else 0.98
                axes.errorbar(
                    [length * aside for length in lengths],
                    heights,
                    yerr=bars(list(zip(heights, spans))),
                    fmt=f"o{style}",
                    color=color,
                    capsize=3,
                    label=f"{NAMES[arm]}, {KIND_NAMES[kind]}",
                )
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, lengths)
        axes.minorticks_off()
        axes.set_xlabel(f"{axis} in the mixture")
        axes.set_ylim(0, 102)
        axes.grid(axis="y", alpha=0.3)
        axes.set_ylabel("exact match in %")
    both[0].legend(fontsize=8, loc="lower left")
    note(figure, "one seed: a lead; 95 % intervals over pairs")
    return figure


def dropout(size: plan.Size) -> Any:
    """Feature dropout, three ways."""
    figure, both = page(columns=2, width=10)
    flix = plan.arms_of(size)["flix_shared"]
    start = Group(results_of(size, flix)[:1])
    curves: dict[str, list[tuple[float, Group]]] = {}
    for arm, options in plan.variants(size)["dropout"]:
        results = results_of(size, arm, **options)
        way = "per example, rescaled" if arm.rescale else "one draw per batch"
        if not arm.rescale and not arm.per_batch:
            way = "per example (the library's)"
        if results:
            curves.setdefault(way, []).append((arm.dropout["task"], Group(results)))
    for axes, kind in zip(both, ("seen", "held_out")):
        row = cldr_mix.KINDS.index(kind)
        for place, (way, points) in enumerate(curves.items()):
            line = [(0.0, start), *points]
            heights: Any = [group.means()[row] for _, group in line]
            spans: Any = [group.intervals()[row] for _, group in line]
            axes.errorbar(
                [rate + 0.012 * (place - 1) for rate, _ in line],
                heights,
                yerr=bars(list(zip(heights, spans))),
                marker="o",
                capsize=3,
                label=way,
            )
        axes.set_xlabel("probability of dropping task and language")
        axes.set_ylabel("exact match in %")
        axes.grid(axis="y", alpha=0.3)
        axes.set_title(KIND_NAMES[kind])
    both[0].legend(loc="lower left", fontsize=8)
    note(figure, "one seed: a lead; 95 % intervals over pairs")
    return figure


def _variants(
    table: str, title: str, describe: Callable[[Arm], str]
) -> Callable[[plan.Size], Any]:
    def draw(size: plan.Size) -> Any:
        names, groups = [], []
        entries: list[tuple[Arm, Any]] = list(plan.variants(size)[table])
        bases = dict.fromkeys(arm.name.split("@")[0] for arm, _ in entries)
        entries = [(plan.arms_of(size)[name], {}) for name in bases] + entries
        for arm, options in entries:
            if results := results_of(size, arm, **options)[:1]:
                names.append(describe(arm))
                groups.append(Group(results))
        figure, axes = page(width=8, height=rows_height(len(names)))
        point_rows(axes, names, groups)
        axes.set_ylabel(title)
        note(figure, "one seed: a lead")
        return figure

    return draw


def ranks_of(arm: Arm) -> str:
    """The ranks of task, language and shared."""
    return ", ".join(str(rank) for rank in arm.ranks.values())


def targets_of(arm: Arm) -> str:
    """What is trained, and in which layers."""
    # The rank is the same in all of them.
    name = name_of(dataclasses.replace(arm, ranks={})).removesuffix(", rank 0")
    return f"{name}\n{'attention' if arm.targets is None else 'all linear layers'}"


def initial_of(arm: Arm) -> str:
    """How large `A` begins."""
    if arm.initial == 1:
        return "the library's"
    return f"{arm.initial:g} times" if arm.initial > 1 else f"1 / {1 / arm.initial:.0f}"


def axes_left(size: plan.Size) -> Any:
    """What each feature contributes: scores without it."""
    names, groups = [], []
    for arm, options in plan.variants(size)["axes"]:
        results = results_of(size, arm, **options)
        for view in results[0]["scores"] if results else ():
            names.append(f"{name_of(arm)}\n{VIEW_NAMES[view]}")
            groups.append(Group(results, view))
    figure, axes = page(width=8, height=rows_height(len(names)))
    point_rows(axes, names, groups)
    note(figure, "one seed: a lead")
    return figure


def mixture(size: plan.Size) -> Any:
    """One model per task, or one for all."""
    rows = mixture_rows(size)
    figure, axes = page(width=8, height=rows_height(len(rows)))
    names = [f"{NAMES[arm]}\n{title}" for arm, title, _ in rows]
    point_rows(axes, names, [group for _, _, group in rows])
    note(figure, "one seed: a lead")
    return figure


def unknown(size: plan.Size) -> Any:
    """Languages that the base does not know, and what they cost the others."""
    rows = unknown_rows(size)
    figure, both = page(columns=2, width=12, height=rows_height(len(rows)))
    names = [
        f"{NAMES[name]} ({len(own.results)} seeds)"
        if len(own.results) > 1
        else f"{NAMES[name]} *"
        for name, own, _ in rows
    ]
    for axes, place, title in zip(both, (1, 2), ("unknown", "known")):
        groups = [row[place] for row in rows]
        point_rows(axes, names, groups, cldr_mix.KINDS[:3])
        axes.set_title(f"languages {title} to the base", y=1.08, fontsize=10)
    both[1].set_yticklabels([])
    note(figure, "* one seed: a lead")
    return figure


def cost(size: plan.Size) -> Any:
    """Held-out pairs against what is trained, and against the FLOPs of training."""
    figure, both = page(2, width=12, height=4.8, widths=(1.4, 1))
    points, spans = [], []
    for name, arm in plan.arms_of(size).items():
        results = results_of(size, arm)
        if not results or name == "shuffled":
            continue
        group = Group(results)
        value = group.means()[HELD_OUT]
        points.append((results[0]["trainable_parameters"], value, name_of(arm)))
        spans.append(group.intervals()[HELD_OUT])
        _up(both[0], points[-1][0], group, ARM_COLORS.get(name, OTHER_COLOR))
    for base, color in ARM_COLORS.items():
        arm = plan.arms_of(size)[base]
        entries = [
            (variant, options)
            for variant, options in plan.variants(size)["cost"]
            if variant.name.startswith(f"{base}@")
        ]
        line = [(size, variant, options) for variant, options in [*entries, (arm, {})]]
        if long := plan.SIZES.get(f"{size.name}_long"):
            line.append((long, plan.arms_of(long)[base], {}))
        drawn = []
        for length, variant, options in line:
            if results := results_of(length, variant, **options)[:1]:
                place = training_flops.of_training(length, variant, **options)
                _up(both[1], place, Group(results), color)
                drawn.append((place, Group(results).means()[HELD_OUT]))
        both[1].plot(*zip(*sorted(drawn)), color=color, label=name_of(arm))
    for axes, title in zip(both, ("trained parameters", "FLOPs of training")):
        axes.set_xscale("log")
        axes.set_xlabel(title)
        axes.set_ylabel("exact match on held-out pairs in %")
        axes.set_ylim(0, 102)
        axes.grid(alpha=0.3)
    both[0].set_xlim(6e3, 3e7)
    places = [3e11, 5e11, 1e12, 2e12, 3e12]
    both[1].set_xticks(places, [f"{place / 1e12:g}" for place in places])
    both[1].minorticks_off()
    both[1].set_xlabel("FLOPs of training, in 10¹²: 75, 150, 300 and 900 steps")
    both[1].legend(loc="lower right", fontsize=8)
    note(figure, "95 % intervals over pairs, and over seeds where there are several")
    label_points(both[0], points, spans)
    return figure


def _up(axes: Any, place: float, group: Group, color: str) -> None:
    """The mean of held-out pairs, with its interval."""
    value: Any = group.means()[HELD_OUT]
    span: Any = group.intervals()[HELD_OUT]
    error = bars([(value, span)])
    axes.errorbar(place, value, yerr=error, fmt="o", color=color, elinewidth=0.8)


FIGURES: dict[str, Callable[[plan.Size], Any]] = {
    "headline": headline,
    "held_out": held_out,
    "mixture": mixture,
    "growth": growth,
    "unknown": unknown,
    "dropout": dropout,
    "ranks": _variants("ranks", "rank of task, language, shared", ranks_of),
    "targets": _variants("targets", "", targets_of),
    "scale": _variants("scale", "initial A", initial_of),
    "axes": axes_left,
    "cost": cost,
}


def write(size: plan.Size, folder: Path = FOLDER) -> None:
    """Draws all figures into files."""
    for name, draw in FIGURES.items():
        save(draw(size), folder / f"{name}.png")
