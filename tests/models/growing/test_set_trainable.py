"""`set_trainable`: the chosen values train, all others stay bit-identical."""

import copy
import pickle

import keras
import numpy as np
import pytest
from helpers.gemma import to_numpy
from helpers.growing import (
    DATA,
    FEATURES,
    OPTIMIZERS,
    Y,
    apply,
    cases,
    predicted,
    small,
    tables,
    train,
)
from helpers.models import make_mlp

import keras_flix

TARGET = keras.ops.convert_to_tensor(Y)
CHOICE = {"language": ["sw"]}


def random_gradients(model, seed=0):
    """Also of what is frozen: the optimizer must not rely on zeros."""
    generator = np.random.default_rng(seed)
    return [
        keras.ops.convert_to_tensor(generator.normal(size=v.shape).astype("float32"))
        for v in model.trainable_variables
    ]


def assert_only_trained(before, after, axis="language", row=1):
    """All rows of all tables but one of one axis are what they were."""
    for path, old in before.items():
        new = after[path].copy()
        if f"flix_{axis}_" in path:
            assert (new[row] != old[row]).any(), path
            new[row] = old[row]
        np.testing.assert_array_equal(new, old, err_msg=path)


# Traps. ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adam", "adamw, weight decay, clipping", "averages"])
def test_without_a_guard_optimizers_move_rows_that_have_no_gradient(name):
    model = small(name)
    before = tables(model)
    zeros = [keras.ops.zeros(v.shape) for v in model.trainable_variables]
    apply(model.optimizer, zeros, model.trainable_variables)
    assert any((old != tables(model)[path]).any() for path, old in before.items())


def test_averages_would_come_back_at_the_end_of_fit():
    model = small("averages")
    apply(model.optimizer, random_gradients(model), model.trainable_variables)
    before = tables(model)
    model.optimizer.finalize_variable_values(model.trainable_variables)
    assert (tables(model)["hidden/flix_task_a"] != before["hidden/flix_task_a"]).any()


# The optimizer. -------------------------------------------------------------


@pytest.mark.support("Life of an adapter", "`set_trainable`")
@pytest.mark.parametrize("name", cases())
def test_optimizers_leave_frozen_rows_alone(name):
    model = small(name)
    keras_flix.set_trainable(model, CHOICE)
    before = tables(model)
    for seed in range(4):
        apply(model.optimizer, random_gradients(model, seed), model.trainable_variables)
    model.optimizer.finalize_variable_values(model.trainable_variables)
    assert_only_trained(before, tables(model))


def test_the_past_of_frozen_rows_is_kept():
    model, never = small(), small()
    keras_flix.set_trainable(model, CHOICE)
    apply(model.optimizer, random_gradients(model), model.trainable_variables)
    for found, expected in zip(
        model.optimizer.variables, never.optimizer.variables, strict=True
    ):
        found, expected = to_numpy(found), to_numpy(expected)
        if found.shape[:1] == (2,):
            np.testing.assert_array_equal(found[0], expected[0])


def test_a_choice_can_be_undone():
    model = small()
    keras_flix.set_trainable(model, CHOICE)
    keras_flix.set_trainable(model, None)
    assert "apply" not in vars(model.optimizer)
    before = tables(model)
    apply(model.optimizer, random_gradients(model), model.trainable_variables)
    after = tables(model)
    assert all(
        (old != after[path]).any(axis=(1, 2)).all() for path, old in before.items()
    )


# Averages of the weights. ----------------------------------------------------

AVERAGING = {"use_ema": True, "ema_momentum": 0.5}


def averaged(model):
    """The averages that an optimizer holds, by path of the table."""
    optimizer = model.optimizer
    optimizer = getattr(optimizer, "inner_optimizer", None) or optimizer
    return {
        variable.path: to_numpy(average)
        for variable, average in zip(
            optimizer._trainable_variables, optimizer._model_variables_moving_average
        )
    }


