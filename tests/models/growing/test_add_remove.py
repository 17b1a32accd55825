"""Models that grow after training: more values, fewer, other names, more axes."""

import importlib
import sys

import numpy as np
import pytest
from helpers.gemma import to_numpy
from helpers.growing import (
    DATA,
    FEATURES,
    Y,
    cases,
    delta,
    predicted,
    slots,
    small,
    step,
    tables,
    train,
)
from helpers.models import make_mlp

import keras_flix


@pytest.mark.short("jax", "tensorflow", "torch")
def test_the_compiled_function_of_before_would_clamp_the_new_id():
    """On JAX and TensorFlow it would run on, with another value's table."""
    model = small()
    before = predicted(model)
    keras_flix.add_values(model, "language", ["rw"], init="en")
    np.testing.assert_array_equal(predicted(model), before)
    new = {**DATA, "language": ["rw"] * 6}
    same = {**DATA, "language": ["en"] * 6}
    np.testing.assert_array_equal(predicted(model, new), predicted(model, same))


def test_new_values_of_untrained_ones_can_be_trained():
    """Zeros in both tables would keep the gradient of both at zero."""
    model = keras_flix.enable_flix(make_mlp(), FEATURES, targets="all-linear", rank=2)
    keras_flix.add_values(model, "language", ["rw"], init={"en": 0.5, "sw": 0.5})
    a = tables(model)["hidden/flix_language_a"]
    assert (a[2] != 0).all()
    assert (tables(model)["hidden/flix_language_b"][2] == 0).all()


# Values are added. ----------------------------------------------------------


def test_a_fresh_value_changes_nothing():
    model = small()
    before, state = predicted(model), tables(model)
    paths = [v.path for v in model.variables]
    objects = [id(v) for v in [*model.variables, *model.optimizer.variables]]
    assert keras_flix.add_values(model, "language", ["rw", "lg"]) is model
    np.testing.assert_array_equal(predicted(model), before)
    assert model._adaptation.schema["language"].values == ("en", "sw", "rw", "lg")
    assert [v.path for v in model.variables] == paths
    found = [id(v) for v in [*model.variables, *model.optimizer.variables]]
    assert found == objects
    for path, value in tables(model).items():
        count = len(state[path])
        np.testing.assert_array_equal(value[:count], state[path])
        assert len(value) == count + 2 * ("language" in path)
    new = tables(model)["hidden/flix_language_a"][2:]
    assert (new[0] != new[1]).all()
    assert 0.5 < new.std() * np.sqrt(8) < 1.5
    np.testing.assert_array_equal(delta(model, language="rw"), 0.0)


@pytest.mark.support("Life of an adapter", "`add_values` after training")
@pytest.mark.parametrize("name", cases("adafactor"))
def test_optimizers_go_on_as_if_nothing_had_been_added(name):
    alone, grown = small(name), small(name)
    optimizer, shapes = grown.optimizer, [v.shape for v in alone.trainable_variables]
    keras_flix.add_values(grown, "language", ["rw"])
    keras_flix.add_values(grown, "task", ["list"], init="qa")
    assert grown.optimizer is optimizer
    for model in (alone, grown):
        step(model, shapes, 4, seed=1)
    for path, value in tables(alone).items():
        found = tables(grown)[path][: len(value)]
        np.testing.assert_allclose(found, value, atol=1e-6)
    for expected, found in zip(slots(alone), slots(grown), strict=True):
        inner = tuple(map(slice, expected.shape))
        np.testing.assert_allclose(found[inner], expected, atol=1e-6)
    assert int(optimizer.iterations) == int(alone.optimizer.iterations)


def test_training_goes_on_as_if_nothing_had_been_added():
    alone, grown = train(small(), 2), train(small(), 2)
    keras_flix.add_values(grown, "language", ["rw"])
    for model in (alone, grown):
        train(model, 2)
    for path, value in tables(alone).items():
        found = tables(grown)[path][: len(value)]
        np.testing.assert_allclose(found, value, atol=1e-6)


def test_new_rows_get_the_first_state_of_the_optimizer():
    model = small("adagrad")
    keras_flix.add_values(model, "language", ["rw"])
    found = [s for s in slots(model) if s.shape[:1] == (3,)]
    assert len(found) == 4
    assert all((s[2] == np.float32(0.1)).all() and (s[0] > 0.1).any() for s in found)


def test_averages_of_new_rows_begin_at_their_values():
    """At zero, the end of `fit` would pull the new tables there."""
    model = small("averages")
    keras_flix.add_values(model, "language", ["rw"], init="sw")
    before = tables(model)["hidden/flix_language_a"][2]
    model.optimizer.finalize_variable_values(model.trainable_variables)
    np.testing.assert_array_equal(tables(model)["hidden/flix_language_a"][2], before)


def test_factored_state_is_kept():
    model = small("adafactor")
    before = slots(model)
    keras_flix.add_values(model, "language", ["rw"])
    for old, new in zip(before, slots(model), strict=True):
        np.testing.assert_array_equal(new[: len(old)] if old.shape else new, old)
    step(model, [v.shape for v in model.trainable_variables], 2)
    assert all(np.isfinite(value).all() for value in tables(model).values())


@pytest.mark.support("Life of an adapter", "`add_values` after training")
def test_fit_goes_on_without_compiling_again():
    model = small(dropout=0.3)
    seed = to_numpy(model._adaptation.dropout_seed.state)
    keras_flix.add_values(model, "language", ["rw"])
    np.testing.assert_array_equal(to_numpy(model._adaptation.dropout_seed.state), seed)
    # In one epoch, feature dropout may leave the value out everywhere.
    model.fit({**DATA, "language": ["rw", "en"] * 3}, Y, epochs=4, verbose=0)
    assert (delta(model, language="rw") != 0).any()


