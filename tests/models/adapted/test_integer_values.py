"""On a feature of integer values, integers are values; ids only where they say so."""

import warnings

import keras
import numpy as np
import pytest
from helpers.gemma import randomize, to_numpy
from helpers.models import make_mlp, rows

import keras_flix
from keras_flix import Feature

pytestmark = pytest.mark.filterwarnings("ignore:Integers of feature")

BACKEND = keras.config.backend()
# As ids, [1, 2, 1, 3] would be those of 2, 1, 2 and of none.
VALUES = [3, 2, 1]
CLUSTERS = [1, None, 2, 1]
IDS = np.array([2, -1, 1, 2], "int32")
NUMBERS = np.array([1, -1, 2, 1], "int64")
X = rows(4)
Y = np.zeros((4, 4), "float32")


def adapted(values=VALUES, **kwargs):
    features = [Feature("cluster", values, **kwargs)]
    model = make_mlp()
    keras_flix.enable_flix(model, features, rank=2, targets="all-linear", seed=0)
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse")
    return randomize(model)


@pytest.fixture(scope="module")
def model():
    return adapted()


@pytest.fixture(scope="module")
def alone(model):
    """What a model merged for its cluster makes of each example."""
    outputs = []
    for i, cluster in enumerate(CLUSTERS):
        plain = keras_flix.merge_features(model, {"cluster": cluster})
        outputs.append(to_numpy(plain(X["x"][i : i + 1])))
    return np.concatenate(outputs)


def in_tf(x):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(x).batch(2)


def encoded():
    return keras_flix.FeatureSchema({"cluster": VALUES}).encode({"cluster": CLUSTERS})


ENTRIES = {
    "list": {"cluster": CLUSTERS},
    "list of numpy": {"cluster": [np.int16(1), np.int64(-1), 2, np.uint8(1)]},
    "array": {"cluster": NUMBERS},
    "array of objects": {"cluster": np.array(CLUSTERS, object)},
    "weights": {"cluster": [{1: 1.0}, {}, {2: 1.0}, {1: 1.0}]},
    "floats beside a NaN": {"cluster": np.array([1, np.nan, 2, 1])},
    "encoded": encoded(),
    "ids": {"cluster:ids": IDS},
    "list of ids": {"cluster:ids": IDS.tolist()},
}
CALLS = {
    "call": lambda model, x: model(x),
    "predict": lambda model, x: model.predict(x, verbose=0, batch_size=3),
    "predict_on_batch": lambda model, x: model.predict_on_batch(x),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("entry", ENTRIES)
def test_every_form_is_the_merged_model(model, alone, entry, call):
    if entry == "weights":
        # One compiled function of TensorFlow takes entries of one kind.
        model = adapted()
    outputs = to_numpy(CALLS[call](model, {**X, **ENTRIES[entry]}))
    np.testing.assert_allclose(outputs, alone, atol=1e-5)


@pytest.mark.parametrize("entry", ["array", "ids", "floats beside a NaN"])
def test_in_tf_data(model, alone, entry):
    pytest.importorskip("tensorflow", reason="extra `tensorflow`")
    outputs = model.predict(in_tf({**X, **ENTRIES[entry]}), verbose=0)
    np.testing.assert_allclose(outputs, alone, atol=1e-5)


def compiled(function):
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function)
    return function


@pytest.mark.short("jax", "tensorflow", "torch")
@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8", "uint32"])
def test_in_compiled_functions_too(model, alone, dtype):
    step = compiled(lambda x: model(x))
    absent = 250 if dtype.startswith("u") else -1
    numbers = np.array([1, absent, 2, 1]).astype(dtype)
    tensors = {
        name: keras.ops.convert_to_tensor(value, value.dtype.name)
        for name, value in {**X, "cluster": numbers}.items()
    }
    shown = slice(None)
    if absent != -1:
        # No unsigned number is absent. What is none of the values, a compiled
        # function answers with NaN, and others refuse.
        if BACKEND == "torch":
            with pytest.raises(ValueError, match="cluster=250"):
                step(tensors)
            return
        shown = [0, 2, 3]
    outputs = to_numpy(step(tensors))
    np.testing.assert_allclose(outputs[shown], alone[shown], atol=1e-5)
    assert absent == -1 or np.isnan(outputs[1]).all()


@pytest.mark.short("jax", "tensorflow", "torch")
def test_ids_in_a_compiled_function(model, alone):
    step = compiled(lambda x: model(x))
    tensors = {**X, "cluster:ids": IDS}
    tensors = {k: keras.ops.convert_to_tensor(v) for k, v in tensors.items()}
    np.testing.assert_allclose(to_numpy(step(tensors)), alone, atol=1e-5)


