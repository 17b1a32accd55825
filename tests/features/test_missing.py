"""All ways to write a missing value are absence, in every place that takes values."""

import numpy as np
import pytest
from helpers.gemma import randomize, to_numpy
from helpers.models import make_mlp, rows

import keras_flix
from keras_flix import Feature, FeatureSchema
from keras_flix.features.missing import is_missing

TASKS = ["qa", "parse"]
SCHEMA = FeatureSchema({"task": TASKS})


def pandas():
    reason = "pandas is not installed (the extra `test` brings it)"
    return pytest.importorskip("pandas", reason=reason)


MISSING = {
    "None": lambda: None,
    "-1": lambda: -1,
    "NaN": lambda: float("nan"),
    "NaN of numpy": lambda: np.float32("nan"),
    "NaT of numpy": lambda: np.datetime64("NaT"),
    "masked": lambda: np.ma.masked,
    "NA": lambda: pandas().NA,
    "NaT": lambda: pandas().NaT,
}
GAP = ["qa", None, "parse"]
COLUMNS = {
    "list with NaN": lambda: ["qa", float("nan"), "parse"],
    "floats with NaN": lambda: np.array([0, np.nan, 1]),
    "float16 with NaN": lambda: np.array([0, np.nan, 1], "float16"),
    "list of floats with NaN": lambda: [0.0, float("nan"), 1.0],
    "masked ids": lambda: np.ma.array([0, 1, 1], mask=[0, 1, 0]),
    "masked strings": lambda: np.ma.array(["qa", "qa", "parse"], mask=[0, 1, 0]),
    "masked in a list": lambda: [0, np.ma.masked, 1],
    "strings": lambda: pandas().Series(GAP),
    "objects": lambda: pandas().Series(GAP, dtype=object),
    "strings with NA": lambda: pandas().Series(GAP, dtype="string"),
    "categories": lambda: pandas().Categorical(GAP),
    "Int64 with NA": lambda: pandas().array([0, None, 1], "Int64"),
    "integers beside NaN": lambda: pandas().Series([0, None, 1]),
}


def encode(entry, **kwargs):
    return SCHEMA.encode({"task": entry}, **kwargs)["task"].tolist()


@pytest.mark.parametrize("name", MISSING)
def test_one_missing_value(name):
    missing = MISSING[name]()
    assert encode(missing) == [-1]
    assert encode(["qa", missing, "parse"]) == [0, -1, 1]
    assert encode(["qa", missing], unknown="absent") == [0, -1]
    assert encode([{"qa": 0.5}, missing]) == [[[0, 2**19]], [[-1, 0]]]
    several = FeatureSchema([Feature("task", TASKS, multiple=True)])
    ids = several.encode({"task": [["qa", missing], missing, ["parse"]]})["task"]
    assert ids.tolist() == [[0, -1], [-1, -1], [1, -1]]
    assert SCHEMA.encode_one({"task": missing})["task"].tolist() == [-1]
    if name != "-1":
        assert is_missing(missing)
        assert SCHEMA["task"].id_of(missing) == -1


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_with_a_missing_value(name):
    assert encode(COLUMNS[name]()) == [0, -1, 1]


def test_a_column_without_any():
    for entry in (np.full(2, np.nan), [float("nan")] * 2, [None, -1]):
        assert encode(entry) == [-1, -1]


def test_masked_weights_weigh_nothing():
    weights = np.ma.array([[0.5, 1.0], [2.0, 0.5]], mask=[[0, 1], [1, 0]])
    assert encode(weights) == [[[0, 2**19]], [[1, 2**19]]]


def test_what_is_no_whole_number_is_refused():
    for entry in ([0.0, 0.5, float("nan")], np.array([0.5, np.nan])):
        with pytest.raises(ValueError, match="task of dtype float"):
            encode(entry)
    with pytest.raises(ValueError, match=r"must be in \[0, 2\).*task=2"):
        encode(np.array([2.0, np.nan]))


def test_what_is_missing_is_no_value():
    with pytest.raises(ValueError) as error:
        Feature("task", ["qa", float("nan")])
    assert str(error.value) == (
        "The values of feature 'task' must be all strings or all integers. Received: "
        "values=['qa', nan]. Leave out what is missing: it is absence, and no value."
    )


@pytest.fixture(scope="module")
def model():
    model = make_mlp()
    keras_flix.enable_flix(model, {"task": TASKS}, rank=2, targets="all-linear")
    return randomize(model)


@pytest.fixture(scope="module")
def want(model):
    return to_numpy(model({**rows(3), "task": ["qa", None, "parse"]}))


@pytest.mark.parametrize("name", COLUMNS)
def test_a_model_takes_a_column_with_a_gap(model, want, name):
    inputs = {**rows(3), "task": COLUMNS[name]()}
    np.testing.assert_array_equal(to_numpy(model(inputs)), want)
    got = model.predict(inputs, verbose=0)
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("name", MISSING)
def test_a_model_takes_and_merges_what_is_missing(model, want, name):
    missing = MISSING[name]()
    alone = {"x": rows(3)["x"][1:2], "task": missing}
    np.testing.assert_allclose(to_numpy(model(alone)), want[1:2], atol=1e-6)
    base = keras_flix.merge_features(model, {"task": missing})
    np.testing.assert_allclose(to_numpy(base(alone["x"])), want[1:2], atol=1e-6)
