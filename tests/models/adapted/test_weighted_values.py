"""Real-valued features: a blend of an axis' values, by weights per example."""

import keras
import numpy as np
import pytest
from helpers.gemma import FEATURES, randomize, to_numpy
from helpers.models import make_mlp, rows
from helpers.tracing import compiled

import keras_flix
from keras_flix import Feature, FeatureSchema
from keras_flix.features.tensor_ids import weights_of_all
from keras_flix.layers.low_rank_update import ActiveValues

pytestmark = pytest.mark.eager

MIX = {"sw": 0.6, "yo": 0.4}


def adapted(languages=("en", "sw", "yo"), **kwargs):
    model = make_mlp()
    features = [Feature("task", ["qa", "parse"]), Feature("language", languages)]
    keras_flix.enable_flix(model, features, rank=2, targets="all-linear", **kwargs)
    return randomize(model)


def outputs(model, language, task="qa", count=3):
    return to_numpy(model({**rows(count), "task": task, "language": language}))


def test_a_weight_of_one_is_the_value_itself():
    model = adapted()
    np.testing.assert_array_equal(outputs(model, {"sw": 1.0}), outputs(model, "sw"))
    np.testing.assert_array_equal(outputs(model, {"sw": 0.0}), outputs(model, None))


def test_a_layer_is_linear_in_the_weights():
    layer = keras_flix.FlixDense(5, features={"language": ["hi", "en"]}, rank=2)
    x = np.random.default_rng(0).normal(size=(4, 8)).astype("float32")
    layer(x, features={"language": "hi"})
    randomize(layer)

    def delta(language):
        with_values = to_numpy(layer(x, features={"language": language}))
        return with_values - to_numpy(layer(x, features={"language": None}))

    expected = 0.6 * delta("hi") + 0.4 * delta("en")
    np.testing.assert_allclose(delta({"hi": 0.6, "en": 0.4}), expected, atol=2e-6)
    np.testing.assert_allclose(delta({"hi": -2.0}), -2 * delta("hi"), atol=5e-6)
    np.testing.assert_allclose(
        to_numpy(layer.kernel_delta({"language": {"hi": 0.6, "en": 0.4}})),
        0.6 * to_numpy(layer.kernel_delta({"language": "hi"}))
        + 0.4 * to_numpy(layer.kernel_delta({"language": "en"})),
        atol=2e-6,
    )


def test_mixed_batch_is_each_example_alone_and_the_merged_model():
    model = adapted()
    entries = [MIX, "en", None, {"en": 0.5, "sw": 0.25, "yo": -1.5}]
    together = outputs(model, entries, count=4)
    x = rows(4)["x"]
    for i, entry in enumerate(entries):
        alone = model({"x": x[i : i + 1], "task": "qa", "language": [entry]})
        np.testing.assert_allclose(to_numpy(alone)[0], together[i], atol=1e-6)
        merged = keras_flix.merge_features(model, {"task": "qa", "language": entry})
        plain = to_numpy(merged({"x": x[i : i + 1]}))[0]
        np.testing.assert_allclose(plain, together[i], atol=1e-5)


def test_a_matrix_of_floats_states_all_weights():
    model = adapted()
    matrix = np.array([[0, 0.6, 0.4], [1, 0, 0], [0, 0, 0]], "float32")
    expected = outputs(model, [MIX, "en", None])
    for entry in (
        matrix,
        matrix.astype("float64"),
        keras.ops.convert_to_tensor(matrix),
    ):
        np.testing.assert_allclose(outputs(model, entry), expected, atol=1e-6)


