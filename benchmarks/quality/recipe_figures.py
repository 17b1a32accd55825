"""The figure of the search for a recipe, drawn from the stored results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.quality import hierarchical, recipe_tables, recipes
from benchmarks.quality.figure_parts import (
    COLORS,
    FOLDER,
    KIND_NAMES,
    NAMES,
    name_rows,
    page,
    save,
)


def differences() -> Any:
    """Exact match minus that of the best LoRA, by arm, recipe and kind of cell."""
    (_, _, baseline), *others = recipe_tables.all_results()
    figure, axes = page(width=8, height=1.6 + 0.7 * len(others))
    kinds = recipe_tables.KINDS
    for kind in kinds:
        axes.plot([], [], "o", color=COLORS[kind], label=KIND_NAMES[kind])
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
    name_rows(axes, [f"{NAMES[name]}\n{recipe}".strip() for name, recipe, _ in others])
    axes.axvline(0, color="#555555", linewidth=1)
    axes.legend(
        ncols=3,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        fontsize=8,
        frameon=False,
    )
    axes.set_xlabel(
        "exact match minus that of the best LoRA, points, with 95 % intervals\n"
        "hollow: one seed, a lead"
    )
    return figure


def write(folder: Path = FOLDER) -> None:
    """Draws it into a file."""
    save(differences(), folder / f"{recipes.SIZE}.png")
