"""Figures of what `keras_flix.analysis` found. They need the extra `plots`.

Every function returns a `matplotlib.figure.Figure`, for `figure.savefig(path)` or as
the last line of a notebook's cell. None of them touches pyplot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_flix._utils.renamed import renamed_keyword
from keras_flix.analysis.contributions import FeatureContributions
from keras_flix.analysis.figure_page import (
    FONT_SIZE,
    GREY,
    MARGIN,
    NAME,
    Groups,
    Page,
    heat,
    library,
    room_for,
    short_names,
    side,
)
from keras_flix.analysis.updates import EffectiveRank, UpdateNorms, ValueSimilarity
from keras_flix.features.schema import check_feature

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_contributions", "plot_norms", "plot_ranks", "plot_similarity"]


def plot_similarity(
    similarity: ValueSimilarity,
    groups: Groups | None = None,
    limit: float | None = None,
) -> Figure:
    """Similarities of values, ordered by a dendrogram, which is beside them.

    Clusters are joined by the mean of `1 - cosine` between their values. The tree shows
    the range of those means.

    Args:
        similarity: What `value_similarity` returned.
        groups: By value, the name of its group, such as a language's family. Labels
            are coloured by it; values may be missing.
        limit: Colours go from `-limit` to `limit`. By default that is the largest
            cosine of two values: each value starts from a random `A` of its own, so
            that cosines may be small and tell values apart all the same.

    Returns:
        A figure. Values without update come last, in grey.

    Raises:
        ImportError: If matplotlib or scipy is not installed.
    """
    order, joints = _clusters(similarity.matrix)
    values = [similarity.values[i] for i in order]
    size = side(len(order), least=1.9)
    labels = room_for(values) + 0.15 + NAME
    layers = len(similarity.layers)
    page = Page(
        [MARGIN, 1.4, 0.2, size, labels, 1.0],
        [max(labels, 0.5) + 0.1, size],
        f"Similarity of {similarity.feature} values: cosine of their updates in "
        f"{layers} layer{'s' * (layers != 1)}",
        groups,
        values,
    )
    axes = page.add(3, 1)
    shown = similarity.matrix[np.ix_(order, order)]
    if limit is None:
        others = shown[~np.eye(len(shown), dtype=bool) & np.isfinite(shown)]
        # Not 0: a scale needs a length.
        limit = max(np.abs(others), default=0.0) or 1.0
    image = heat(axes, shown, "RdBu_r", -limit, limit)
    page.name_rows(axes, values, similarity.feature, side="right")
    page.name_columns(axes, values, similarity.feature)
    page.add_colorbar(image, 5, 1, "cosine")
    tree = page.add(1, 1)
    for positions, heights in joints:
        tree.plot(heights, positions, color=GREY, linewidth=1.0)
    # Zoomed to the joints: of updates nearly at right angles, all are near 1.
    places = [max(heights) for _, heights in joints] or [0.0, 1.0]
    margin = 0.08 * (max(places) - min(places)) or 0.01
    tree.set_ylim(len(order) - 0.5, -0.5)
    tree.set_yticks([])
    tree.set_xlim(max(places) + margin, max(min(places) - margin, 0.0))
    tree.locator_params(axis="x", nbins=3)
    tree.set_xlabel("1 - cosine", fontsize=FONT_SIZE)
    tree.tick_params(labelsize=FONT_SIZE - 1)
    for spine in ("left", "right", "top"):
        tree.spines[spine].set_visible(False)
    return page.figure


@renamed_keyword("axis", "feature")
def plot_norms(
    norms: UpdateNorms,
    feature: str,
    relative: bool = False,
    groups: Groups | None = None,
) -> Figure:
    """The norms of a feature's updates, by value and layer.

    Args:
        norms: What `update_norms` returned.
        feature: The feature's name.
        relative: Whether over the norm of the base's kernel.
        groups: By value, the name of its group, which colours its label.

    Returns:
        A figure, values and layers in the order of the model.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    check_feature(feature, norms.values, "A figure")
    shown = (norms.relative if relative else norms.norms)[feature]
    finite = shown[np.isfinite(shown)]
    # A scale from 0 to 0 would have no length.
    highest = max(finite, default=0.0) or 1.0
    bar = "norm over that of the kernel" if relative else "Frobenius norm"
    title = f"Norms of {feature} updates by layer"
    return _by_layer(norms, feature, shown, groups, title, bar, highest)


