"""What the figures share: names for readers, rows of points, labels that keep apart."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from benchmarks.quality import cldr_mix
from benchmarks.quality.evidence_arms import Arm
from benchmarks.quality.evidence_rows import Group
from benchmarks.shared.places import GUIDES

FOLDER = GUIDES / "figures" / "evidence"
COLORS = {
    "seen": "#4477aa",
    "few_shot": "#228833",
    "held_out": "#ee6677",
    "new_language": "#aa8800",
}
KIND_NAMES = {
    "seen": "seen pairs",
    "few_shot": "pairs with 3 examples",
    "held_out": "held-out pairs",
    "new_language": "new languages",
}
FLIX_COLOR, LORA_COLOR, OTHER_COLOR = "#aa3377", "#444444", "#4477aa"
NAMES = {
    "flix": "FLix: task, language",
    "flix_shared": "FLix: task, language, shared",
    "flix_family": "FLix: task, language, family, shared",
    "task_only": "FLix: task",
    "task_shared": "FLix: task, shared",
    "language_only": "FLix: language",
    "lora": "LoRA",
    "lora_2": "LoRA, rank 2",
    "lora_12": "LoRA, rank 12",
    "lora_24": "LoRA, rank 24",
    "lora_params": "LoRA, rank 64",
    "lora_6_attention": "LoRA, rank 6, attention",
    "lora_per_cell": "one LoRA per pair",
    "arithmetic": "task and language apart, added",
    "shuffled": "FLix, shuffled ids",
    "peft_lora": "PEFT: LoRA",
    "peft_poly": "PEFT: Poly",
}
"""What the results call by short names."""
WORDS = {"arm": "trained", "cell": "pair", "cells": "pairs"}
"""Of the benchmark's own language, in that of a reader."""


def name_of(arm: Arm) -> str:
    """What a figure calls an arm or a variant of it."""
    name = arm.name.split("@")[0]
    rank = f", rank {arm.active_rank}" if name == "lora" else ""
    return NAMES.get(name, name) + rank


def readable(text: str) -> str:
    """A table as a guide shows it, without the short names of the results.

    >>> readable("| arm | cells |\\n| `lora_24` | held-out, minus `lora` |")
    '| trained | pairs |\\n| LoRA, rank 24 | held-out, minus LoRA |'
    """
    text = re.sub(r"`(\w+)`", lambda m: NAMES.get(m[1], m[0]), text)
    return re.sub(r"\b(arm|cells?)\b", lambda m: WORDS[m[1]], text)


def page(
    columns: int = 1,
    width: float = 8.0,
    height: float = 4.2,
    widths: Sequence[float] | None = None,
) -> tuple[Any, Any]:
    """A white page, on dark screens too, with axes side by side."""
    figure, axes = plt.subplots(
        1,
        columns,
        figsize=(width, height),
        width_ratios=widths,
        layout="constrained",
        squeeze=False,
        facecolor="white",
    )
    for one in axes[0]:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes[0] if columns > 1 else axes[0][0]


def save(figure: Any, path: Path) -> None:
    """Writes a figure and lets go of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, facecolor="white")
    plt.close(figure)


def rows_height(count: int) -> float:
    """Inches for so many rows of points."""
    return 1.4 + 0.5 * count


def point_rows(
    axes: Any,
    names: Sequence[str],
    groups: Sequence[Group],
    kinds: Sequence[str] = cldr_mix.KINDS,
) -> None:
    """One row per name, one point per kind of pair, with its 95 % interval."""
    found = [(group.means(), group.intervals()) for group in groups]
    shown = [i for i in range(len(kinds)) if any(m[i] is not None for m, _ in found)]
    for place, i in enumerate(shown):
        aside = 0.18 * (place - (len(shown) - 1) / 2)
        points = [
            (row + aside, means[i], intervals[i])
            for row, (means, intervals) in enumerate(found)
            if means[i] is not None
        ]
        with_intervals(axes, points, COLORS[kinds[i]], KIND_NAMES[kinds[i]])
    name_rows(axes, names)
    axes.set_xlabel("exact match in %, with 95 % intervals")
    axes.legend(
        ncols=len(shown),
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        fontsize=8,
        frameon=False,
    )


def with_intervals(
    axes: Any, points: Sequence[Any], color: str, label: str | None = None
) -> None:
    """Points of a place, a mean and an interval each, as `point_rows` draws them."""
    axes.errorbar(
        [mean for _, mean, _ in points],
        [place for place, _, _ in points],
        xerr=bars([(mean, span) for _, mean, span in points]),
        fmt="o",
        markersize=4.5,
        linewidth=1.2,
        color=color,
        label=label,
    )


def bars(points: Sequence[tuple[float, tuple[float, float]]]) -> list[list[float]]:
    """Means and their intervals, as matplotlib takes error bars."""
    return [
        [max(mean - low, 0.0) for mean, (low, _) in points],
        [max(high - mean, 0.0) for mean, (_, high) in points],
    ]


def name_rows(axes: Any, names: Sequence[str]) -> None:
    """Names on the left, the first above, with lines between the rows."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    for row in range(1, len(names)):
        axes.axhline(row - 0.5, color="#dddddd", linewidth=0.8, zorder=0)
    axes.grid(axis="x", alpha=0.3)


def note(figure: Any, text: str) -> None:
    """A line below all."""
    figure.supxlabel(text, fontsize=8, x=0.99, ha="right", color="#444444")


def label_points(axes: Any, points: Sequence[tuple[float, float, str]]) -> None:
    """Names points, each where it covers no other label and no point.

    Args:
        axes: With its final limits and scales.
        points: Place and name of each.
    """
    figure = axes.figure
    figure.draw_without_rendering()
    taken = [_around(axes.transData.transform((x, y)), 4) for x, y, _ in points]
    frame = axes.get_window_extent()
    sides: list[tuple[float, str]] = [(1, "left"), (-1, "right")]
    tries = [
        (6 * side, height, anchor)
        for height, (side, anchor) in itertools.product(
            sorted(range(-90, 91, 9), key=abs), sides
        )
    ]

    def write(point: Any, place: Any, line: dict[str, Any] | None = None) -> Any:
        (x, y, name), (right, up, anchor) = point, place
        return axes.annotate(
            name,
            (x, y),
            xytext=(right, up),
            textcoords="offset points",
            ha=anchor,
            va="center",
            fontsize=8,
            arrowprops=line,
        )

    # From above: those below then find room further down.
    for point in sorted(points, key=lambda point: -point[1]):
        found = []
        for place in tries:
            text = write(point, place)
            box = text.get_window_extent()
            text.remove()
            size = box.x0, box.y0, box.x1, box.y1
            covered = sum(_overlap(size, other) for other in taken)
            if box.x0 < frame.x0 or box.y0 < frame.y0 or box.x1 > frame.x1:
                covered = float("inf")
            found.append((covered, place, size))
            if not covered:
                break
        _, place, size = min(found, key=lambda entry: entry[0])
        line = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.6}
        write(point, place, line if abs(place[1]) > 9 else None)
        taken.append(size)


Box = tuple[float, float, float, float]


def _around(place: Any, radius: float) -> Box:
    x, y = place
    return x - radius, y - radius, x + radius, y + radius


def _overlap(one: Box, other: Box) -> float:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return wide * high if wide > 0 and high > 0 else 0.0
