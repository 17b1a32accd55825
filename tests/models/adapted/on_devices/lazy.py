"""A small model that `LazyAdam` trains."""

import numpy as np
from gemma import ENTRIES, FEATURES, draw
from helpers.models import make_mlp, rows

import keras_flix


def train_lazily():
    """The model after two epochs of one step, on whatever devices are current."""
    model = keras_flix.enable_flix(make_mlp(), FEATURES, rank=2, targets="all-linear")
    draw(model.trainable_variables)
    # A larger epsilon than usual: rounding is not to decide on a step's direction.
    model.compile(keras_flix.LazyAdam(0.01, epsilon=1e-3), loss="mse")
    x = {**rows(8), **ENTRIES}
    model.fit(x, np.zeros((8, 4)), batch_size=8, epochs=2, verbose=0)
    return model