@renamed_keyword("axis", "feature")
def plot_ranks(
    ranks: EffectiveRank, feature: str, groups: Groups | None = None
) -> Figure:
    """The share of the allotted rank that updates use, by value and layer.

    Args:
        ranks: What `effective_rank` returned.
        feature: The feature's name.
        groups: By value, the name of its group, which colours its label.

    Returns:
        A figure, values and layers in the order of the model.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    check_feature(feature, ranks.values, "A figure")
    share = f"Share of the rank that holds {ranks.energy:.0%}"
    title = f"{share} of a {feature} update, by layer"
    bar = "singular values / rank"
    return _by_layer(ranks, feature, ranks.used[feature], groups, title, bar, 1.0)


@renamed_keyword("axis", "feature")
def plot_contributions(
    contributions: FeatureContributions,
    feature: str | None = None,
    groups: Groups | None = None,
) -> Figure:
    """What features do to the loss: mean bars, to the left where they lower it.

    Args:
        contributions: What `feature_contributions` returned.
        feature: The feature whose values are compared; `None` compares the features.
        groups: By value, the name of its group, which colours its label.

    Returns:
        A figure with two bars per row: leave one out, and alone over the base. Lines
        on them are one standard error of the mean over examples to both sides. Features
        are in the order of the model, values in that of the first bar.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    if feature is None:
        means = contributions.means()
        title, groups = "What each feature does to the loss", None
    else:
        by_value = contributions.by_value(feature)
        means = dict(
            sorted(by_value.items(), key=lambda item: item[1]["leave_one_out"])
        )
        title = f"What {feature} does to the loss, by value"
    names, samples = list(means), contributions.samples(feature)
    page = Page(
        [MARGIN + room_for(names) + 0.15 + NAME, 5.0, MARGIN],
        [0.55, max(1.0, 0.27 * len(names)), 0.3],
        title,
        groups,
        names,
    )
    axes = page.add(1, 1)
    places = np.arange(len(names))
    for i, (kind, label, colour) in enumerate(
        (
            ("leave_one_out", "all features, over all but this one", "#4c72b0"),
            ("over_base", "this one alone, over the base", "#dd8452"),
        )
    ):
        bars = np.array([mean[kind] for mean in means.values()])
        rows = places + 0.38 * (i - 0.5)
        axes.barh(rows, bars, 0.36, color=colour, label=label)
        errors = np.array([_standard_error(samples[name][kind]) for name in names])
        axes.hlines(rows, bars - errors, bars + errors, color=GREY, linewidth=1.0)
    axes.axvline(0.0, color=GREY, linewidth=0.8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    page.name_rows(axes, names, feature or "feature")
    axes.set_xlabel(
        "change of the loss (negative: lower), with standard errors", fontsize=FONT_SIZE
    )
    axes.tick_params(axis="x", labelsize=FONT_SIZE)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=2,
        fontsize=FONT_SIZE - 1,
        frameon=False,
    )
    return page.figure


def _by_layer(
    result: UpdateNorms | EffectiveRank,
    feature: str,
    shown: np.ndarray,
    groups: Groups | None,
    title: str,
    bar: str,
    highest: float,
) -> Figure:
    values, layers = list(result.values[feature]), short_names(result.layers)
    page = Page(
        [
            MARGIN + room_for(values) + 0.15 + NAME,
            side(len(layers), least=2.5),
            1.0,
        ],
        [0.25 + room_for(layers) + NAME, side(len(values), least=1.4)],
        title,
        groups,
        values,
    )
    axes = page.add(1, 1)
    image = heat(axes, shown, "viridis", 0.0, highest)
    page.name_rows(axes, values, feature)
    page.name_columns(axes, layers, "layer")
    page.add_colorbar(image, 2, 1, bar)
    return page.figure


def _standard_error(losses: np.ndarray) -> float:
    """Of the mean; nothing, where there is one example at most."""
    if len(losses) < 2:
        return 0.0
    return float(losses.std(ddof=1) / np.sqrt(len(losses)))


def _clusters(
    matrix: np.ndarray,
) -> tuple[list[int], list[tuple[list[float], list[float]]]]:
    """The order of values, and each joint of the tree as positions and heights."""
    known = ~np.isnan(np.diag(matrix))
    found, unknown = np.flatnonzero(known), np.flatnonzero(~known).tolist()
    if len(found) < 2:
        return [*found.tolist(), *unknown], []
    hierarchy = library("scipy.cluster.hierarchy")
    upper: Sequence[Any] = np.triu_indices(len(found), 1)
    distances = np.maximum(1.0 - matrix[np.ix_(found, found)][upper], 0.0)
    linkage = hierarchy.linkage(distances, "average", optimal_ordering=True)
    drawn = hierarchy.dendrogram(linkage, no_plot=True)
    # scipy puts leaf i at 10 * i + 5.
    joints = [
        ([(place - 5.0) / 10.0 for place in places], list(heights))
        for places, heights in zip(drawn["icoord"], drawn["dcoord"])
    ]
    return [int(found[i]) for i in drawn["leaves"]] + unknown, joints
