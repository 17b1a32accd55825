"""What an optimizer gets to see of the tables: one gradient per value, in float32."""

import keras
import numpy as np
import pytest
from helpers.gemma import to_numpy
from keras import ops

import keras_flix

LANGUAGES = ["en", "sw", "yo", "rw"]
REPEATED = ["en", "sw", "en", "en"]


def dense_model(dtype="float32"):
    keras.utils.set_random_seed(0)
    x = keras.Input((8,), name="x")
    head = keras.layers.Dense(4, name="head", dtype=dtype)
    model = keras.Model({"x": x}, head(x))
    keras_flix.enable_flix(
        model, {"language": LANGUAGES}, targets=["head"], rank=2, seed=0
    )
    generator = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(generator.normal(size=variable.shape))
    return model


def data(languages):
    generator = np.random.default_rng(1)
    x = generator.normal(size=(len(languages), 8)).astype("float32")
    y = generator.normal(size=(len(languages), 4)).astype("float32")
    return {"x": x, "language": languages}, y


def change(optimizer, languages=REPEATED, scale=1.0):
    """By how much one step moves all tables."""
    model = dense_model()
    before = [to_numpy(v) for v in model.trainable_variables]
    model.compile(optimizer, loss=lambda y, p: scale * ops.mean(ops.square(y - p)))
    model.train_on_batch(*data(languages))
    return [to_numpy(v) - old for v, old in zip(model.trainable_variables, before)]


@pytest.mark.parametrize("option", ["clipnorm", "global_clipnorm"])
def test_values_repeated_in_a_batch_are_one_gradient_when_clipped(option):
    # TensorFlow's sparse gradients hold a value once per example.
    moved = change(keras.optimizers.SGD(1.0, **{option: 0.01}))
    norms = [np.linalg.norm(m) for m in moved]
    if option == "clipnorm":
        np.testing.assert_allclose(norms, 0.01, rtol=1e-4)
    else:
        np.testing.assert_allclose(np.linalg.norm(norms), 0.01, rtol=1e-4)


def test_values_repeated_in_a_batch_are_one_gradient_when_squared():
    # Adagrad's first step divides a gradient by its own square root of squares.
    rate, start = 0.1, 1e-12
    optimizer = keras.optimizers.Adagrad(
        rate, initial_accumulator_value=start, epsilon=0.0
    )
    gradient = [-m for m in change(keras.optimizers.SGD(1.0))]
    for moved, g in zip(change(optimizer), gradient):
        expected = -rate * g / np.sqrt(g * g + start)
        np.testing.assert_allclose(moved, expected, rtol=1e-3, atol=1e-6)


def test_mixed_precision_sums_gradients_of_repeated_values_in_float32():
    # Summed in bfloat16, 256 + 1 + 1 + ... stays at 256.
    model = dense_model("mixed_bfloat16")
    count = 512
    inputs = {"x": np.ones((count, 8), "float32"), "language": ["en"] * count}
    b = model.get_layer("head").trainable_variables[1]
    a = to_numpy(model.get_layer("head").trainable_variables[0])[0]
    before = to_numpy(b)
    # Where no gradient depends on the outputs, as of a plain sum, TensorFlow 2.21 may
    # update variables before the forward pass reads them, in plain Keras models too.
    model.compile(
        keras.optimizers.SGD(1.0), loss=lambda y, p: ops.sum(ops.where(p < 1e9, p, 0))
    )
    model.train_on_batch(inputs, np.zeros((count, 4), "float32"))
    expected = np.repeat(count * a.sum(0)[:, None], 4, axis=1)
    np.testing.assert_allclose((before - to_numpy(b))[0], expected, rtol=2e-2)
