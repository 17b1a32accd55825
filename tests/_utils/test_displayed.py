"""How public objects show themselves: short, escaped, and never with their data."""

import inspect
from html.parser import HTMLParser
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers.models import make_mlp

import keras_flix
from keras_flix import analysis, evaluation, mixtures
from keras_flix._utils.displayed import Displayed, as_html, some
from keras_flix.models.growing.blend import Blend
from keras_flix.models.summary import FlixSummary, by_block

pytestmark = pytest.mark.short("torch")

SECRET, NUMBER = "the <b>secret</b> text", 1234.5678
VALUE = "<i>qa</i>"
FEATURES = {"task": [VALUE, "parse"], "language": [f"l{i}" for i in range(60)]}
OF_KERAS = (keras.layers.Layer, keras.optimizers.Optimizer, keras.callbacks.Callback)
"""Keras shows these by their names, or not at all."""
OTHERS = {keras_flix.FeatureDropout: "a rate and two flags"}


def public_classes():
    for name in keras_flix.__all__:
        value = getattr(keras_flix, name)
        inner = [value]
        if inspect.ismodule(value):
            inner = [getattr(value, one) for one in value.__all__]
        yield from (x for x in inner if inspect.isclass(x))


@pytest.fixture(scope="module")
def objects():
    """One of every class that holds or could print data, with a secret in it."""
    texts = {"prompts": [SECRET] * 3, "responses": [SECRET] * 3}
    columns = {**texts, "x": np.full((3, 8), NUMBER)}
    parts = [
        mixtures.Dataset({"task": VALUE, "language": v}, columns)
        for v in FEATURES["language"]
    ]
    model = keras_flix.enable_flix(make_mlp(), FEATURES, rank=2, targets="all-linear")
    for variable in model.trainable_variables:
        variable.assign(np.full(variable.shape, NUMBER))
    entries = {"task": VALUE, "language": ["l0", "l1", None]}
    contributions = analysis.feature_contributions(
        model, {"x": np.ones((3, 8)), **entries}, np.zeros((3, 4)), loss="mse"
    )
    norms = analysis.update_norms(model)
    similarity = analysis.value_similarity(model, "task")
    ranks = analysis.effective_rank(model)
    schema = keras_flix.FeatureSchema(FEATURES)
    entry = dict(feature="task", value=VALUE, always=False, file="f", rank=2, scale=1.0)
    found = [
        parts[0],
        mixtures.Mixture(parts, 2.0),
        evaluation.Scores(
            {"task": [VALUE, None]},
            [SECRET] * 2,
            [SECRET] * 2,
            {"exact_match": keras_flix.text_metrics.exact_match},
        ),
        evaluation.Comparison(1 / 3, -1 / 3, 2 / 3),
        norms,
        similarity,
        ranks,
        contributions,
        analysis.Analysis("m", norms, {"task": similarity}, ranks, contributions),
        schema,
        schema["language"],
        keras_flix.flix_summary(model, print_fn=None),
        keras_flix.base_fingerprint(model),
        Blend("task", "new", {VALUE: 0.75, "parse": 0.25}, [NUMBER] * 30, 0.9),
        keras_flix.serving.AdapterIndex(
            Path("exported"), "llama.cpp", schema, [entry] * 50, 2
        ),
        keras_flix.files.Adapters(
            "a.flix.safetensors", schema, None, ["head"], {"t": np.full(3, NUMBER)}
        ),
    ]
    return {type(x): x for x in found}


