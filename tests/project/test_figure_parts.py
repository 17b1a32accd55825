"""What the figures of the benchmarks share, on made-up numbers."""

import itertools

import numpy as np
import pytest

plt = pytest.importorskip("matplotlib.pyplot", reason="extra `guides`")

from matplotlib.text import Text  # noqa: E402
from matplotlib.transforms import Bbox  # noqa: E402

from benchmarks.quality import (  # noqa: E402
    cldr_mix,
    evidence_rows,
    evidence_tables,
    figure_parts,
    plan,
    recipes,
)

SIZE = plan.SIZES["cpu"]


def test_every_arm_has_a_name_for_readers():
    arms = plan.arms_of(SIZE)
    assert {*arms, *recipes.RANKS} <= figure_parts.NAMES.keys()
    names = [figure_parts.name_of(arm) for arm in arms.values()]
    assert len(set(names)) == len(names)
    assert "LoRA, rank 6" in names


@pytest.mark.slow
def test_a_table_for_readers_has_none_of_the_own_words():
    text = figure_parts.readable(evidence_tables.table(SIZE, "headline"))
    assert not {"`", "|"} & set(text)
    assert not {"arm", "cell", "cells"} & set(text.split())
    lines = text.splitlines()
    # The name of the last columns goes over several lines.
    names = [" ".join(line.split()) for line in lines[:4]]
    assert names[0].endswith("held-out, minus held-out, minus")
    assert names[1] == "LoRA, rank 24, LoRA, rank 24, all"
    (row,) = [line for line in lines if line.startswith("LoRA, rank 64 ")]
    assert row.split()[3:7] == ["all", "linear", "64", "393,216"]
    assert len(row) <= len(max(lines, key=len)) <= 200


def test_an_interval_is_over_seeds_and_cells():
    # Cells differ and seeds do not, and the other way round.
    cells = evidence_rows.interval({f"{i}": [float(i)] * 2 for i in range(20)})
    seeds = evidence_rows.interval({f"{i}": [0.0, 10.0] for i in range(20)})
    assert 4 < cells[0] < 9.5 < cells[1] < 15
    assert seeds == (0.0, 10.0)
    assert evidence_rows.interval({"one": [3.0]}) == (3.0, 3.0)


def test_a_group_counts_the_cells_that_it_keeps():
    task = cldr_mix.TASKS[0]
    known = [n for n in cldr_mix.Data().chosen_languages][:8]
    kinds = {language: cldr_mix.kind_of(task, language) for language in known}
    scores = {f"{task}/{language}": float(i) for i, language in enumerate(known)}
    results = [{"scores": {"true": scores}}]
    one = next(language for language in known if kinds[language] == "seen")
    group = evidence_rows.Group(results, keep=lambda t, language: language == one)
    place = cldr_mix.KINDS.index("seen")
    assert group.means()[place] == scores[f"{task}/{one}"]
    assert group.intervals()[place] == (scores[f"{task}/{one}"],) * 2
    others = [mean for i, mean in enumerate(group.means()) if i != place]
    assert others == [None] * 3


def test_labels_cover_neither_each_other_nor_points():
    figure, axes = figure_parts.page(width=7)
    axes.set(xlim=(0, 10), ylim=(0, 10), xlabel="x", ylabel="y")
    places = [(5, 5), (5.3, 5.1), (5.1, 4.8), (6, 5), (9.8, 9.8), (5, 5.4)]
    points = [(x, y, f"a long name, {i}") for i, (x, y) in enumerate(places)]
    spans = [(y - 2, min(y + 2, 10)) for _, y in places]
    figure_parts.label_points(axes, points, spans)
    figure.draw_without_rendering()
    plt.close(figure)
    # The box of the name alone, without the line to the point.
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    assert len(boxes) == len(points)
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    for place in places:
        x, y = axes.transData.transform(place)
        assert not any(box.contains(x, y) for box in boxes)
    for (x, _), ends in zip(places, spans):
        interval = Bbox(axes.transData.transform([(x, end) for end in ends]))
        assert not any(box.overlaps(interval) for box in boxes)
    frame = axes.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)


def test_bars_are_never_negative():
    low, high = figure_parts.bars([(2.0, (1.0, 4.0)), (3.0, (3.0 + 1e-9, 3.0))])
    assert np.allclose(low, [1, 0])
    assert np.allclose(high, [2, 0])
    assert min(*low, *high) >= 0