def test_the_start_of_a_value_does_not_follow_its_place():
    one, other = small(), small()
    keras_flix.add_values(one, "language", ["rw", "lg"])
    keras_flix.add_values(other, "language", ["lg"])
    keras_flix.add_values(other, "language", ["rw"], seed=4)
    one, other = (tables(m)["hidden/flix_language_a"] for m in (one, other))
    np.testing.assert_array_equal(one[3], other[2])
    assert (one[2] != other[3]).all()


# Several values, each with a start of its own. -------------------------------


@pytest.mark.eager
def test_weights_by_new_value_start_each_as_its_own():
    together, apart = small(), small()
    init = {"lg": {"sw": 0.7, "en": 0.3}, "rw": None, "xh": {"en": 1.0}}
    # In the order of `values`, whatever the order of `init`.
    keras_flix.add_values(together, "language", ["rw", "xh", "lg"], init=init)
    for value in ("rw", "xh", "lg"):
        keras_flix.add_values(apart, "language", [value], init=init[value])
    for path, value in tables(together).items():
        np.testing.assert_array_equal(value, tables(apart)[path])
    assert (delta(together, language="rw") == 0).all()
    # None alone is no weight of anything: each starts afresh.
    one, other = small(), small()
    keras_flix.add_values(one, "language", ["rw", "lg"], init={"rw": None, "lg": None})
    keras_flix.add_values(other, "language", ["rw", "lg"])
    for path, value in tables(one).items():
        np.testing.assert_array_equal(value, tables(other)[path])
    np.testing.assert_allclose(
        delta(together, language="xh"), delta(together, language="en"), atol=1e-6
    )


@pytest.mark.eager
def test_typology_is_the_three_that_are_most_alike(monkeypatch):
    asked = {"lg": {"sw": 0.6, "en": 0.4}, "rw": {"sw": 1.0}}

    def weights(new, known, **options):
        assert options == {"kind": "typology", "nearest": 3}
        assert (new, list(known)) == (["lg", "rw"], ["en", "sw"])
        return asked

    module = importlib.import_module(keras_flix.add_values.__module__)
    monkeypatch.setattr(module, "language_weights", weights)
    one, other = small(), small()
    keras_flix.add_values(one, "language", ["lg", "rw"], init="typology")
    keras_flix.add_values(other, "language", ["lg", "rw"], init=asked)
    for path, value in tables(one).items():
        np.testing.assert_array_equal(value, tables(other)[path])


@pytest.mark.short("torch")
def test_typology_asks_for_languages_unless_a_value_is_called_so(monkeypatch):
    model = small(trained=False)
    before = model._adaptation.schema
    monkeypatch.setitem(sys.modules, "qq", None)
    with pytest.raises(ImportError, match="keras-flix\\[typology\\]"):
        keras_flix.add_values(model, "language", ["lg"], init="typology")
    assert model._adaptation.schema is before
    keras_flix.add_values(model, "task", ["typology"], init="qa")
    keras_flix.add_values(model, "task", ["other"], init="typology")
    value = tables(model)["hidden/flix_task_a"]
    np.testing.assert_array_equal(value[-1], value[-2])


@pytest.mark.short("torch")
@pytest.mark.slow
def test_typology_of_real_languages():
    pytest.importorskip("qq", reason="qwanqwa is not installed (extra `typology`)")
    pytest.importorskip("lang2vec", reason="not installed (extra `typology`)")
    model = small()
    keras_flix.add_values(model, "language", ["zu", "de"], init="typology")
    # Of three that are known, more is Swahili in Zulu, and more is English in German.
    known = {name: delta(model, language=name) for name in ("sw", "en")}
    for name, near, far in (("zu", "sw", "en"), ("de", "en", "sw")):
        found = np.ravel(delta(model, language=name))
        pull = [np.dot(found, np.ravel(known[one])) for one in (near, far)]
        assert np.abs(found).max() > 0 and pull[0] > pull[1]
    with pytest.raises(ValueError, match="that URIEL has features of"):
        keras_flix.add_values(model, "task", ["list"], init="typology")


@pytest.mark.short("torch")
@pytest.mark.parametrize(
    "init, message",
    [
        ({"rw": {"sw": 1.0}}, "must have all new values, and no others. Received:"),
        (
            {"rw": {"sw": 1.0}, "lg": None, "en": None},
            "for values=['rw', 'lg']. Write None for a fresh start",
        ),
        ({"rw": {"sw": 1.0}, "lg": "sw"}, "Received: 'sw' for 'lg'. For a copy"),
        ({"rw": "sw", "lg": "en"}, "Received: 'sw' for 'rw'. For a copy of one value"),
        ({"rw": {"sw": 1.0}, "lg": 0.5}, "must have weights, or None, for each"),
        ({"rw": {"sw": 1.0}, "lg": {}}, "`init` must name at least one value"),
        ({"rw": {"swa": 1.0}, "lg": None}, "The nearest known value is 'sw'"),
        ({"rw": {"sw": float("nan")}, "lg": None}, "`init` must be finite numbers"),
    ],
)
def test_weights_by_new_value_that_do_not_fit_change_nothing(init, message):
    model = small(trained=False)
    schema, before = model._adaptation.schema, tables(model)
    with pytest.raises(ValueError) as error:
        keras_flix.add_values(model, "language", ["rw", "lg"], init=init)
    assert message in str(error.value)
    assert model._adaptation.schema is schema
    for path, value in tables(model).items():
        np.testing.assert_array_equal(value, before[path])