@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.optimizers.Adam(0.05, **AVERAGING, ema_overwrite_frequency=2),
        lambda: keras.optimizers.SGD(0.05, **AVERAGING, gradient_accumulation_steps=2),
        lambda: keras_flix.LazyAdam(0.05, **AVERAGING),
        lambda: keras.optimizers.LossScaleOptimizer(
            keras.optimizers.SGD(0.05, **AVERAGING), initial_scale=4.0
        ),
    ],
    ids=["overwriting", "accumulating", "lazy", "loss scale"],
)
def test_averages_of_frozen_rows_are_the_weights_from_the_start(make):
    model = small(trained=False)
    model.compile(make(), loss="mse")
    keras_flix.set_trainable(model, CHOICE)
    before = tables(model)
    assert averaged(model).keys() == before.keys()
    # Keras' own begin at zero, and trained rows are theirs.
    assert_only_trained_or_zero(before, averaged(model))
    for seed in range(4):
        apply(model.optimizer, random_gradients(model, seed), model.trainable_variables)
        assert_frozen_alike(averaged(model), before)
    assert_only_trained(before, averaged(model))
    assert_only_trained(before, tables(model))
    model.optimizer.finalize_variable_values(model.trainable_variables)
    assert_only_trained(before, tables(model))


def assert_only_trained_or_zero(before, after):
    for path, old in before.items():
        new = after[path].copy()
        if "flix_language_" in path:
            assert not new[1].any()
            new[1] = old[1]
        np.testing.assert_array_equal(new, old, err_msg=path)


def test_averages_follow_weights_that_are_set_anew(tmp_path):
    other = small(trained=False, seed=9)
    other.save_weights(tmp_path / "x.weights.h5")
    keras_flix.save_adapters(other, tmp_path / "x.flix.safetensors")
    for load in (
        lambda model: model.load_weights(tmp_path / "x.weights.h5"),
        lambda model: keras_flix.load_adapters(model, tmp_path / "x.flix.safetensors"),
    ):
        model = small("averages")
        keras_flix.set_trainable(model, CHOICE)
        load(model)
        assert_frozen_alike(averaged(model), tables(model))


def assert_frozen_alike(one, other):
    for path, value in one.items():
        rows = [0] if "flix_language_" in path else slice(None)
        np.testing.assert_array_equal(value[rows], other[path][rows], err_msg=path)


@pytest.mark.support("Life of an adapter", "`SwapEMAWeights` after `set_trainable`")
@pytest.mark.parametrize("swap_on_epoch", [True, False])
def test_swapping_averages_leaves_frozen_values_alone(swap_on_epoch):
    model = small(trained=False)
    model.compile(keras_flix.LazyAdam(0.05, **AVERAGING), loss="mse")
    keras_flix.set_trainable(model, CHOICE)
    before = tables(model)
    seen = []

    class Watch(keras.callbacks.Callback):
        def on_test_batch_begin(self, batch, logs=None):
            seen.append(tables(model))

    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=swap_on_epoch)
    # Before the first step, too.
    model.evaluate(DATA, Y, verbose=0, callbacks=[swap])
    np.testing.assert_array_equal(
        tables(model)["hidden/flix_task_a"], before["hidden/flix_task_a"]
    )
    model.fit(
        DATA,
        Y,
        epochs=2,
        verbose=0,
        validation_data=(DATA, Y),
        callbacks=[swap, Watch()],
    )
    assert_only_trained(before, tables(model))
    assert_only_trained(before, averaged(model))
    for found in seen:
        assert_only_trained(before, found)


# Training. ------------------------------------------------------------------


@pytest.mark.support("Life of an adapter", "`set_trainable`")
def test_fit_trains_the_chosen_values_only():
    model = small("adamw, weight decay, clipping")
    keras_flix.add_values(model, "language", ["rw"], init={"sw": 0.7, "en": 0.3})
    base = [to_numpy(v) for v in model.non_trainable_variables]
    known, before = predicted(model), tables(model)
    keras_flix.set_trainable(model, {"language": ["rw"]})
    mixed = {**DATA, "language": ["en", "rw", None, "sw", "rw", "rw"]}
    model.fit(mixed, Y, batch_size=3, verbose=0)
    assert_only_trained(before, tables(model), row=2)
    for variable, value in zip(model.non_trainable_variables, base, strict=True):
        np.testing.assert_array_equal(to_numpy(variable), value)
    np.testing.assert_array_equal(predicted(model), known)


