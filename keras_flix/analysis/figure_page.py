"""Pages for figures: sizes in inches, so that labels have room at any count."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_flix._utils.optional_packages import needed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Groups = Mapping[Any, str]
"""From values to what they belong to, such as languages to their families."""

MAX_LABELS = 150
"""More labels than these on one side are thinned out."""
CELL, FONT_SIZE, MARGIN = 0.19, 8.0, 0.3
"""Inches of a row, points of a label, inches around all."""
LINE = 0.17
"""Inches of a line of text."""
NAME = 0.25
"""Inches for the name of an axis beside its labels."""
GREY, NO_VALUE = "0.35", "0.85"


class Page:
    """A figure of columns and rows, with a title above and a legend below.

    Args:
        widths: Inches of the columns, from the left.
        heights: Inches of the rows, from below.
        title: What is above all.
        groups: Groups of values, which get a colour each and a legend.
        values: The values that the figure shows.
    """

    def __init__(
        self,
        widths: Sequence[float],
        heights: Sequence[float],
        title: str,
        groups: Groups | None = None,
        values: Sequence[Any] = (),
    ) -> None:
        self.groups = groups or {}
        self.widths, self.heights = widths, heights
        self.colours = _colours(self.groups, values)
        wide = max(sum(widths), 2 * MARGIN + 1.25 * room_for([title]))
        entry = room_for(self.colours) + 0.5
        columns = max(1, int((wide - 2 * MARGIN) / entry))
        self.legend = LINE * -(-len(self.colours) // columns) + 0.1
        self.size = wide, self.legend + sum(heights) + 2.5 * LINE
        self.figure: Figure = library("matplotlib.figure").Figure(
            # White on dark pages, too.
            figsize=self.size,
            dpi=100,
            facecolor="white",
        )
        self.figure.text(
            MARGIN / wide, 1 - 1.5 * LINE / self.size[1], title, fontsize=FONT_SIZE + 2
        )
        if self.colours:
            patch = library("matplotlib.patches").Patch
            self.figure.legend(
                handles=[
                    patch(color=c, label=label_of(g)) for g, c in self.colours.items()
                ],
                loc="lower left",
                bbox_to_anchor=(MARGIN / wide, 0.0),
                ncols=columns,
                fontsize=FONT_SIZE - 1,
                frameon=False,
                borderpad=0.0,
            )

    def add(self, column: int, row: int) -> Axes:
        """New axes in a column and a row."""
        (wide, high), bottom = self.size, self.legend + sum(self.heights[:row])
        return self.figure.add_axes(
            (
                sum(self.widths[:column]) / wide,
                bottom / high,
                self.widths[column] / wide,
                self.heights[row] / high,
            )
        )

    def add_colorbar(self, image: Any, column: int, row: int, label: str) -> None:
        """A bar at the top of a column and a row, never longer than 2.5 inches."""
        axes = self.add(column, row)
        box = axes.get_position()
        high = min(box.height, 2.5 / self.size[1])
        inch = 1 / self.size[0]
        axes.set_position((box.x0 + 0.15 * inch, box.y1 - high, 0.15 * inch, high))
        self.figure.colorbar(image, cax=axes)
        axes.set_ylabel(label, fontsize=FONT_SIZE)
        axes.tick_params(labelsize=FONT_SIZE - 1)

    def name_rows(
        self, axes: Axes, values: Sequence[Any], title: str = "", side: str = "left"
    ) -> None:
        """Labels of the rows of a figure, coloured by group, and what they are."""
        places = _places(len(values))
        axes.set_yticks(places, [label_of(values[i]) for i in places])
        if side == "right":
            axes.yaxis.tick_right()
            axes.yaxis.set_label_position("right")
        axes.set_ylabel(label_of(title), fontsize=FONT_SIZE)
        axes.tick_params(axis="y", length=0, labelsize=FONT_SIZE)
        self._colour(axes.get_yticklabels(), [values[i] for i in places])

    def name_columns(self, axes: Axes, values: Sequence[Any], title: str = "") -> None:
        """Labels of the columns of a figure, coloured by group, and what they are."""
        places = _places(len(values))
        axes.set_xticks(places, [label_of(values[i]) for i in places], rotation=90)
        axes.set_xlabel(label_of(title), fontsize=FONT_SIZE)
        axes.tick_params(axis="x", length=0, labelsize=FONT_SIZE)
        self._colour(axes.get_xticklabels(), [values[i] for i in places])

    def _colour(self, texts: Sequence[Any], values: Sequence[Any]) -> None:
        for text, value in zip(texts, values):
            text.set_color(self.colours.get(self.groups.get(value, ""), "black"))


def library(module: str) -> Any:
    """A module that figures need; raises with the extra's name."""
    return needed(module, "A figure", "plots")


def heat(axes: Axes, shown: np.ndarray, name: str, low: float, high: float) -> Any:
    """A matrix as an image, in grey where there is no number."""
    colours = library("matplotlib").colormaps[name].with_extremes(bad=NO_VALUE)
    axes.set_facecolor(NO_VALUE)
    return axes.imshow(
        np.ma.masked_invalid(shown),
        cmap=colours,
        vmin=low,
        vmax=high,
        aspect="auto",
        interpolation="nearest",
    )


def label_of(value: Any) -> str:
    """How a figure names a value; `None` is absence."""
    # A dollar sign would start a formula.
    return "(none)" if value is None else str(value).replace("$", r"\$")


def room_for(values: Iterable[Any]) -> float:
    """Inches of the longest label."""
    measure = library("matplotlib.textpath").text_to_path.get_text_width_height_descent
    font = library("matplotlib.font_manager").FontProperties(size=FONT_SIZE)
    return max((measure(label_of(v), font, False)[0] / 72 for v in values), default=0.0)


def side(count: int, least: float) -> float:
    """Inches of so many rows or columns; labels are thinned out beyond some."""
    return max(least, CELL * min(count, MAX_LABELS))


def short_names(paths: Sequence[str]) -> list[str]:
    """Paths without the part that all of them start with.

    >>> short_names(["gemma/block_0/query", "gemma/block_1/query"])
    ['block_0/query', 'block_1/query']
    """
    shared = os.path.commonprefix(list(paths)) if len(paths) > 1 else ""
    # A whole folder: block_10 and block_11 share more letters than that.
    start = shared.rfind("/") + 1
    return [path[start:] for path in paths]


def _places(count: int) -> list[int]:
    return list(range(0, count, max(1, -(-count // MAX_LABELS))))


def _colours(groups: Groups, values: Sequence[Any]) -> dict[str, Any]:
    names = sorted({groups[value] for value in values if value in groups})
    if len(names) <= 10:
        palette = library("matplotlib").colormaps["tab10"]
        return {name: palette(i) for i, name in enumerate(names)}
    hsv_to_rgb = library("matplotlib.colors").hsv_to_rgb
    return {
        # Dark and light in turn, as neighbours differ little in hue.
        name: tuple(hsv_to_rgb((i / len(names), 0.9, 0.45 if i % 2 else 0.8)))
        for i, name in enumerate(names)
    }
