"""What figures show: the right labels at the right numbers, with room for them."""

import ast
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_flix import plots
from keras_flix.analysis import (
    EffectiveRank,
    FeatureContributions,
    UpdateNorms,
    ValueSimilarity,
    figure_page,
)

if keras.config.backend() != "torch":
    pytest.skip(
        "figures are of numpy arrays: nothing in them depends on the backend",
        allow_module_level=True,
    )
matplotlib = pytest.importorskip("matplotlib", reason="figures need matplotlib")
pytest.importorskip("scipy", reason="a dendrogram needs scipy")

GROUPS = {"sw": "Bantu", "zu": "Bantu", "de": "Germanic", "nl": "Germanic"}
LAYERS = tuple(f"backbone/block_{i}/{name}" for i in (0, 10) for name in ("q", "v"))


def similarity(values, vectors):
    vectors = np.asarray(vectors, "float64")
    norms = np.linalg.norm(vectors, axis=1)
    with np.errstate(invalid="ignore"):
        matrix = vectors @ vectors.T / np.outer(norms, norms)
    return ValueSimilarity("language", tuple(values), LAYERS, matrix)


FAMILIES = similarity(
    ["sw", "de", "new", "zu", "nl"],
    [[1, 0.1, 0], [0, 1, 0.2], [0, 0, 0], [1, 0, 0.1], [0, 1, 0.3]],
)


def texts(labels):
    return [label.get_text() for label in labels]


def colour_of(labels):
    return {x.get_text(): matplotlib.colors.to_hex(x.get_color()) for x in labels}


def cut_off_or_overlapping(figure):
    """Pairs of texts that touch, and texts that leave the page."""
    figure.draw_without_rendering()
    found = []
    page = figure.bbox
    boxes = [
        (text.get_text(), text.get_window_extent())
        for axes in figure.axes
        for text in [
            *(axes.get_xticklabels() + axes.get_yticklabels()),
            axes.xaxis.label,
            axes.yaxis.label,
        ]
        if text.get_text()
        and text.get_visible()
        # Ticks beyond the limits of their axes are not drawn.
        and (text in (axes.xaxis.label, axes.yaxis.label) or within(axes, text))
    ]
    boxes += [(t.get_text(), t.get_window_extent()) for t in figure.texts]
    for legend in [*figure.legends, *(a.get_legend() for a in figure.axes)]:
        if legend is not None:
            boxes.append(("legend", legend.get_window_extent()))
    for i, (name, box) in enumerate(boxes):
        if box.x0 < page.x0 or box.x1 > page.x1:
            found.append(f"{name!r} is cut off")
        if box.y0 < page.y0 or box.y1 > page.y1:
            found.append(f"{name!r} is cut off")
        for other, second in boxes[i + 1 :]:
            if box.overlaps(second):
                found.append(f"{name!r} overlaps {other!r}")
    return found


def within(axes, text):
    low, high = sorted(
        axes.get_ylim() if text in axes.get_yticklabels() else axes.get_xlim()
    )
    place = text.get_position()[1 if text in axes.get_yticklabels() else 0]
    return low <= place <= high


def test_similarity_is_ordered_by_its_dendrogram():
    figure = plots.plot_similarity(FAMILIES, GROUPS)
    heat, _, tree = figure.axes
    names = texts(heat.get_yticklabels())
    assert names == texts(heat.get_xticklabels())
    # Families side by side; a value without update last.
    assert names[4] == "new"
    assert {frozenset(names[:2]), frozenset(names[2:4])} == {
        frozenset(["sw", "zu"]),
        frozenset(["de", "nl"]),
    }
    order = [FAMILIES.values.index(name) for name in names]
    shown = heat.images[0].get_array()
    expected = FAMILIES.matrix[np.ix_(order, order)]
    np.testing.assert_array_equal(shown.filled(np.nan), expected)
    others = expected[~np.eye(5, dtype=bool)]
    highest = np.nanmax(np.abs(others))
    assert highest < 1.0 and heat.images[0].get_clim() == (-highest, highest)
    limited = plots.plot_similarity(FAMILIES, limit=0.5)
    assert limited.axes[0].images[0].get_clim() == (-0.5, 0.5)
    assert figure.texts[0].get_text() == (
        "Similarity of language values: cosine of their updates in 4 layers"
    )
    # Two leaves join at 1 - cosine, at the height of their two rows.
    joints = [(line.get_xdata(), line.get_ydata()) for line in tree.lines]
    assert len(joints) == 3
    for pair in (("sw", "zu"), ("de", "nl")):
        i, k = (FAMILIES.values.index(v) for v in pair)
        rows = sorted(names.index(v) for v in pair)
        (at,) = [x for x, y in joints if sorted({*map(float, y)}) == rows]
        assert max(at) == pytest.approx(1 - FAMILIES.matrix[i, k])
    assert tree.get_ylim() == heat.get_ylim()
    boxes = [axes.get_position() for axes in (heat, tree)]
    assert (boxes[0].y0, boxes[0].y1) == (boxes[1].y0, boxes[1].y1)


