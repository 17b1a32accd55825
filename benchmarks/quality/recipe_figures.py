"""The figure of the search for a recipe, drawn from the stored results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from benchmarks.quality import hierarchical, recipe_tables, recipes
from benchmarks.quality.evidence_figures import ARM_COLORS, FOLDER


def differences() -> Any:
    """Held-out cells: nats per answer minus those of the best LoRA, by recipe."""
    rows = recipe_tables.all_results()
    (_, _, baseline), *others = rows
    theirs = recipe_tables.by_seed(baseline, "nats")
    figure, axes = plt.subplots(figsize=(8, 1.4 + 0.36 * len(others)))
    figure.set_layout_engine("constrained")
    for place, (name, _, results) in enumerate(others):
        seeds = results.keys() & baseline.keys()
        if not seeds:
            continue
        one = hierarchical.compare(recipe_tables.by_seed(results, "nats"), theirs)
        axes.errorbar(
            one.difference,
            place,
            xerr=[[one.difference - one.low], [one.high - one.difference]],
            fmt="o",
            fillstyle="full" if len(seeds) > 1 else "none",
            color=ARM_COLORS.get(name, "#4477aa"),
            capsize=3,
        )
    axes.set_yticks(
        range(len(others)),
        [f"{name}: {recipe}" if recipe else name for name, recipe, _ in others],
    )
    axes.axvline(0, color="#555555", linewidth=1)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(
        "held-out cells: nats per answer minus those of the best LoRA "
        "(less is better)\nhollow: one seed, a lead"
    )
    return figure


def write(folder: Path = FOLDER) -> None:
    """Draws it into a file."""
    folder.mkdir(parents=True, exist_ok=True)
    figure = differences()
    figure.savefig(folder / f"{recipes.SIZE}.png", dpi=110)
    plt.close(figure)
