"""What is said of updates, against the same from whole kernels in float64."""

import base64
import html.parser
import json
import os

import keras
import numpy as np
import pytest
from helpers.gemma import randomize, to_numpy
from helpers.models import make_mlp, rows

import keras_flix
from keras_flix import analysis
from keras_flix.files.adapter_file import read_adapters

SCHEMA = [
    keras_flix.Feature("task", ["qa", "parse"], rank={"qa": 1, "parse": 3}, alpha=2.0),
    keras_flix.Feature("language", ["en", "sw", "yo"], rank=2),
    keras_flix.Feature("domain", ["news", "web", "<b>"], rank=2, multiple=True),
    keras_flix.Feature("shared", always=True, rank=2),
]
LAYERS = ("hidden", "head")


def refusal(make):
    with pytest.raises(ValueError) as error:
        make()
    return str(error.value)


def adapted(train=True):
    model = keras_flix.enable_flix(make_mlp(), SCHEMA, targets="all-linear")
    model.compile(loss="mse")
    return zero_beyond_ranks(randomize(model)) if train else model


def zero_beyond_ranks(model):
    """As training leaves them: a lower rank has zeros in both tables."""
    for name in LAYERS:
        a, b = model.get_layer(name)._tables.variables["task"]
        for variable, beyond in ((a, np.s_[0, :, 1:]), (b, np.s_[0, 1:])):
            table = to_numpy(variable).copy()
            table[beyond] = 0.0
            variable.assign(table)
    return model


def tables_of(model, layer, axis):
    pair = model.get_layer(layer)._tables.variables[axis]
    return [to_numpy(variable).copy() for variable in pair]


def set_table(model, layer, axis, part, value):
    model.get_layer(layer)._tables.variables[axis]["ab".index(part)].assign(value)


def dense(model, layer, axis, value):
    """The update of one value, made whole, in float64."""
    a, b = tables_of(model, layer, axis)
    feature = next(f for f in SCHEMA if f.name == axis)
    i = feature.values.index(value)
    scale = 1.0
    if feature.alpha is not None:
        scale = feature.alpha / feature.ranks[i]
    return scale * a[i].astype("float64") @ b[i].astype("float64")


def every_value():
    return [(f.name, i, v) for f in SCHEMA for i, v in enumerate(f.values)]


def test_whole_updates_are_those_of_the_layers():
    model = adapted()
    none = {"task": None, "language": None, "domain": None}
    shared = dense(model, "head", "shared", "shared")
    for axis, value in (("task", "qa"), ("language", "yo"), ("domain", "web")):
        delta = model.get_layer("head").kernel_delta({**none, axis: value})
        own = dense(model, "head", axis, value)
        np.testing.assert_allclose(to_numpy(delta), own + shared, atol=1e-6)


def test_norms():
    model = adapted()
    norms = analysis.update_norms(model)
    assert norms.layers == LAYERS
    assert norms.values["language"] == ("en", "sw", "yo")
    for axis, i, value in every_value():
        expected = [np.linalg.norm(dense(model, x, axis, value)) for x in LAYERS]
        np.testing.assert_allclose(norms.norms[axis][i], expected, rtol=1e-12)
        total = np.linalg.norm(expected)
        np.testing.assert_allclose(norms.total[axis][i], total, rtol=1e-12)
    kernels = [np.linalg.norm(to_numpy(model.get_layer(x).kernel)) for x in LAYERS]
    np.testing.assert_allclose(norms.kernel_norms, kernels, rtol=1e-6)
    relative = norms.norms["task"] / norms.kernel_norms
    np.testing.assert_array_equal(norms.relative["task"], relative)


def test_norms_keep_digits_where_factors_cancel():
    """Gram matrices of both factors would lose half of the digits."""
    model = adapted()
    a, b = np.ones((3, 8, 2)), np.ones((3, 2, 6))
    b[:, 1] = -1.0 - 1e-7
    set_table(model, "hidden", "language", "a", a)
    set_table(model, "hidden", "language", "b", b)
    expected = np.linalg.norm(dense(model, "hidden", "language", "en"))
    assert 0 < expected < 1e-5
    found = analysis.update_norms(model).norms["language"][0, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-8)


@pytest.mark.parametrize("axis", ["task", "language", "shared"])
@pytest.mark.parametrize("layers", [None, ["head"], ["h.*"]])
@pytest.mark.parametrize("block", [1, 2**23])
def test_similarity(axis, layers, block, monkeypatch):
    monkeypatch.setattr("keras_flix.layers.factors.BLOCK", block)
    model = adapted()
    found = analysis.value_similarity(model, axis, layers)
    assert found.layers == (("head",) if layers == ["head"] else LAYERS)
    flat = [
        np.concatenate([dense(model, x, axis, v).ravel() for x in found.layers])
        for v in found.values
    ]
    unit = [x / np.linalg.norm(x) for x in flat]
    np.testing.assert_allclose(found.matrix, np.inner(unit, unit), atol=1e-12)
    assert np.all(np.diag(found.matrix) == 1.0)
    np.testing.assert_array_equal(found.matrix, found.matrix.T)


