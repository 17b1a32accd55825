"""A small adapted model in training, and whether two are in the same state."""

import keras
import numpy as np
from helpers.gemma import FEATURES, randomize, to_numpy

import keras_flix

X = np.random.default_rng(0).normal(size=(12, 6)).astype("float32")
Y = np.random.default_rng(1).normal(size=(12, 5)).astype("float32")
DATA = {
    "x": X,
    "task": (np.arange(12) % 4 - 1).astype("int32"),
    "language": (np.arange(12) % 3).astype("int32"),
}


def small_model(seed=0, features=FEATURES):
    """An adapted and compiled model with feature dropout."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,), name="x")
    hidden = keras.layers.Dense(16, activation="relu", name="hidden")(inputs)
    model = keras.Model({"x": inputs}, keras.layers.Dense(5, name="head")(hidden))
    keras_flix.enable_flix(
        model, features, targets="all-linear", rank=2, dropout=0.4, alpha=3, seed=seed
    )
    randomize(model, seed=seed)
    model.compile(keras.optimizers.Adam(0.05), loss="mse")
    return model


def train(model, epochs=1, **kwargs):
    model.fit(DATA, Y, batch_size=3, epochs=epochs, shuffle=False, verbose=0, **kwargs)
    return model


def state_of(model):
    """Every number of a model and its optimizer, in order."""
    return [to_numpy(v) for v in [*model.variables, *model.optimizer.variables]]


def assert_same_state(found, expected):
    for one, other in zip(state_of(found), state_of(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def assert_goes_on_alike(found, model):
    """The next epochs, with feature dropout, give the same numbers in both."""
    assert_same_state(found, model)
    before = state_of(model)
    train(found, epochs=2)
    train(model, epochs=2)
    assert_same_state(found, model)
    assert any((a != b).any() for a, b in zip(before, state_of(model)))
