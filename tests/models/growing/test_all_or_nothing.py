"""A change that fails half way, wherever that is, leaves the model as it was."""

import keras
import numpy as np
import pytest
from helpers.growing import (
    DATA,
    FEATURES,
    predicted,
    slots,
    small,
    step,
    tables,
)

import keras_flix
from keras_flix import Feature, _compat
from keras_flix.models.growing import resize

pytestmark = pytest.mark.eager

CHANGES = {
    "add": lambda m: keras_flix.add_values(m, "language", ["rw"], init="sw", rank=3),
    "remove": lambda m: keras_flix.remove_values(m, "language", ["en"]),
    "rename": lambda m: keras_flix.rename_value(m, "language", "sw", "swa"),
    "feature": lambda m: keras_flix.add_feature(
        m, Feature("domain", ["news", "web"], rank=1, dropout=0.1)
    ),
}
PLACES = {
    "resize_variable": (_compat, ["add", "remove"]),
    "regrow_optimizer": (_compat, ["add", "remove", "feature"]),
    "set_schema": (resize, ["add", "remove", "feature"]),
    "add_dropout_seed": (resize, ["feature"]),
    "reset_parameters": (_compat, [*CHANGES]),
    "guard_rows": (_compat, [*CHANGES]),
    "add_table": (_compat, ["feature"]),
    "track_torch_parameters": (_compat, ["add", "remove", "feature"]),
}
CASES = [(change, place) for place, (_, named) in PLACES.items() for change in named]


class Fails(BaseException):
    """As Ctrl+C: no Exception."""


def failing(monkeypatch, place, count, before=False):
    """Lets a function raise in its call of that number, before or after its work."""
    module, _ = PLACES[place]
    real, calls = getattr(module, place), []

    def fails(*args, **kwargs):
        calls.append(args)
        if len(calls) == count and before:
            raise Fails
        result = real(*args, **kwargs)
        if len(calls) == count:
            raise Fails
        return result

    monkeypatch.setattr(module, place, fails)
    return calls


def everything(model):
    """What tells whether a model is as it was."""
    adaptation = model._adaptation
    own = adaptation.layers["hidden"]._tables
    attributes = {
        name: value
        for name, value in vars(model.optimizer).items()
        if isinstance(value, (list, int, float, dict))
    }
    return (
        (adaptation.schema, own.schema, own.trainable, dict(own.ranks)),
        ({n: set(v) for n, v in adaptation.added.items()}, adaptation.dropout_seed),
        (adaptation.rates, adaptation.changes, adaptation.trainable),
        [(id(v), v.path, tuple(v.shape)) for v in model.variables],
        [(id(v), v.path, tuple(v.shape)) for v in model.optimizer.variables],
        {name: repr(value) for name, value in attributes.items()},
        [(name, id(p)) for name, p in model.named_parameters()]
        if keras.config.backend() == "torch"
        else [],
    )


def same(before, after):
    assert before.keys() == after.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)


def trained():
    model = small("averages", alpha=3)
    keras_flix.set_trainable(model, {"language": ["sw"], "task": ["qa", "parse"]})
    keras_flix.set_learning_rates(model, {"language": {"sw": 0.5}})
    return model


@pytest.mark.short("torch")
@pytest.mark.parametrize("change, place", CASES)
@pytest.mark.parametrize("before", [True, False])
def test_a_change_that_fails_changes_nothing(monkeypatch, change, place, before):
    model, other = trained(), trained()
    old, values, state = everything(model), tables(model), slots(model)
    outputs = predicted(model)
    # Each time one call later, until the change comes to its end.
    for count in range(1, 20):
        with monkeypatch.context() as patch:
            calls = failing(patch, place, count, before)
            try:
                CHANGES[change](model)
                break
            except Fails:
                assert len(calls) >= count
        assert everything(model) == old
        same(values, tables(model))
        same(dict(enumerate(state)), dict(enumerate(slots(model))))
        np.testing.assert_array_equal(predicted(model), outputs)
    assert count > 1
    # Then it is the change of a model in which nothing failed, and so is training.
    CHANGES[change](other)
    shapes = [tuple(v.shape) for v in other.trainable_variables]
    for one in (model, other):
        step(one, shapes, 2)
    same(tables(other), tables(model))
    data = {**DATA, "language": np.zeros(6, "int32")}
    data |= {"domain": "web"} if change == "feature" else {}
    np.testing.assert_array_equal(predicted(model, data), predicted(other, data))


@pytest.mark.parametrize("change", CHANGES)
def test_it_trains_on_and_is_saved_after_a_failure(monkeypatch, tmp_path, change):
    model, other = trained(), trained()
    with monkeypatch.context() as patch:
        failing(patch, "reset_parameters", 1)
        with pytest.raises(Fails):
            CHANGES[change](model)
    shapes = [tuple(v.shape) for v in other.trainable_variables]
    for one in (model, other):
        step(one, shapes, 2)
    same(tables(other), tables(model))
    path = tmp_path / "one.flix.safetensors"
    keras_flix.save_adapters(model, path)
    found = keras_flix.load_adapters(small(alpha=3), path)
    same(tables(model), tables(found))
    assert found._adaptation.schema["language"].values == tuple(FEATURES["language"])


@pytest.mark.eager(False)
def test_values_that_fail_to_join_while_fit_runs(monkeypatch):
    model, failed = small(), []

    class Grows(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 0:
                with monkeypatch.context() as patch:
                    failing(patch, "guard_rows", 1)
                    with pytest.raises(Fails):
                        CHANGES["add"](self.model)
                failed.append(True)

    other = small()
    y = np.ones((6, 4), "float32")
    for one, callbacks in ((model, [Grows()]), (other, [])):
        one.fit(DATA, y, batch_size=2, shuffle=False, verbose=0, callbacks=callbacks)
    assert failed
    for name, value in tables(other).items():
        np.testing.assert_allclose(tables(model)[name], value, rtol=1e-6, atol=1e-6)


def test_optimizers_that_hold_others(monkeypatch):
    model = small("loss scale")
    old, state = everything(model), slots(model)
    with monkeypatch.context() as patch:
        failing(patch, "regrow_optimizer", 1)
        with pytest.raises(Fails):
            CHANGES["add"](model)
    assert everything(model) == old
    same(dict(enumerate(state)), dict(enumerate(slots(model))))
    shapes = [tuple(v.shape) for v in model.trainable_variables]
    step(model, shapes, 1)