def test_groups_colour_labels():
    heat, *_ = plots.plot_similarity(FAMILIES, GROUPS).axes
    for labels in (heat.get_xticklabels(), heat.get_yticklabels()):
        colours = colour_of(labels)
        assert colours["sw"] == colours["zu"] != colours["de"] == colours["nl"]
        assert colours["new"] == "#000000"
    legend = plots.plot_similarity(FAMILIES, GROUPS).legends[0]
    assert texts(legend.get_texts()) == ["Bantu", "Germanic"]
    swatches = [
        matplotlib.colors.to_hex(p.get_facecolor()) for p in legend.get_patches()
    ]
    assert swatches == [colours["sw"], colours["de"]]
    assert not plots.plot_similarity(FAMILIES).legends
    many = {f"v{i}": f"g{i}" for i in range(30)}
    assert len(set(figure_page._colours(many, list(many)).values())) == 30


@pytest.mark.parametrize("vectors", [[[0], [0]], [[0], [1]], [[1], [1]], [[1], [-1]]])
def test_similarity_of_few_directions(vectors):
    figure = plots.plot_similarity(similarity(["a", "b"], vectors))
    names = texts(figure.axes[0].get_yticklabels())
    assert sorted(names) == ["a", "b"]
    if vectors == [[0], [1]]:
        assert names == ["b", "a"]
    assert len(figure.axes[2].lines) == int(all(map(any, vectors)))
    figure.draw_without_rendering()


def make_norms(count=3, layers=LAYERS):
    values = tuple(f"value {i}" for i in range(count))
    norms = np.arange(count * len(layers), dtype="float64").reshape(count, -1)
    kernels = np.full(len(layers), 2.0)
    return UpdateNorms(
        tuple(layers), {"language": values}, {"language": norms}, kernels
    )


def test_norms():
    norms = make_norms()
    figure = plots.plot_norms(norms, "language")
    axes, bar = figure.axes
    assert texts(axes.get_yticklabels()) == ["value 0", "value 1", "value 2"]
    short = ["block_0/q", "block_0/v", "block_10/q", "block_10/v"]
    assert texts(axes.get_xticklabels()) == short
    np.testing.assert_array_equal(axes.images[0].get_array(), norms.norms["language"])
    assert axes.images[0].get_clim() == (0.0, 11.0)
    assert bar.get_ylabel() == "Frobenius norm"
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("language", "layer")
    axes, bar = plots.plot_norms(norms, "language", relative=True).axes
    shown = axes.images[0].get_array()
    np.testing.assert_array_equal(shown, norms.norms["language"] / 2)
    assert bar.get_ylabel() == "norm over that of the kernel"
    text = r"A figure must name one of the features \['language'\]. Received: 'lang'"
    with pytest.raises(ValueError, match=text):
        plots.plot_norms(norms, "lang")


def test_ranks():
    used = np.array([[0.0, 0.5, 1.0, np.nan], [1.0, 1.0, 0.25, 0.5]])
    ranks = EffectiveRank(
        layers=LAYERS,
        values={"task": ("qa", "parse")},
        allotted={"task": np.array([4, 4])},
        energy=0.99,
        singular_values={},
        energy_ranks={"task": 4 * used},
        entropy_ranks={},
    )
    figure = plots.plot_ranks(ranks, "task")
    axes, _ = figure.axes
    assert texts(axes.get_yticklabels()) == ["qa", "parse"]
    np.testing.assert_array_equal(axes.images[0].get_array().filled(np.nan), used)
    assert axes.images[0].get_clim() == (0.0, 1.0)
    assert "holds 99% of a task update" in figure.texts[0].get_text()


CONTRIBUTIONS = FeatureContributions(
    full=np.array([1.0, 1.0, np.nan]),
    base=np.array([3.0, 3.0, np.nan]),
    without={"task": np.array([1.5, 2.5, np.nan]), "shared": np.array([0.0, 1.0, 2.0])},
    alone={"task": np.array([2.0, 1.0, np.nan]), "shared": np.array([4.0, 4.0, 4.0])},
    values={"task": ("qa", None, "qa"), "shared": ("shared",) * 3},
)


