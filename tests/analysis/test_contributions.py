"""What axes do to the loss, against models whose tables are really gone."""

import contextlib

import keras
import numpy as np
import pytest
from helpers.gemma import FEATURES, randomize, to_numpy
from helpers.models import make_mlp, rows

import keras_flix
from keras_flix.analysis import FeatureContributions, feature_contributions
from keras_flix.mixtures import Mixture

pytestmark = pytest.mark.eager

SCHEMA = [
    keras_flix.Feature("task", ["qa", "parse"]),
    keras_flix.Feature("domain", ["news", "web", "chat"], multiple=True),
    keras_flix.Feature("shared", always=True),
]
INPUTS = {
    **rows(5),
    "task": ["qa", None, "parse", "qa", "qa"],
    "domain": [["news", "web"], [], ["chat"], ["news"], ["web"]],
}
ABSENT = {"task": None, "domain": [[]] * 5}
TARGETS = np.random.default_rng(1).normal(size=(5, 4)).astype("float32")


def refusal(make):
    with pytest.raises(ValueError) as error:
        make()
    return str(error.value)


def adapted():
    model = keras_flix.enable_flix(make_mlp(), SCHEMA, rank=2, targets="all-linear")
    model.compile(loss="mse")
    return randomize(model)


def mse(model, inputs):
    return ((model.predict_on_batch(inputs) - TARGETS) ** 2).mean(axis=1)


@contextlib.contextmanager
def gone(model, *axes):
    """Takes the updates of axes away for a block."""
    tables = [
        model.get_layer(layer)._tables.variables[axis][1]
        for layer in ("hidden", "head")
        for axis in axes
    ]
    before = [to_numpy(table).copy() for table in tables]
    for table in tables:
        table.assign(np.zeros(table.shape))
    yield
    for table, value in zip(tables, before):
        table.assign(value)


def test_losses_without_each_feature_and_with_it_alone():
    model = adapted()
    found = feature_contributions(model, INPUTS, TARGETS, batch_size=2)
    close = {"rtol": 1e-5, "atol": 1e-7}
    np.testing.assert_allclose(found.full, mse(model, INPUTS), **close)
    records = [dict(zip(INPUTS, row)) for row in zip(*INPUTS.values())]
    again = feature_contributions(model, records, TARGETS, batch_size=2)
    np.testing.assert_array_equal(again.full, found.full)
    with keras_flix.adapters_disabled(model):
        np.testing.assert_allclose(found.base, mse(model, rows(5)), **close)
    for axis in ("task", "domain"):
        without = {**INPUTS, axis: ABSENT[axis]}
        np.testing.assert_allclose(found.without[axis], mse(model, without), **close)
    names = {"task", "domain", "shared"}
    for axis in names:
        with gone(model, *(names - {axis})):
            np.testing.assert_allclose(found.alone[axis], mse(model, INPUTS), **close)
    with gone(model, "shared"):
        np.testing.assert_allclose(found.without["shared"], mse(model, INPUTS), **close)
    assert np.abs(found.leave_one_out["shared"]).min() > 1e-4
    # An example without a task: nothing to leave out.
    assert found.leave_one_out["task"][1] == 0.0 == found.over_base["task"][1]


def test_a_mixture():
    table = {**INPUTS, "target": TARGETS, "weight": np.arange(1.0, 6.0)}
    mixture = Mixture(table, features=["task", "domain"])
    model, inputs = adapted(), mixture.inputs()
    y, weight = inputs.pop("target"), inputs.pop("weight")
    expected = feature_contributions(model, inputs, y, weight)
    found = feature_contributions(model, mixture, "target", "weight")
    np.testing.assert_array_equal(found.full, expected.full)
    assert found.values == expected.values


def test_the_model_is_not_changed():
    model = adapted()
    before = model.predict(INPUTS, verbose=0)
    weights = [to_numpy(v).copy() for v in model.variables]
    functions, kind = model.predict_function, type(model)
    paths = [v.path for v in model.variables]
    layers = [id(layer) for layer in model._flatten_layers()]
    feature_contributions(model, INPUTS, TARGETS)
    assert model.predict_function is functions and type(model) is kind
    assert [v.path for v in model.variables] == paths
    assert [id(layer) for layer in model._flatten_layers()] == layers
    for variable, weight in zip(model.variables, weights):
        np.testing.assert_array_equal(to_numpy(variable), weight)
    np.testing.assert_array_equal(model.predict(INPUTS, verbose=0), before)


def test_only_a_feature_that_always_acts():
    schema = [keras_flix.Feature("shared", always=True)]
    model = keras_flix.enable_flix(make_mlp(), schema, targets=["head"])
    randomize(model)
    found = feature_contributions(model, rows(5), TARGETS, loss="mse")
    np.testing.assert_allclose(found.full, mse(model, rows(5)), rtol=1e-5)
    with keras_flix.adapters_disabled(model):
        np.testing.assert_allclose(found.base, mse(model, rows(5)), rtol=1e-5)
    np.testing.assert_array_equal(found.without["shared"], found.base)
    np.testing.assert_array_equal(found.alone["shared"], found.full)