@pytest.mark.support("Life of an adapter", "Values by weights")
def test_predict_fit_and_pipelines_take_weights():
    tf = pytest.importorskip("tensorflow", reason="extra `tensorflow`")
    model = adapted(dropout=0.3)
    entries = [MIX, "en", None, {"yo": 0.25}]
    batch = {**rows(4), "task": ["qa", "parse", None, "qa"], "language": entries}
    expected = to_numpy(model(batch))
    np.testing.assert_allclose(model.predict(batch, verbose=0), expected, atol=1e-6)
    matrix = np.array([[0, 0.6, 0.4], [1, 0, 0], [0, 0, 0], [0, 0, 0.25]], "float32")
    dataset = tf.data.Dataset.from_tensor_slices(
        {**rows(4), "task": np.array([0, 1, -1, 0]), "language": matrix}
    ).batch(3)
    piped = model.predict(dataset, verbose=0)
    np.testing.assert_allclose(piped, expected, atol=1e-6)
    model.compile(optimizer="sgd", loss="mse")
    y = np.zeros((4, 4), "float32")
    before = model.evaluate(batch, y, verbose=0)
    model.fit(batch, y, batch_size=2, epochs=3, verbose=0)
    assert model.evaluate(batch, y, verbose=0) < before


@pytest.mark.short("torch", "tensorflow")
def test_gradients_are_scaled_by_the_weights():
    """A value's table moves as far as it counts, all others stay."""
    moved = {}
    for name, entry in {"whole": "sw", "half": {"sw": 0.5}}.items():
        model = adapted()
        hidden = model.get_layer("hidden")
        head_b = model.get_layer("head")._tables.variables["language"][1]
        before = to_numpy(head_b).copy()
        for variable in hidden._tables.named_variables.values():
            variable.assign(np.zeros(variable.shape))
        model.get_layer("head")._tables.variables["task"][1].assign(np.zeros((2, 2, 4)))
        x = {**rows(2), "task": "qa", "language": entry}
        # The same gradient at the outputs for both, yet one that depends on them:
        # with a constant one, a compiled step of TensorFlow may update a variable
        # before the forward pass reads it, in plain Keras models as well.
        y = outputs(model, entry, count=2) - 1
        model.compile(optimizer=keras.optimizers.SGD(1.0), loss="mse")
        model.train_on_batch(x, y)
        moved[name] = to_numpy(head_b) - before
    assert np.abs(moved["whole"][1]).max() > 1e-3
    np.testing.assert_allclose(moved["half"], 0.5 * moved["whole"], atol=1e-6)
    assert not moved["half"][[0, 2]].any()


def test_ids_beside_weights_stay_exact_in_low_precision():
    """As bfloat16 or float16, an id of 2,051 would be that of another value."""
    values = [f"v{i}" for i in range(2_100)]
    layer = keras_flix.FlixDense(
        3, features={"language": values}, rank=1, dtype="bfloat16"
    )
    x = np.ones((1, 8), "float32")
    layer(x, features={"language": "v0"})
    b = np.zeros(layer._tables.variables["language"][1].shape, "float32")
    b[2_051] = 1.0
    layer._tables.variables["language"][1].assign(b)
    one = layer(x, features={"language": "v2051"})
    weighted = layer(x, features={"language": {"v2051": 1.0}})
    other = layer(x, features={"language": {"v2048": 0.5, "v2052": 0.5}})
    none = layer(x, features={"language": None})
    np.testing.assert_array_equal(to_numpy(weighted), to_numpy(one))
    np.testing.assert_array_equal(to_numpy(other), to_numpy(none))
    assert np.abs(to_numpy(one) - to_numpy(none)).max() > 0


def test_a_nan_reaches_only_those_who_count_it():
    model = adapted()
    for name in ("hidden", "head"):
        table = model.get_layer(name)._tables.variables["language"][0]
        value = to_numpy(table).copy()
        value[2] = np.nan
        table.assign(value)
    matrix = np.array([[0.5, 0.5, 0], [0, 0.5, 0.5]], "float32")
    for entry in (matrix, [{"en": 0.5, "sw": 0.5}, {"sw": 0.5, "yo": 0.5, "en": 0}]):
        nan = np.isnan(outputs(model, entry, count=2)).all(axis=1)
        assert nan.tolist() == [False, True]


def test_floats_that_are_no_weights_make_nan_in_compiled_code():
    weights = np.array([[0.5, 0.5], [np.nan, 0.5], [0.5, 1e9]], "float32")
    active = ActiveValues.from_ids(
        weights_of_all(keras.ops.convert_to_tensor(weights)), 2
    )
    filler = to_numpy(active.filler)
    assert np.isnan(filler).any(axis=(1, 2)).tolist() == [False, True, True]


