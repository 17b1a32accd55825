"""The figure of the search for a recipe, drawn from the stored results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from benchmarks.quality import hierarchical, recipe_tables, recipes
from benchmarks.quality.evidence_figures import COLORS, FOLDER
from benchmarks.quality.evidence_tables import KIND_TITLES


def differences() -> Any:
    """Exact match minus that of the best LoRA, by arm, recipe and kind of cell."""
    (_, _, baseline), *others = recipe_tables.all_results()
    figure, axes = plt.subplots(
        figsize=(8, 1.6 + 0.7 * len(others)), layout="constrained"
    )
    kinds = recipe_tables.KINDS
    for kind in kinds:
        axes.plot([], [], "o", color=COLORS[kind], label=KIND_TITLES[kind])
    for place, (_, _, results) in enumerate(others):
        seeds = results.keys() & baseline.keys()
        for aside, kind in zip((-0.2, 0.0, 0.2), kinds):
            if not seeds:
                continue
            ours, theirs = (
                recipe_tables.by_seed(found, "exact", kind)
                for found in (results, baseline)
            )
            one = hierarchical.compare(ours, theirs)
            axes.errorbar(
                one.difference,
                place + aside,
                xerr=[[one.difference - one.low], [one.high - one.difference]],
                fmt="o",
                fillstyle="full" if len(seeds) > 1 else "none",
                color=COLORS[kind],
                capsize=3,
            )
    axes.set_yticks(
        range(len(others)),
        [f"{name}\n{recipe}".strip() for name, recipe, _ in others],
    )
    axes.set_ylim(len(others) - 0.5, -0.5)
    axes.axvline(0, color="#555555", linewidth=1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)
    axes.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8)
    axes.set_xlabel(
        "exact match minus that of the best LoRA, points, with 95 % intervals\n"
        "hollow: one seed, a lead"
    )
    return figure


def write(folder: Path = FOLDER) -> None:
    """Draws it into a file."""
    folder.mkdir(parents=True, exist_ok=True)
    figure = differences()
    figure.savefig(folder / f"{recipes.SIZE}.png", dpi=110)
    plt.close(figure)