def test_contributions():
    axes = plots.plot_contributions(CONTRIBUTIONS).axes[0]
    assert texts(axes.get_yticklabels()) == ["task", "shared"]
    left, over = ([bar.get_width() for bar in bars] for bars in axes.containers)
    assert left == [-1.0, 0.5] and over == [-1.5, 1.0]
    assert axes.get_ylabel() == "feature"
    # One standard error of two examples to both sides, as far as there are two.
    lines = [line.get_segments() for line in axes.collections]
    spans = [[float(x1 - x0) for (x0, _), (x1, _) in pair] for pair in lines]
    assert spans == [[1.0, 1.0], [1.0, 0.0]]
    assert texts(axes.get_legend().get_texts()) == [
        "all features, over all but this one",
        "this one alone, over the base",
    ]
    axes = plots.plot_contributions(CONTRIBUTIONS, "task", {"qa": "questions"}).axes[0]
    # By what they lower the loss, as the bars are.
    assert texts(axes.get_yticklabels()) == ["(none)", "qa"]
    left, over = ([bar.get_width() for bar in bars] for bars in axes.containers)
    assert left == [-1.5, -0.5] and over == [-2.0, -1.0]
    assert axes.get_ylabel() == "task"
    assert all(
        float(x0) == float(x1)
        for line in axes.collections
        for (x0, _), (x1, _) in line.get_segments()
    )
    centres = [bar.get_y() + bar.get_height() / 2 for bar in axes.containers[0]]
    assert [round(centre) for centre in centres] == [0, 1]
    assert colour_of(axes.get_yticklabels())["qa"] != "#000000"


def large(count):
    values = [f"lang_{i}" for i in range(count)]
    vectors = np.random.default_rng(0).normal(size=(count, 8))
    return similarity(values, vectors), {
        v: f"family {i % 14}" for i, v in enumerate(values)
    }


def test_no_labels_overlap():
    similar, groups = large(40)
    many = FeatureContributions(
        *(np.arange(40.0), np.zeros(40), {"language": np.ones(40)}),
        *({"language": np.ones(40)}, {"language": similar.values}),
    )
    layers = [f"gemma/decoder_block_{i}/attention/attention_output" for i in range(40)]
    for figure in (
        plots.plot_similarity(similar, groups),
        plots.plot_similarity(FAMILIES),
        plots.plot_norms(make_norms(40, layers), "language", groups={"value 0": "x"}),
        plots.plot_norms(make_norms(1, layers[:1]), "language", relative=True),
        plots.plot_contributions(many, "language", groups),
        plots.plot_contributions(CONTRIBUTIONS),
    ):
        assert cut_off_or_overlapping(figure) == []


def test_many_values_get_thinner_labels():
    similar, groups = large(512)
    figure = plots.plot_similarity(similar, groups)
    heat = figure.axes[0]
    labels = heat.get_yticklabels()
    assert len(labels) == 128 <= figure_page.MAX_LABELS
    # Each is at its own row.
    shown = heat.images[0].get_array()
    for label, place in list(zip(texts(labels), heat.get_yticks()))[::40]:
        i = similar.values.index(label)
        row = np.sort(similar.matrix[i])
        np.testing.assert_array_equal(np.sort(shown[int(place)]), row)
    assert max(figure.get_size_inches()) < 60


def test_names_that_mean_something_to_matplotlib():
    norms = make_norms(2)
    odd = UpdateNorms(LAYERS, {"language": ("$a_1$", "_b")}, norms.norms, np.ones(4))
    figure = plots.plot_norms(odd, "language", groups={"$a_1$": "a $"})
    figure.draw_without_rendering()
    assert texts(figure.axes[0].get_yticklabels()) == [r"\$a_1\$", "_b"]
    assert texts(figure.legends[0].get_texts()) == [r"a \$"]


def test_pyplot_is_not_touched(tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot", reason="it is what is not used")
    figure = plots.plot_similarity(FAMILIES)
    assert isinstance(figure, matplotlib.figure.Figure)
    assert pyplot.get_fignums() == []
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["matplotlib", "scipy"])
def test_optional_packages(name, monkeypatch):
    for module in list(sys.modules):
        if module.partition(".")[0] == name:
            monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError) as error:
        plots.plot_similarity(FAMILIES)
    assert f"A figure needs the package {name}, which is not installed" in str(
        error.value
    )
    assert "pip install 'keras-flix[plots]'" in str(error.value)


def test_the_package_imports_without_them():
    for path in Path(plots.__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in getattr(node, "names", [])]
            names.append(getattr(node, "module", None) or "")
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                tops = {name.partition(".")[0] for name in names}
                assert not tops & {"matplotlib", "scipy", "tensorboard"}, path
