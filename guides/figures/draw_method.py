"""Draws the README's picture: one batch, each example with its own updates.

python guides/figures/draw_method.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

BASE, TASK, LANGUAGE = "#cfd8dc", "#ffcc80", "#90caf9"
BATCH = [
    ("qa", "sw", "seen in training"),
    ("parse", "sw", "never seen: composed"),
    ("qa", "yo", "seen in training"),
    (None, "yo", "no task: contributes zero"),
]


def box(axes, x, y, width, text, color):
    """A rounded box with a centred text."""
    style = "round,pad=0.02,rounding_size=0.08"
    patch = FancyBboxPatch(
        (x, y), width, 0.5, style, facecolor=color, edgecolor="#37474f"
    )
    axes.add_patch(patch)
    axes.text(x + width / 2, y + 0.25, text, ha="center", va="center", fontsize=11)


def main() -> None:
    """Draws and saves the picture."""
    figure, axes = plt.subplots(figsize=(10, 3.9))
    for row, (task, language, note) in enumerate(BATCH):
        y = 2.4 - 0.8 * row
        axes.text(0, y + 0.25, f"example {row + 1}", va="center", fontsize=11)
        box(axes, 1.3, y, 1.5, "$W_0$  frozen", BASE)
        axes.text(3.0, y + 0.25, "+", ha="center", va="center", fontsize=14)
        if task:
            box(axes, 3.2, y, 2.2, f"$A_{{{task}}}\\,B_{{{task}}}$", TASK)
        else:
            axes.text(4.3, y + 0.25, "0", ha="center", va="center", fontsize=12)
        axes.text(5.6, y + 0.25, "+", ha="center", va="center", fontsize=14)
        box(axes, 5.8, y, 2.2, f"$A_{{{language}}}\\,B_{{{language}}}$", LANGUAGE)
        axes.text(8.3, y + 0.25, note, va="center", fontsize=10.5, color="#455a64")
    axes.text(4.3, 3.2, "task", ha="center", fontsize=12, weight="bold")
    axes.text(6.9, 3.2, "language", ha="center", fontsize=12, weight="bold")
    axes.text(2.05, 3.2, "base model", ha="center", fontsize=12, weight="bold")
    axes.set_xlim(-0.1, 10.9)
    axes.set_ylim(-0.15, 3.6)
    axes.axis("off")
    figure.savefig(Path(__file__).with_name("method.png"), dpi=130, bbox_inches="tight")


if __name__ == "__main__":
    main()