class Texts(HTMLParser):
    """The tags and texts of a page, which must be closed in order."""

    def __init__(self):
        super().__init__()
        self.tags, self.open, self.texts = set(), [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


TAGS = {"div", "p", "code", "table", "thead", "tbody", "tr", "th", "td"}


def test_no_public_object_prints_its_data(objects):
    for cls in public_classes():
        keras_own = issubclass(cls, OF_KERAS)
        assert cls in objects or cls in OTHERS or keras_own, f"{cls} needs a case here"
    for cls, shown in objects.items():
        assert isinstance(shown, Displayed), cls
        line = repr(shown)
        assert line.startswith(f"{cls.__name__}(") and line.endswith(")")
        assert len(line) <= 250 and "\n" not in line, line
        page = Texts()
        page.feed(shown._repr_html_())
        assert not page.open and page.tags <= TAGS, cls
        assert page.texts[0] == line
        for text in (line, str(shown), *page.texts):
            assert SECRET not in text and "1234" not in text and "secret" not in text
        assert len(shown._repr_html_()) < 15_000
    callback = keras_flix.callbacks.FeatureScores(objects[mixtures.Mixture])
    assert SECRET not in repr(callback)


def cells(shown):
    page = Texts()
    page.feed(shown._repr_html_())
    return page.texts[1:]


def test_lines(objects):
    lines = {cls.__name__: repr(shown) for cls, shown in objects.items()}
    features = "features ['task', 'language']"
    assert lines["Feature"] == (
        "Feature('language', ['l0', 'l1', 'l2', 'l3', 'l4', 'l5', ... 60 in all])"
    )
    assert lines["Scores"] == (
        "Scores(2 examples, features ['task'], metrics ['exact_match'])"
    )
    assert lines["Comparison"] == "Comparison(+0.3 [-0.3, +0.7])"
    assert lines["UpdateNorms"] == (
        "UpdateNorms(2 layers, 2 values of task, 60 values of language)"
    )
    assert lines["FeatureContributions"] == (
        f"FeatureContributions(3 examples, {features})"
    )
    assert lines["Analysis"] == f"Analysis('m', 2 layers, {features})"
    assert lines["FlixSummary"] == (
        "FlixSummary(2 layers, 2,976 of 3,058 parameters train, 97.32%)"
    )
    assert lines["Blend"] == "Blend(task 'new' of ['<i>qa</i>', 'parse'], 90% kept)"
    assert lines["AdapterIndex"] == (
        f"AdapterIndex(50 adapters for llama.cpp, {features})"
    )
    assert lines["Adapters"] == f"Adapters('a.flix.safetensors', 1 layer, {features})"
    rank = keras_flix.Feature("task", ["qa"], rank=2, multiple=True)
    assert repr(rank) == "Feature('task', ['qa'], rank=2, multiple=True)"


def test_tables(objects):
    shown = cells(objects[mixtures.Mixture])
    assert shown[:8] == ["task", "language", "examples", "drawn"] + [
        *(VALUE, "l0", "3", "1.7%")
    ]
    assert shown[-1] == "and 20 more"
    scores = cells(objects[evaluation.Scores])
    assert scores[:6] == ["task", "examples", "exact_match", VALUE, "1", "100.0"]
    assert scores[6] == "(none)"
    summary = cells(objects[FlixSummary])
    assert summary[:4] == ["feature", "parameters", "task", "96"]
    assert summary[6:] == ["block", "layer", "kernel"] + [
        *("hidden", "(8, 6)", "head", "(6, 4)")
    ]


def test_layers_by_block():
    inside = {"attention/query": (4, 8), "mlp_1": (8, 4)}
    layers = {"embed": (9, 4)}
    for i in range(12):
        layers |= {f"tower/block_{i}/{name}": shape for name, shape in inside.items()}
    layers["tower/block_12/mlp_1"] = (8, 4)
    layers["head_3"] = (4, 9)
    assert by_block(layers) == {
        "": {"embed": (9, 4), "head_3": (4, 9)},
        "tower/block_0 to tower/block_11 (12 blocks)": inside,
        "tower/block_12": {"mlp_1": (8, 4)},
    }


def test_short_names_of_long_values():
    assert some(["a" * 100]) == "['" + "a" * 36 + "...]"
    assert as_html("<", [("&", [["<a>"], ["<td>"]])]) == (
        "<div><p><code>&lt;</code></p><p>&amp;</p><table><thead><tr><th>&lt;a&gt;</th>"
        "</tr></thead><tbody><tr><td>&lt;td&gt;</td></tr></tbody></table></div>"
    )