def test_similar_and_opposite_values():
    model = adapted()
    for layer in LAYERS:
        a, b = (to_numpy(v) for v in model.get_layer(layer)._tables.variables["domain"])
        set_table(model, layer, "domain", "a", a[[0, 0, 0]] * [[[1]], [[3]], [[-2]]])
        set_table(model, layer, "domain", "b", b[[0, 0, 0]])
    found = analysis.value_similarity(model, "domain")
    signs = [[1, 1, -1], [1, 1, -1], [-1, -1, 1]]
    np.testing.assert_allclose(found.matrix, signs, atol=1e-12)
    assert np.abs(found.matrix).max() <= 1.0
    lines = found.table().splitlines()
    assert [line.split() for line in lines[:2]] == [
        ["domain", "nearest", "cosine"],
        ["news", "web", "1.00"],
    ]


def test_values_without_update_have_no_direction():
    model = adapted()
    _, b = tables_of(model, "head", "language")
    b[1] = 0.0
    set_table(model, "head", "language", "b", b)
    only_head = analysis.value_similarity(model, "language", ["head"]).matrix
    unknown = np.isnan(only_head)
    assert unknown[1].all() and unknown[:, 1].all() and unknown.sum() == 5
    # In the other layer it has one.
    assert not np.isnan(analysis.value_similarity(model, "language").matrix).any()
    fresh = adapted(train=False)
    similarity = analysis.value_similarity(fresh, "language")
    assert np.isnan(similarity.matrix).all()
    assert similarity.table().splitlines()[1].split() == ["en", "-", "-"]
    assert not analysis.update_norms(fresh).norms["language"].any()
    assert not analysis.effective_rank(fresh).energy_ranks["language"].any()
    assert not analysis.effective_rank(fresh).entropy_ranks["language"].any()


def test_a_broken_table_is_no_other_value():
    model = adapted()
    before = analysis.update_norms(model).norms["language"]
    a, _ = tables_of(model, "head", "language")
    a[2, 0, 0] = np.nan
    set_table(model, "head", "language", "a", a)
    norms = analysis.update_norms(model)
    assert np.argwhere(np.isnan(norms.norms["language"])).tolist() == [[2, 1]]
    np.testing.assert_array_equal(norms.norms["language"][:2], before[:2])
    ranks = analysis.effective_rank(model)
    assert np.argwhere(np.isnan(ranks.used["language"])).tolist() == [[2, 1]]
    similarity = analysis.value_similarity(model, "language").matrix
    assert np.isnan(similarity).sum() == 5
    assert norms.to_dict()["norms"]["language"][2][1] is None
    assert json.loads(json.dumps(norms.to_dict()))["layers"] == list(LAYERS)
    assert "nan" not in norms.table("language")


def test_ranks():
    model = adapted()
    ranks = analysis.effective_rank(model, energy=0.9)
    assert ranks.allotted["task"].tolist() == [1, 3]
    for axis, i, value in every_value():
        for column, layer in enumerate(LAYERS):
            full = np.linalg.svd(dense(model, layer, axis, value), compute_uv=False)
            found = ranks.singular_values[axis][column][i]
            np.testing.assert_allclose(found, full[: len(found)], atol=1e-12)
            share = np.cumsum(full**2) / (full**2).sum()
            count = int(np.argmax(share >= 0.9)) + 1
            assert ranks.energy_ranks[axis][i, column] == count
            p = full[full > 1e-12] / full.sum()
            entropy = np.exp(-(p * np.log(p)).sum())
            np.testing.assert_allclose(ranks.entropy_ranks[axis][i, column], entropy)
    np.testing.assert_array_equal(ranks.energy_ranks["task"][0], 1.0)
    np.testing.assert_array_equal(ranks.used["task"][0], 1.0)
    np.testing.assert_array_equal(
        ranks.used["task"][1], ranks.energy_ranks["task"][1] / 3
    )
    assert ranks.table("task").splitlines()[0].split() == [
        "task", "rank", "for", "90%", "by", "entropy", "used",
    ]  # fmt: skip


def test_known_ranks():
    model = adapted()
    # Two singular values, 3 and 1: shares of the energy 0.9 and 0.1.
    a, b = np.zeros((3, 8, 2)), np.zeros((3, 2, 6))
    a[:, 0, 0], a[:, 1, 1] = 3.0, 1.0
    b[:, 0, 0] = b[:, 1, 1] = 1.0
    b[2, 1, 1] = 0.0
    set_table(model, "hidden", "language", "a", a)
    set_table(model, "hidden", "language", "b", b)
    for energy, expected in ((0.89, 1), (0.91, 2), (1.0, 2)):
        ranks = analysis.effective_rank(model, energy)
        assert ranks.energy_ranks["language"][:, 0].tolist() == [expected] * 2 + [1]
    entropy = np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    found = ranks.entropy_ranks["language"][:, 0]
    np.testing.assert_allclose(found, [entropy, entropy, 1.0])


