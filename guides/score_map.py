"""The map of scores by task and language that several guides draw."""

from collections.abc import Collection, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

Pair = tuple[str, str]


def draw(
    scores: Mapping[Pair, Mapping[str, float]],
    tasks: Sequence[str],
    languages: Sequence[str],
    held_out: Collection[Pair],
    title: str,
) -> Figure:
    """Draws how many answers of each pair are right; red frames were held out.

    Args:
        scores: By task and language, as `Scores.by("task", "language")` returns them;
            pairs may be missing.
        tasks, languages: What rows and columns are.
        held_out: Pairs that were not in training.
        title: Of the figure.
    """
    missing = {"exact_match": np.nan}
    grid = np.array(
        [
            [
                scores.get((task, language), missing)["exact_match"]
                for language in languages
            ]
            for task in tasks
        ]
    )
    wide, high = 1.6 + 0.36 * len(languages), 1.3 + 0.34 * len(tasks)
    figure, axes = plt.subplots(
        figsize=(max(wide, 6), high), layout="constrained", facecolor="white"
    )
    image = axes.imshow(grid, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    for row, task in enumerate(tasks):
        for column, language in enumerate(languages):
            value = grid[row, column]
            if np.isfinite(value):
                axes.text(
                    column,
                    row,
                    f"{value:.0f}",
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color="black" if value > 60 else "white",
                )
            if (task, language) in held_out:
                corner = (column - 0.46, row - 0.46)
                axes.add_patch(
                    plt.Rectangle(corner, 0.92, 0.92, fill=False, edgecolor="red", lw=2)
                )
    axes.set_xticks(range(len(languages)), languages)
    axes.set_yticks(range(len(tasks)), tasks)
    axes.set_xlabel("language")
    axes.set_ylabel("task")
    axes.set_title(title, fontsize=11)
    figure.colorbar(image, ax=axes, pad=0.01, label="exact match in %")
    return figure