def test_the_choice_survives_compiling_and_loading(tmp_path):
    model = small()
    model.save_weights(tmp_path / "x.weights.h5")
    keras_flix.set_trainable(model, CHOICE)
    train(model, 1)
    model.compile(OPTIMIZERS["sgd with momentum"](), loss="mse")
    model.load_weights(tmp_path / "x.weights.h5")
    before = tables(model)
    train(model, 2)
    assert_only_trained(before, tables(model))


def test_files_keep_the_choice(tmp_path):
    model = small()
    assert "trainable" not in model.get_config()
    keras_flix.set_trainable(model, CHOICE)
    train(model, 1)
    model.save(tmp_path / "model.keras")
    found = keras.models.load_model(tmp_path / "model.keras")
    assert found._adaptation.trainable == {"language": ["sw"]}
    for one, other in zip(
        found.optimizer.variables, model.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))
    before = tables(found)
    train(found, 1)
    assert_only_trained(before, tables(found))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_copies_keep_the_choice(copied):
    model = small("sgd with momentum")
    keras_flix.set_trainable(model, CHOICE)
    found, before = copied(model), tables(model)
    train(found, 1)
    assert_only_trained(before, tables(found))
    for path, value in tables(model).items():
        np.testing.assert_array_equal(value, before[path])


@pytest.mark.short("jax", "tensorflow", "torch")
def test_gradients_of_frozen_values_are_zero():
    model = small(features=[*SHARED, *FEATURES_LIST])
    keras_flix.set_trainable(model, CHOICE)
    gradients = gradients_of(model)
    for variable in model.trainable_variables:
        gradient = gradients[variable.path]
        trained = [i for i in range(len(gradient)) if gradient[i].any()]
        assert trained == ([1] if "flix_language_" in variable.path else [])


SHARED = [keras_flix.Feature("shared", always=True)]
FEATURES_LIST = [keras_flix.Feature(name, values) for name, values in FEATURES.items()]


def gradients_of(model):
    """By path, in a loop of one's own."""
    variables = model.trainable_variables
    backend = keras.config.backend()

    def loss():
        return keras.ops.mean(keras.ops.square(model(DATA, training=True) - TARGET))

    if backend == "torch":
        loss().backward()
        found = [v.value.grad for v in variables]
    elif backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = loss()
        found = tape.gradient(value, [v.value for v in variables])
    else:
        import jax

        def stateless(values):
            with keras.StatelessScope(state_mapping=list(zip(variables, values))):
                return loss()

        found = jax.grad(stateless)([v.value for v in variables])
    return {
        v.path: to_numpy(keras.ops.convert_to_tensor(g))
        for v, g in zip(variables, found, strict=True)
    }


# The choice. ----------------------------------------------------------------


def test_the_summary_counts_what_trains():
    model = keras_flix.enable_flix(make_mlp(), FEATURES, targets="all-linear", rank=2)
    before = keras_flix.flix_summary(model, print_fn=None)
    keras_flix.set_trainable(model, CHOICE)
    lines = []
    after = keras_flix.flix_summary(model, print_fn=lines.append)
    assert after.trainable * 4 == before.trainable
    assert "Only these values train: language ['sw']." in lines


def test_the_choice_follows_names_and_values():
    model = small(trained=False)
    keras_flix.set_trainable(model, {"language": ["en", "sw"]})
    keras_flix.rename_value(model, "language", "sw", "swh")
    keras_flix.add_values(model, "language", ["rw"])
    keras_flix.remove_values(model, "language", ["en"])
    assert model._adaptation.trainable == {"language": ["swh"]}
    with pytest.raises(ValueError, match="One of the values that train must stay"):
        keras_flix.remove_values(model, "language", ["swh"])
    assert model._adaptation.schema["language"].values == ("swh", "rw")


@pytest.mark.parametrize(
    "values, message",
    [
        ({"langauge": ["sw"]}, "Received: 'langauge'. The nearest is 'language'"),
        ({"language": ["swa"]}, "The nearest known value is 'sw'"),
        ({"language": "sw"}, "Write ['sw']"),
        ({}, "`values` must be a dict from features to values"),
        (["language"], "`values` must be a dict from features to values"),
    ],
)
def test_what_is_not_the_models_is_refused(values, message):
    model = small(trained=False)
    with pytest.raises(ValueError) as error:
        keras_flix.set_trainable(model, values)
    assert message in str(error.value)
    assert model._adaptation.trainable is None