def test_many_values():
    names = [f"l{i}" for i in range(300)]
    model = keras_flix.enable_flix(
        make_mlp(), {"language": names}, rank=2, targets=["hidden"]
    )
    randomize(model)
    found = analysis.value_similarity(model, "language").matrix
    a, b = (
        to_numpy(v) for v in model.get_layer("hidden")._tables.variables["language"]
    )
    whole = (a.astype("float64") @ b.astype("float64")).reshape(300, -1)
    whole /= np.linalg.norm(whole, axis=1, keepdims=True)
    np.testing.assert_allclose(found, whole @ whole.T, atol=1e-12)


def test_files_are_read_without_a_model(tmp_path):
    model = adapted()
    keras_flix.save_adapters(model, tmp_path / "a.flix.safetensors")
    adapters = read_adapters(tmp_path / "a.flix.safetensors")
    own, read = analysis.analyze(model), analysis.analyze(adapters)
    assert np.isnan(read.norms.kernel_norms).all()
    for axis in own.norms.norms:
        np.testing.assert_array_equal(read.norms.norms[axis], own.norms.norms[axis])
    for axis in own.similarities:
        np.testing.assert_array_equal(
            read.similarities[axis].matrix, own.similarities[axis].matrix
        )
    message = refusal(lambda: analysis.analyze(adapters, data=rows()))
    assert "Contributions to a loss need a model. Received: `data`" in message


def test_quantized_kernels_have_no_norm():
    model = make_mlp()
    model.quantize("int8")
    keras_flix.enable_flix(model, {"task": ["qa"]}, targets=["head"])
    norms = analysis.update_norms(randomize(model))
    assert np.isnan(norms.kernel_norms).all()
    assert norms.table("task").splitlines()[1].split()[2] == "-"


def test_refusals():
    model = adapted()
    message = refusal(lambda: analysis.value_similarity(model, "langauge"))
    assert "Received: 'langauge'" in message and "nearest is 'language'" in message
    message = refusal(lambda: analysis.value_similarity(model, "task", ["heads"]))
    assert (
        "Received: 'heads', which matches none of 2. The nearest is 'head'" in message
    )
    message = refusal(lambda: analysis.effective_rank(model, energy=99))
    assert "`energy` must be a share in (0, 1]. Received: energy=99." in message
    assert "without adapters" in refusal(lambda: analysis.update_norms(make_mlp()))
    assert "'tasks'" in refusal(lambda: analysis.update_norms(model).table("tasks"))


# The report. -----------------------------------------------------------------


on_one_backend = pytest.mark.skipif(
    keras.config.backend() != "torch", reason="a page is made of numpy arrays"
)


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.images = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.images += [v for k, v in attributes if k == "src"]

    def handle_data(self, data):
        self.texts.append(data)


@on_one_backend
def test_report(tmp_path):
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    model = adapted()
    data = (
        {**rows(3), "task": "qa", "language": "sw", "domain": [["<b>"]] * 3},
        np.zeros((3, 4)),
    )
    path = tmp_path / "page.html"
    path.write_text("an earlier one")
    groups = {"language": {"en": "A & B", "sw": "C"}}
    found = analysis.analyze(model, path, data, groups=groups)
    page = Page(path.read_text("utf-8"))
    assert not {"script", "link", "b", "iframe"} & set(page.tags)
    # Contributions, and similarity, norms, ranks and contributions of three axes;
    # the axis of one value has norms and ranks.
    assert len(page.images) == 1 + 3 * 4 + 2
    for source in page.images:
        kind, _, image = source.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(image).startswith(b"\x89PNG")
    text = "".join(page.texts)
    for table in (found.norms.table("domain"), found.ranks.table("domain")):
        assert table in text
    assert found.contributions.table() in text
    assert os.listdir(tmp_path) == ["page.html"]
    assert json.loads(json.dumps(found.to_dict()))["name"] == model.name


@on_one_backend
def test_a_report_is_there_as_a_whole_or_not(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    path = tmp_path / "page.html"
    path.write_text("an earlier one")
    model = adapted()

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        analysis.analyze(model, path)
    assert path.read_text() == "an earlier one"
    assert os.listdir(tmp_path) == ["page.html"]
    message = refusal(lambda: analysis.analyze(model, tmp_path / "none" / "page.html"))
    assert "must be in an existing folder. Received: path=" in message
    groups = {"langauge": {"en": "Germanic"}}
    found = analysis.analyze(model)
    message = refusal(lambda: analysis.report(found, path, groups=groups))
    assert "`groups` must name one of the features ['task', 'language', " in message
