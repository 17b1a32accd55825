"""`step_counts` and `limit_steps`: what they refuse, and limits within `fit`.

That limited values rest and others go on is in `tests/_compat/test_value_counts.py`.
"""

import keras
import numpy as np
import pytest
from helpers.gemma import to_numpy
from helpers.growing import DATA, Y, small, train

import keras_flix


def counting(**options):
    model = small(trained=False)
    optimizer = keras_flix.LazyAdam(0.05, step_counts="value", **options)
    model.compile(optimizer, loss="mse")
    return model


def counts_of(model):
    return [keras_flix.step_counts(model, name) for name in ("task", "language")]


def test_limits_change_from_callbacks():
    model = counting()
    rows = []

    class Limit(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                keras_flix.limit_steps(self.model, {"language": {"en": 0}})
            rows.append([to_numpy(v)[0] for v in model.trainable_variables])

        def on_train_batch_end(self, batch, logs=None):
            rows.append(keras_flix.step_counts(self.model, "language"))

    model.fit(DATA, Y, epochs=3, verbose=0, callbacks=[Limit()])
    assert rows[1::2] == [{"en": 1, "sw": n} for n in (1, 2, 3)]
    for variable, two, three in zip(model.trainable_variables, rows[2], rows[4]):
        assert np.array_equal(two, three) is ("language" in variable.name)
    keras_flix.limit_steps(model, {"language": None, "task": {"qa": 3}})
    train(model, 2)
    assert counts_of(model) == [{"qa": 3, "parse": 5}, {"en": 3, "sw": 5}]


@pytest.mark.short("torch")
def test_what_wraps_an_optimizer_leaves_its_counts():
    model = counting()
    inner = model.optimizer
    wrapped = keras.optimizers.LossScaleOptimizer(inner, initial_scale=4.0)
    model.compile(wrapped, loss="mse")
    keras_flix.limit_steps(model, {"task": {"qa": 1}})
    train(model, 2)
    assert counts_of(model) == [{"qa": 1, "parse": 2}, {"en": 2, "sw": 2}]


@pytest.mark.short("torch")
@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"user": 3}, "'user'"),
        ({"language": {"sw": 2, "rw": 1}}, "'rw'"),
        ({"language": {"sw": 2, "en": -1}}, "at least 0.*-1"),
        ({"task": 1, "language": 1.5}, "at least 0.*1.5"),
        (3, "a dict by feature"),
        (
            {"task": 1, "language": {None: 0}},
            "must be of values.*limits\\['language'\\]",
        ),
        ({"task": {float("nan"): 0}}, "must be of values.*limits\\['task'\\]"),
    ],
)
def test_bad_limits_change_nothing(limits, message):
    model = counting()
    with pytest.raises((ValueError, KeyError), match=message):
        keras_flix.limit_steps(model, limits)
    train(model, 3)
    assert counts_of(model) == [{"qa": 3, "parse": 3}, {"en": 3, "sw": 3}]


@pytest.mark.short("torch")
@pytest.mark.parametrize("optimizer", ["adam", "lazy", None])
def test_the_optimizer_must_count_by_value(optimizer):
    model = small(trained=False)
    if optimizer == "lazy":
        model.compile(keras_flix.LazyAdam(0.1), loss="mse")
    elif optimizer is None:
        model.optimizer = None
    with pytest.raises(ValueError, match="step_counts='value'"):
        keras_flix.step_counts(model, "language")
