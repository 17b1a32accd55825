"""`plain_view`: to its own thread, a model is the plain one in the block."""

import numpy as np
from helpers.gemma import randomize, to_numpy
from helpers.models import make_mlp, rows

import keras_flix
from keras_flix.models.adapted.plain_view import plain_view


def test_the_own_thread_sees_the_plain_model():
    base = to_numpy(make_mlp()(rows()))
    model = keras_flix.enable_flix(
        make_mlp(), {"task": ["qa", "parse"]}, rank=2, targets=["hidden"], seed=0
    )
    randomize(model)
    inputs = {**rows(), "task": "qa"}
    adapted, kind = to_numpy(model(inputs)), type(model)
    with plain_view(model) as plain:
        assert type(plain) is type(make_mlp())
        np.testing.assert_array_equal(to_numpy(plain.call(rows())), base)
    assert type(model) is kind
    np.testing.assert_array_equal(to_numpy(model(inputs)), adapted)
    assert np.abs(adapted - base).max() > 1e-3
