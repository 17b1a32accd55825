"""Figures of the evidence, drawn from the stored results."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.quality import cldr_mix, evidence_tables, plan, training_flops
from benchmarks.shared.places import GUIDES

FOLDER = GUIDES / "figures" / "evidence"
COLORS = {"seen": "#4477aa", "few_shot": "#66ccee", "held_out": "#ee6677"}
COLORS["new_language"] = "#ccbb44"
ARM_COLORS = {"flix_shared": "#aa3377", "lora": "#555555"}
ARM_TITLES = {"flix_shared": "FLix (task + language + shared)", "lora": "LoRA"}


def _axes(columns: int = 1, width: float = 7.0) -> tuple[Any, Any]:
    figure, axes = plt.subplots(
        1, columns, figsize=(width, 4.2), layout="constrained", squeeze=False
    )
    for one in axes[0]:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(axis="y", alpha=0.3)
        one.set_ylabel("exact match in %")
    return figure, axes[0] if columns > 1 else axes[0][0]


def _bars(axes: Any, names: list[str], rows: list[list[float | None]]) -> None:
    """One group of bars per name, one bar per kind of cell."""
    shown = [i for i in range(len(rows[0])) if any(r[i] is not None for r in rows)]
    width = 0.8 / len(shown)
    for place, i in enumerate(shown):
        kind = cldr_mix.KINDS[i]
        heights = [np.nan if row[i] is None else row[i] for row in rows]
        at = np.arange(len(names)) + (place - (len(shown) - 1) / 2) * width
        axes.bar(
            at,
            heights,
            width,
            color=COLORS[kind],
            label=evidence_tables.KIND_TITLES[kind],
        )
    axes.set_xticks(np.arange(len(names)), names)
    axes.set_ylim(0, 102)
    axes.legend(ncols=len(shown), loc="lower center", bbox_to_anchor=(0.5, 1.0))


def headline(size: plan.Size) -> Any:
    """All arms: exact match by kind of cell."""
    arms = plan.arms_of(size)
    found = {name: evidence_tables.results_of(size, arm) for name, arm in arms.items()}
    found = {name: results for name, results in found.items() if results}
    figure, axes = _axes(width=12)
    _bars(
        axes,
        [
            f"{name} ({len(results)} seeds)" if len(results) > 1 else f"{name}*"
            for name, results in found.items()
        ],
        [evidence_tables.means(results) for results in found.values()],
    )
    for label in axes.get_xticklabels():
        label.set(rotation=40, ha="right", rotation_mode="anchor")
    _lead(figure, "*")
    return figure


def _lead(figure: Any, mark: str = "") -> None:
    """Says that what has one seed is a lead."""
    figure.supxlabel(f"{mark} one seed: a lead".strip(), fontsize=8, x=0.99, ha="right")


def held_out(size: plan.Size) -> Any:
    """Held-out cells: the difference from the best LoRA, with 95 % intervals."""
    arms = plan.arms_of(size)
    rival = evidence_tables.best_lora(size)
    theirs = evidence_tables.results_of(size, arms[rival])
    figure, axes = _axes(width=8)
    # Every arm with the first seed, so that all are alike; some with all besides.
    ways: tuple[tuple[set[int] | None, float, str, str], ...] = (
        ({0}, -0.15, "none", "first seed: a lead"),
        (None, 0.15, "full", "all common seeds"),
    )
    for place, (name, arm) in enumerate(arms.items()):
        results = evidence_tables.results_of(size, arm)
        if not results or name == rival:
            continue
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
                color=ARM_COLORS.get(name, "#4477aa"),
                capsize=3,
            )
    for _, _, fill, title in ways:
        axes.plot([], [], "o", color="#4477aa", fillstyle=fill, label=title)
    axes.legend(fontsize=8)
    axes.axvline(0, color="#555555", linewidth=1)
    axes.set_yticks(range(len(arms)), arms)
    axes.invert_yaxis()
    axes.set_ylabel("")
    axes.set_xlabel(f"held-out cells: exact match minus that of `{rival}`, points")
    return figure


def growth(size: plan.Size) -> Any:
    """The gap as the mixture grows."""
    curves = evidence_tables.growth_curves(size)
    figure, both = _axes(columns=2, width=10)
    for axes, (axis, points) in zip(both, curves.items()):
        for arm, color in ARM_COLORS.items():
            lengths = sorted(length for name, length in points if name == arm)
            for kind, style in (("seen", "-"), ("held_out", "--")):
                row = cldr_mix.KINDS.index(kind)
                heights = [points[arm, length][row] for length in lengths]
                title = f"{ARM_TITLES[arm]}, {evidence_tables.KIND_TITLES[kind]}"
                axes.plot(lengths, heights, style, marker="o", color=color, label=title)
        axes.set_xscale("log", base=2)
        axes.set_xticks(lengths, lengths)
        axes.set_xlabel(f"{axis} in the mixture")
        axes.set_ylim(0, 102)
    both[0].legend(fontsize=8)
    return figure


def dropout(size: plan.Size) -> Any:
    """Feature dropout, three ways."""
    figure, both = _axes(columns=2, width=10)
    flix = plan.arms_of(size)["flix_shared"]
    start = evidence_tables.means(evidence_tables.results_of(size, flix)[:1])
    curves: dict[str, list[tuple[float, list[float | None]]]] = {}
    for arm, options in plan.variants(size)["dropout"]:
        results = evidence_tables.results_of(size, arm, **options)
        way = "rescaled" if arm.rescale else "one draw per batch"
        if not arm.rescale and not arm.per_batch:
            way = "per example"
        if results:
            point = (arm.dropout["task"], evidence_tables.means(results))
            curves.setdefault(way, []).append(point)
    for axes, kind in zip(both, ("seen", "held_out")):
        row = cldr_mix.KINDS.index(kind)
        for way, points in curves.items():
            line = [(0.0, start), *points]
            axes.plot(
                [rate for rate, _ in line],
                [values[row] for _, values in line],
                marker="o",
                label=way,
            )
        axes.set_xlabel("dropout of the task and language axes")
        axes.set_title(f"{evidence_tables.KIND_TITLES[kind]} cells")
    both[0].legend()
    return figure


def _variants(table: str, width: float) -> Callable[[plan.Size], Any]:
    def draw(size: plan.Size) -> Any:
        names, rows = [], []
        entries = [(arm, options) for arm, options in plan.variants(size)[table]]
        bases = dict.fromkeys(arm.name.split("@")[0] for arm, _ in entries)
        entries = [(plan.arms_of(size)[name], {}) for name in bases] + entries
        for arm, options in entries:
            results = evidence_tables.results_of(size, arm, **options)[:1]
            if results:
                name, _, variant = arm.name.partition("@")
                names.append(f"{name}\n{re.sub('_', ' ', variant) or 'default'}")
                rows.append(evidence_tables.means(results))
        figure, axes = _axes(width=width)
        _bars(axes, names, rows)
        axes.tick_params(axis="x", labelsize=8)
        return figure

    return draw


def axes_left(size: plan.Size) -> Any:
    """What each feature contributes: scores without it."""
    names, rows = [], []
    for arm, options in plan.variants(size)["axes"]:
        results = evidence_tables.results_of(size, arm, **options)
        for view in results[0]["scores"] if results else ():
            names.append(
                f"{arm.name.split('@')[0]}\n{evidence_tables.VIEW_TITLES[view]}"
            )
            rows.append(evidence_tables.means(results, view=view))
    figure, axes = _axes(width=10)
    _bars(axes, names, rows)
    axes.tick_params(axis="x", labelsize=8)
    return figure


def mixture(size: plan.Size) -> Any:
    """One model per task, or one for all."""
    rows = evidence_tables.mixture_rows(size)
    figure, axes = _axes()
    _bars(axes, [f"{arm}\n{title}" for arm, title, _ in rows], [r[2] for r in rows])
    return figure


def unknown(size: plan.Size) -> Any:
    """Languages that the base does not know, and what they cost the others."""
    rows = evidence_tables.unknown_rows(size)
    figure, both = _axes(columns=2, width=12)
    for axes, place, title in zip(both, (2, 3), ("unknown", "known")):
        _bars(axes, [row[0] for row in rows], [row[place] for row in rows])
        axes.set_title(f"languages {title} to the base", y=1.1)
        axes.tick_params(axis="x", labelsize=8)
    return figure


def cost(size: plan.Size) -> Any:
    """All arms against what is trained, and against the FLOPs of training."""
    figure, both = _axes(columns=2, width=11)
    row = cldr_mix.KINDS.index("held_out")
    for name, arm in plan.arms_of(size).items():
        results = evidence_tables.results_of(size, arm)
        if not results or name == "shuffled":
            continue
        value = evidence_tables.means(results)[row]
        color = ARM_COLORS.get(name, "#4477aa")
        places = (
            results[0]["trainable_parameters"],
            training_flops.of_training(size, arm),
        )
        for axes, place in zip(both, places):
            axes.scatter(place, value, color=color, zorder=3)
            axes.annotate(
                name,
                (place, value),
                fontsize=7,
                xytext=(3, 3),
                textcoords="offset points",
            )
    for base, color in ARM_COLORS.items():
        entries = [
            (arm, options)
            for arm, options in plan.variants(size)["cost"]
            if arm.name.startswith(f"{base}@")
        ]
        entries.append((plan.arms_of(size)[base], {}))
        points = []
        for arm, options in entries:
            results = evidence_tables.results_of(size, arm, **options)[:1]
            if results:
                value = evidence_tables.means(results)[row]
                points.append((training_flops.of_training(size, arm, **options), value))
        if long := plan.SIZES.get(f"{size.name}_long"):
            arm = plan.arms_of(long)[base]
            value = evidence_tables.means(evidence_tables.results_of(long, arm)[:1])[
                row
            ]
            points.append((training_flops.of_training(long, arm), value))
        both[1].plot(
            *zip(*sorted(points)), marker=".", color=color, label=ARM_TITLES[base]
        )
    for axes, title in zip(both, ("trained parameters", "FLOPs of training")):
        axes.set_xscale("log")
        axes.set_xlabel(title)
        axes.set_ylabel("exact match in %, held-out cells")
        axes.set_ylim(0, 102)
    both[1].legend(loc="lower left", fontsize=8)
    return figure


FIGURES: dict[str, Callable[[plan.Size], Any]] = {
    "headline": headline,
    "held_out": held_out,
    "mixture": mixture,
    "growth": growth,
    "unknown": unknown,
    "dropout": dropout,
    "ranks": _variants("ranks", 10),
    "targets": _variants("targets", 6),
    "scale": _variants("scale", 10),
    "axes": axes_left,
    "cost": cost,
}


def write(size: plan.Size, folder: Path = FOLDER) -> None:
    """Draws all figures into files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        figure = draw(size)
        figure.savefig(folder / f"{name}.png", dpi=110)
        plt.close(figure)