def test_values_with_weights():
    model = adapted()
    inputs = {**INPUTS, "domain": [{"news": 0.25, "web": 1.5}] * 5}
    found = feature_contributions(model, inputs, TARGETS)
    np.testing.assert_allclose(found.full, mse(model, inputs), rtol=1e-5)
    with gone(model, "domain"):
        without = mse(model, inputs)
    np.testing.assert_allclose(found.without["domain"], without, rtol=1e-5)
    assert found.values["domain"][0] == ("news", "web")


def test_by_value():
    found = FeatureContributions(
        full=np.array([1.0, 2.0, np.nan, 4.0]),
        base=np.array([5.0, 5.0, np.nan, 5.0]),
        without={"task": np.array([2.0, 2.0, np.nan, 8.0])},
        alone={"task": np.array([4.0, 4.0, np.nan, 1.0])},
        values={"task": (("qa", "parse"), (), ("qa",), ("qa",))},
    )
    assert found.means() == {
        "task": {"leave_one_out": pytest.approx(-5 / 3), "over_base": -2.0}
    }
    assert found.by_value("task") == {
        "qa": {"examples": 2, "leave_one_out": -2.5, "over_base": -2.5},
        "parse": {"examples": 1, "leave_one_out": -1.0, "over_base": -1.0},
        None: {"examples": 1, "leave_one_out": 0.0, "over_base": -1.0},
    }
    lines = [line.split() for line in found.table("task").splitlines()]
    assert lines[1:] == [
        ["qa", "2", "-2.5", "-2.5"],
        ["parse", "1", "-1", "-1"],
        ["(none)", "1", "0", "-1"],
    ]
    lines = [line.split() for line in found.table().splitlines()]
    assert lines[0][0] == "feature"
    assert lines[1:] == [["task", "-1.67", "-2"], ["all", "features", "-2.67"]]
    assert found.to_dict()["full"] == [1.0, 2.0, None, 4.0]
    assert "'tasks'" in refusal(lambda: found.by_value("tasks"))


def test_weights_of_targets():
    model = adapted()

    def squares(y, outputs):
        return (outputs - y) ** 2

    weights = np.zeros((5, 4))
    weights[0], weights[1, 2] = [1, 0, 3, 0], 2
    found = feature_contributions(model, INPUTS, TARGETS, weights, loss=squares)
    errors = (model.predict_on_batch(INPUTS) - TARGETS) ** 2
    np.testing.assert_allclose(
        found.full, [*(errors[:2] * weights[:2]).sum(1) / [4, 2], *[np.nan] * 3], 1e-5
    )
    assert found.by_value("task").keys() == {"qa", None}
    message = refusal(
        lambda: feature_contributions(model, INPUTS, TARGETS, np.ones(5), loss=squares)
    )
    assert "shape (5,) and losses of shape (5, 4). Pass one weight" in message


def test_refusals():
    model = adapted()
    message = refusal(lambda: feature_contributions(model, INPUTS))
    assert "need targets. Received: y=None. Pass `y`" in message
    missing = {**rows(5), "task": "qa"}
    message = refusal(lambda: feature_contributions(model, missing, TARGETS))
    assert "domain" in message
    model.compile(loss=["mse"])
    message = refusal(lambda: feature_contributions(model, INPUTS, TARGETS))
    assert "`loss` must be a Keras loss" in message and "['mse']" in message
    mean = {"loss": lambda y, outputs: (outputs[0] - y[0]) ** 2}
    message = refusal(lambda: feature_contributions(model, INPUTS, TARGETS, **mean))
    assert "losses of shape (4,) for 5 examples" in message
    message = refusal(lambda: feature_contributions(make_mlp(), INPUTS, TARGETS))
    assert "without adapters" in message


def test_causal_lm_in_nats_per_token_of_the_response(make_gemma):
    gemma = randomize(
        keras_flix.enable_flix(make_gemma(num_layers=1), FEATURES, rank=2)
    )
    data = {
        "prompts": ["the quick", "dog", "qa en"],
        "responses": ["brown fox", "jumps over the lazy dog", "sw"],
        "task": ["qa", "parse", None],
        "language": ["en", "sw", "yo"],
    }
    found = feature_contributions(gemma, data, batch_size=2)
    x, y, weights = (
        {name: to_numpy(v) for name, v in part.items()}
        if isinstance(part, dict)
        else to_numpy(part)
        for part in gemma.preprocess_samples(data)
    )

    def cross_entropy(x):
        logits = keras.Model.predict_on_batch(gemma, x).astype("float64")
        logits -= logits.max(-1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
        losses = -np.take_along_axis(logits, y[..., None], -1)[..., 0]
        return (losses * weights).sum(1) / weights.sum(1)

    np.testing.assert_allclose(found.full, cross_entropy(x), rtol=1e-5)
    without = {**x, "language": np.full(3, -1, "int32")}
    np.testing.assert_allclose(
        found.without["language"], cross_entropy(without), rtol=1e-5
    )
    assert found.values == {
        "task": ("qa", "parse", None),
        "language": ("en", "sw", "yo"),
    }