def test_training_reads_them_alike():
    losses = {}
    for name in ("list", "encoded", "ids"):
        model = adapted()
        x = {**X, **ENTRIES[name]}
        model.fit(x, Y, verbose=0, shuffle=False, validation_data=(x, Y))
        model.train_on_batch(x, Y)
        losses[name] = model.evaluate(x, Y, verbose=0)
        tables = [to_numpy(v) for v in model.trainable_variables]
        # The value 3 is in no example.
        assert all(np.array_equal(a[0], b[0]) for a, b in zip(tables, tables0()))
    assert len({round(float(loss), 6) for loss in losses.values()}) == 1


def tables0():
    return [to_numpy(v) for v in adapted().trainable_variables]


def test_several_values(alone):
    model = adapted(multiple=True)
    want = to_numpy(model({**X, "cluster:ids": [[2], [], [1, 0], [2]]}))
    several = [[1], [], [2, 3], [1]]
    schema = keras_flix.FeatureSchema([Feature("cluster", VALUES, multiple=True)])
    for entry in (
        several,
        np.array([[1, -1], [-1, -1], [2, 3], [1, -1]]),
        schema.encode({"cluster": several})["cluster"],
    ):
        got = model.predict({**X, "cluster": entry}, verbose=0)
        np.testing.assert_allclose(got, want, atol=1e-6)


def test_layers_alone():
    layer = keras_flix.FlixDense(5, features={"cluster": VALUES}, rank=2)
    layer.build((4, 8))
    randomize(layer)
    want = to_numpy(layer(X["x"], features={"cluster:ids": IDS}))
    for entry in ({"cluster": CLUSTERS}, {"cluster": NUMBERS}, ENTRIES["encoded"]):
        np.testing.assert_array_equal(to_numpy(layer(X["x"], features=entry)), want)
    assert not np.allclose(want[0], want[2])


def test_generation(make_gemma):
    gemma = keras_flix.enable_flix(make_gemma(), {"cluster": VALUES}, rank=2)
    randomize(gemma, scale=2.0)
    gemma.compile(sampler="greedy")
    prompts = ["the quick", "the lazy", "the dog", "the fox"]
    texts = {}
    for name in ("list", "array", "encoded", "ids"):
        entries = {"prompts": prompts, **ENTRIES[name]}
        texts[name] = gemma.generate(entries, max_length=12)
    assert len({tuple(text) for text in texts.values()}) == 1
    alone = [
        gemma.generate({"prompts": [p], "cluster": c}, max_length=12)[0]
        for p, c in zip(prompts, CLUSTERS)
    ]
    assert texts["list"] == alone


def test_what_is_no_value_is_refused(model):
    for call in CALLS.values():
        with pytest.raises(ValueError) as error:
            call(model, {**X, "cluster": [0, 1, 2, 3]})
        assert str(error.value) == (
            "A value of feature 'cluster' must be one of its 3 values. Received: "
            "cluster=0. Known values: 3, 2, 1. State absence as None, and ids as "
            "'cluster:ids'."
        )
        with pytest.raises(ValueError, match=r"\[0, 3\), or -1.*cluster=3"):
            call(model, {**X, "cluster:ids": [0, 1, 2, 3]})
        with pytest.raises(ValueError, match="'cluster' and 'cluster:ids'. Remove one"):
            call(model, {**X, "cluster": 1, "cluster:ids": 2})


@pytest.mark.short("jax", "tensorflow", "torch")
def test_values_of_more_than_32_bits():
    model = adapted([5_000_000_000, 7])
    want = to_numpy(model({**X, "cluster:ids": [0, 1, -1, 0]}))
    big = 5_000_000_000
    got = model.predict({**X, "cluster": [big, 7, None, big]}, verbose=0)
    np.testing.assert_allclose(got, want, atol=1e-6)
    if BACKEND != "torch":
        numbers = keras.ops.convert_to_tensor(np.array([7, 7, 7, 7], "int32"))
        with pytest.raises(ValueError, match="fit in 32 bits.*'cluster:ids'"):
            compiled(lambda x: model({**X, "cluster": x}))(numbers)


def test_a_change_of_meaning_is_told_once():
    told = "read as its values.*0.1 read them as ids.*'cluster:ids'"
    model = adapted()
    with pytest.warns(FutureWarning, match=told):
        model({**X, "cluster": CLUSTERS})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model({**X, "cluster": CLUSTERS})
        adapted()({**X, "cluster:ids": IDS})
        adapted()({**X, **ENTRIES["encoded"]})
        # An integer could be no other value's id.
        adapted([0, 1, 2])({**X, "cluster": 1})
        adapted([10, 20, 30])({**X, "cluster": 10})


def test_strings_keep_their_ids():
    model = adapted(["a", "b", "c"])
    want = to_numpy(model({**X, "cluster": ["c", None, "b", "c"]}))
    for key in ("cluster", "cluster:ids"):
        np.testing.assert_allclose(to_numpy(model({**X, key: IDS})), want, atol=1e-6)
