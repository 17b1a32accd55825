"""What the figures share: names for readers, rows of points, labels that keep apart."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from benchmarks.quality import cldr_mix
from benchmarks.quality.evidence_arms import Arm
from benchmarks.quality.evidence_rows import Group
from benchmarks.shared.places import GUIDES
from keras_flix._utils.text_tables import aligned

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
    "hyper": "LoRA by a hypernetwork",
    "base": "pretrained on raw text",
    "base_instructed": "then taught to follow prompts",
}
"""What the results call by short names."""
WIDEST = 18
"""Characters of a column's name in one line."""
WORDS = {"arm": "trained", "cell": "pair", "cells": "pairs"}
"""Of the benchmark's own language, in that of a reader."""


def name_of(arm: Arm) -> str:
    """What a figure calls an arm or a variant of it."""
    name = arm.name.split("@")[0]
    rank = f", rank {arm.active_rank}" if name == "lora" else ""
    return NAMES.get(name, name) + rank


def readable(text: str) -> str:
    """A table as a guide shows it, without the short names of the results.

    Args:
        text: In Markdown. An output of a notebook would show its bars as they are.

    Returns:
        The same with aligned columns.

    >>> table = "| arm | few-shot |\\n| --- | --- |\\n| `lora_24` | 79.3 |\\n"
    >>> print(readable(table))
    trained        few-shot
    LoRA, rank 24      79.3
    """
    text = re.sub(r"`(\w+)`", lambda m: NAMES.get(m[1], m[0]), text)
    text = re.sub(r"\b(arm|cells?)\b", lambda m: WORDS[m[1]], text)
    text = text.replace("| 1 tasks |", "| 1 task |")
    header, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.strip().splitlines()
    ]
    # A long name of a column goes over several lines.
    wrapped = [textwrap.wrap(name, WIDEST) for name in header]
    lines = itertools.zip_longest(*wrapped, fillvalue="")
    table = aligned([*map(list, lines), *rows])
    return "\n".join(line.rstrip() for line in table.splitlines())


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


def label_points(
    axes: Any,
    points: Sequence[tuple[float, float, str]],
    spans: Sequence[tuple[float, float]] = (),
) -> None:
    """Names points, each where it covers no other label, no point and no interval.

    Args:
        axes: With its final limits and scales.
        points: Place and name of each.
        spans: The lower and the upper end of each point's interval, if they have any.
    """
    figure = axes.figure
    figure.draw_without_rendering()
    frame = axes.get_window_extent()
    taken = []
    for x, y, _ in points:
        right, up = axes.transData.transform((x, y))
        taken.append((right - 4, up - 4, right + 4, up + 4))
    for (x, _, _), ends in zip(points, spans):
        low, high = (axes.transData.transform((x, end)) for end in ends)
        taken.append((low[0] - 2, low[1], high[0] + 2, high[1]))
    sizes = []
    for _, _, name in points:
        text = axes.text(0, 0, name, fontsize=8)
        box = text.get_window_extent()
        text.remove()
        sizes.append((box.width, box.height))
    pixels = figure.dpi / 72

    def box_at(number: int, place: Place) -> Box:
        (x, y, _), (wide, high) = points[number], sizes[number]
        right, up = axes.transData.transform((x, y))
        left = right + pixels * place[0] - (wide if place[0] < 0 else 0)
        middle = up + pixels * place[1]
        return left, middle - high / 2, left + wide, middle + high / 2

    def cost(box: Box, place: Place, others: Sequence[Box]) -> float:
        inside = frame.x0 <= box[0] and box[2] <= frame.x1
        if not inside or box[1] < frame.y0 or box[3] > frame.y1:
            return float("inf")
        covered = sum(_overlap(box, other) for other in others)
        return 1e3 * covered + abs(place[0]) + abs(place[1])

    def placed(order: Sequence[int]) -> tuple[float, dict[int, Place]]:
        others, total, found = list(taken), 0.0, {}
        for number in order:
            tries = [(cost(box_at(number, p), p, others), p) for p in PLACES]
            least, found[number] = min(tries)
            total += least
            others.append(box_at(number, found[number]))
        return total, found

    by_height = sorted(range(len(points)), key=lambda number: points[number][1])
    _, places = min(
        (placed(order) for order in (by_height[::-1], by_height)),
        key=lambda one: one[0],
    )
    line = {"arrowstyle": "-", "color": "#999999", "linewidth": 0.6}
    for number, place in places.items():
        x, y, name = points[number]
        near = abs(place[0]) <= 6 and abs(place[1]) <= 9
        axes.annotate(
            name,
            (x, y),
            xytext=place,
            textcoords="offset points",
            ha="right" if place[0] < 0 else "left",
            va="center",
            fontsize=8,
            arrowprops=None if near else line,
        )


Place = tuple[int, int]
"""How far a label is from its point, to the right and up, in points of print."""
Box = tuple[float, float, float, float]
PLACES: tuple[Place, ...] = tuple(
    itertools.product((6, -6, 24, -24, 48, -48, 72, -72, 96, -96), range(-126, 127, 9))
)


def _overlap(one: Box, other: Box) -> float:
    wide = min(one[2], other[2]) - max(one[0], other[0])
    high = min(one[3], other[3]) - max(one[1], other[1])
    return wide * high if wide > 0 and high > 0 else 0.0
