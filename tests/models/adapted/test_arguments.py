"""`fit`, `evaluate` and `predict` by position, splits, and nested inputs."""

import keras
import numpy as np
import pytest
from helpers.gemma import randomize, to_numpy
from helpers.models import make_mlp, rows

import keras_flix

pytestmark = pytest.mark.eager
FEATURES = {"task": ["qa", "parse"]}
TASK = ["qa", None, "parse"]


def compiled():
    model = make_mlp()
    keras_flix.enable_flix(model, FEATURES, rank=2, targets=["hidden"], seed=0)
    randomize(model).compile(keras.optimizers.SGD(0.1), loss="mse")
    return model


def test_by_position_as_by_name():
    x, y = {**rows(), "task": TASK}, np.ones((3, 4))
    names = ("batch_size", "epochs", "verbose", "callbacks", "validation_split")
    values = (2, 2, 0, None, 0.0)
    data = {**rows(seed=1), "task": TASK}, y
    model = compiled()
    found = model.fit(x, y, *values, data, False)
    other = compiled()
    expected = other.fit(
        x, y, **dict(zip(names, values)), validation_data=data, shuffle=False
    )
    assert found.history == expected.history
    assert set(found.history) == {"loss", "val_loss"}
    assert model.evaluate(x, y, 2, 0) == other.evaluate(x, y, batch_size=2, verbose=0)
    np.testing.assert_array_equal(
        model.predict(x, 2, 0), model.predict(x, batch_size=2, verbose=0)
    )
    with pytest.raises(TypeError, match="multiple values"):
        model.fit(x, y, 2, batch_size=2)


def prompts(count):
    return {
        "prompts": ["the quick", "jumps", "the lazy dog", "over"][:count],
        "responses": ["brown fox", "over", "qa en", "the dog"][:count],
        "task": ["qa", None, "parse", "qa"][:count],
    }


@pytest.mark.short("torch")
def test_a_task_by_position_is_by_the_order_of_kerashub(make_gemma):
    model = keras_flix.enable_flix(make_gemma(), FEATURES, seed=0)
    model.compile(keras.optimizers.SGD(0.1), sampler="greedy")
    data = prompts(4), None, 2, None, prompts(2)
    history = model.fit(*data, epochs=1, verbose=0).history
    assert "val_loss" in history


@pytest.mark.short("torch")
def test_validation_split_of_lists(make_gemma):
    histories = []
    for options in (
        {"x": prompts(4), "validation_split": 0.5},
        {
            "x": prompts(2),
            "validation_data": ({k: v[2:] for k, v in prompts(4).items()},),
        },
    ):
        model = keras_flix.enable_flix(make_gemma(), FEATURES, seed=0)
        randomize(model).compile(keras.optimizers.SGD(0.1), sampler="greedy")
        histories.append(model.fit(**options, batch_size=2, verbose=0).history)
    for name in ("loss", "val_loss"):
        np.testing.assert_allclose(histories[0][name], histories[1][name], rtol=1e-6)


def nested(kind):
    """A model of several inputs, and one array for each."""
    keras.utils.set_random_seed(0)
    shapes = [(8,), (5,), (3,)]
    inputs = [keras.Input(shape) for shape in shapes]
    dense = keras.layers.Dense(6, name="hidden")
    hidden = dense(keras.layers.Concatenate()(inputs))
    generator = np.random.default_rng(0)
    # As many examples as no list has entries.
    arrays = [generator.normal(size=(4, *s)).astype("float32") for s in shapes]
    make = {
        "list": lambda a, b, c: [a, b, c],
        "list in a list": lambda a, b, c: [a, [b, c]],
        "list in a dict": lambda a, b, c: {"a": a, "others": [b, c]},
    }[kind]
    model = keras.Model(make(*inputs), keras.layers.Dense(2)(hidden))
    own = make(*arrays)
    return model, own if isinstance(own, dict) else {"inputs": own}


@pytest.mark.parametrize("kind", ["list", "list in a list", "list in a dict"])
def test_nested_inputs(kind):
    model, own = nested(kind)
    keras_flix.enable_flix(model, FEATURES, rank=2, targets=["hidden"], seed=0)
    randomize(model)
    batch = {**own, "task": ["qa", None, "parse", "qa"]}
    expected = to_numpy(model(batch))
    np.testing.assert_allclose(model.predict(batch, verbose=0), expected, atol=1e-6)
    np.testing.assert_allclose(model.predict_on_batch(batch), expected, atol=1e-6)
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    y = np.ones((4, 2), "float32")
    loss = model.evaluate(batch, y, batch_size=4, verbose=0)
    np.testing.assert_allclose(loss, ((expected - y) ** 2).mean(), rtol=1e-5)
    np.testing.assert_allclose(model.train_on_batch(batch, y), loss, rtol=1e-5)
    model.fit(batch, y, batch_size=2, verbose=0)
    # One value for all examples, too: how many there are is known from the arrays.
    found = model.predict({**own, "task": "qa"}, verbose=0)
    np.testing.assert_allclose(found, to_numpy(model({**own, "task": "qa"})), atol=1e-6)