def test_multiple_axes_take_weights():
    features = [Feature("domain", ["news", "web", "code"], multiple=True)]
    schema = FeatureSchema(features)
    layer = keras_flix.FlixDense(3, features=schema, rank=2)
    x = np.ones((3, 8), "float32")
    entries = [["news", "web"], {"news": 1.0, "web": 1.0}, []]
    layer(x, features={"domain": entries})
    randomize(layer)
    first, second, third = to_numpy(layer(x, features={"domain": entries}))
    np.testing.assert_allclose(first, second, atol=1e-6)
    assert np.abs(first - third).max() > 1e-3


@pytest.mark.short("torch")
@pytest.mark.support("Life of an adapter", "Values by weights")
@pytest.mark.slow
def test_generate_takes_weights(make_gemma):
    gemma = randomize(keras_flix.enable_flix(make_gemma(), FEATURES), scale=0.5)
    prompts = ["the quick", "the lazy"]
    gemma.compile(sampler="greedy")

    def generate(language, prompts=prompts):
        inputs = {"prompts": prompts, "task": "qa", "language": language}
        return gemma.generate(inputs, max_length=12)

    assert generate([{"sw": 1.0}, "yo"]) == generate(["sw", "yo"])
    mixed = generate([MIX, {"en": 2.0, "sw": -1.0}])
    assert mixed == [
        *generate([MIX], prompts[:1]),
        *generate([{"en": 2.0, "sw": -1.0}], prompts[1:]),
    ]
    merged = keras_flix.merge_features(gemma, {"task": "qa", "language": MIX})
    merged.compile(sampler="greedy")
    assert generate(MIX) == merged.generate(prompts, max_length=12)


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"hi": 0.5}, "must be one of its 3 values. Received: language='hi'"),
        ({"en": float("nan")}, "between -1000 and 1000. Received: 'en': nan"),
        ({"en": 2_000}, "between -1000 and 1000. Received: 'en': 2000"),
        ({"en": "much"}, "Received: 'en': 'much' (at example 0)"),
        ({"en": 0.5, 0: 0.5}, "at most once. Received: language=[0, 0]"),
        (np.ones((3, 2), "float32"), "must have the shape (batch, 3)"),
        (np.ones((3,), "float32"), "strings, integer ids or None"),
        ([MIX], "Received: 1 entries of 'language' for a batch of 3"),
        (np.zeros((3, 2, 3), "int32"), "must have the shape (batch,)"),
        (np.full((3, 1, 2), 7, "int32"), "must be in [0, 3), or -1 for absent"),
    ],
)
def test_bad_weights_raise(entry, message):
    model = adapted()
    with pytest.raises(ValueError) as error:
        outputs(model, entry)
    assert message in str(error.value)


@pytest.mark.short("torch", "tensorflow")
@pytest.mark.eager(False)
def test_batches_of_different_kinds_are_refused_where_they_cannot_be_compiled():
    model = adapted()
    model.compile(keras.optimizers.SGD(0.0), loss="mse")
    batches = [3 * ["sw"], 3 * [{"sw": 0.5}], 3 * [{"sw": 0.5, "yo": 1.0}]]
    y = np.zeros(to_numpy(model({**rows(3), "task": "qa", "language": "sw"})).shape)

    def train():
        for languages in batches:
            model.train_on_batch(
                {**rows(3), "task": 3 * ["qa"], "language": languages}, y
            )

    if keras.config.backend() == "tensorflow":
        with pytest.raises(ValueError, match="entries of one kind"):
            train()
    else:
        train()


# Otherwise TensorFlow would know the values.
@pytest.mark.short("jax", "tensorflow", "torch")
@pytest.mark.eager(False)
def test_weights_of_all_values_are_read_in_compiled_code():
    model = adapted()
    weights = np.array([[0.5, 0, 2], [0, 0, 0], [0, 1, 0.25]], "float32")
    x = rows(3)["x"]
    got = compiled(lambda x, w: model({"x": x, "task": [0, 0, 0], "language": w}))
    np.testing.assert_allclose(got(x, weights), outputs(model, weights), atol=1e-5)
