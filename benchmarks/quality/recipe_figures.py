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

Row = tuple[str, recipe_tables.Results, recipe_tables.Results]
"""A name, results, and those that they are compared with."""


def rows() -> list[Row]:
    """Arms and the best LoRA, then recipes and the same arms without them."""
    best = {name: recipes.tuned(name) for name in recipes.RANKS}
    arms = {
        name: recipe_tables.of_arm(name, setting)
        for name, setting in best.items()
        if setting is not None
    }
    lora = arms.pop(recipe_tables.BASELINE, {})
    found = [
        (f"{NAMES[name]}\nminus the best LoRA", results, lora)
        for name, results in arms.items()
    ]
    tried = recipe_tables.all_results()
    plain = {name: results for name, recipe, results in tried if not recipe}
    found += [
        (f"{NAMES[name]}\n{recipe.replace('`', '')}", results, plain[name])
        for name, recipe, results in tried
        if recipe and name in plain
    ]
    return [row for row in found if row[1].keys() & row[2].keys()]


def differences() -> Any:
    """Exact match of arms minus the best LoRA's, and of recipes minus without them."""
    drawn = rows()
    figure, axes = page(width=8, height=1.6 + 0.55 * len(drawn))
    kinds = recipe_tables.KINDS
    for kind in kinds:
        axes.plot([], [], "o", color=COLORS[kind], label=KIND_NAMES[kind])
    for place, (_, results, baseline) in enumerate(drawn):
        seeds = results.keys() & baseline.keys()
        for aside, kind in zip((-0.2, 0.0, 0.2), kinds):
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
    name_rows(axes, [name for name, _, _ in drawn])
    axes.axvline(0, color="#555555", linewidth=1)
    axes.legend(
        ncols=3,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        fontsize=8,
        frameon=False,
    )
    axes.set_xlabel(
        "exact match, points, with 95 % intervals\n"
        "recipes: minus the same arm without, on the same data\n"
        "hollow: one seed, a lead"
    )
    return figure


def write(folder: Path = FOLDER) -> None:
    """Draws it into a file."""
    save(differences(), folder / f"{recipes.SIZE}.png")
