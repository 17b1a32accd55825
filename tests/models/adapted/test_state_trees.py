"""State trees, as Orbax checkpoints hold them, load into the model they are of."""

import keras
import numpy as np
import pytest
from helpers.gemma import FEATURES, to_numpy
from helpers.training import DATA, Y, assert_same_state, small_model, state_of

import keras_flix

pytestmark = pytest.mark.eager

REVERSED = {**FEATURES, "language": FEATURES["language"][::-1]}


def stepped(seed=0, features=FEATURES, **kwargs):
    model = small_model(seed=seed, features=features, **kwargs)
    model.train_on_batch(DATA, Y)
    return model


def tree_of(model):
    return model.get_state_tree(value_format="numpy_array")


def assert_refused(model, tree, message):
    before = state_of(model)
    with pytest.raises(ValueError, match=message):
        model.set_state_tree(tree)
    for found, expected in zip(state_of(model), before, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.support("State", "State trees, as in Orbax checkpoints")
@pytest.mark.parametrize("value_format", ["numpy_array", "backend_tensor"])
def test_a_state_goes_into_a_model_of_the_same_kind(value_format):
    model, found = stepped(), stepped(seed=3)
    tree = model.get_state_tree(value_format=value_format)
    # With feature dropout, the state of its seed is named by a counter.
    found.set_state_tree(tree)
    np.testing.assert_array_equal(to_numpy(found(DATA)), to_numpy(model(DATA)))
    for one, other in zip(
        found.optimizer.variables, model.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))
    model.set_state_tree(tree)
    assert_same_state(model, model)


def test_values_in_another_order_are_refused():
    tree = tree_of(stepped(features=REVERSED))
    assert_refused(stepped(), tree, "values in the same order")
    # As `save_weights_only=True` leaves it.
    weights = {k: v for k, v in tree.items() if k.endswith("trainable_variables")}
    assert_refused(stepped(), weights, "values in the same order")


def test_what_trains_need_not_be_what_trained():
    model, found = stepped(), small_model(seed=3)
    model.get_layer("head").bias.trainable = True
    model.get_layer("head").bias.assign([1, 2, 3, 4, 5])
    found.set_state_tree(tree_of_weights(model))
    np.testing.assert_array_equal(to_numpy(found(DATA)), to_numpy(model(DATA)))
    found.trainable = False
    model.get_layer("head").bias.assign([5, 4, 3, 2, 1])
    found.set_state_tree(tree_of_weights(model))
    np.testing.assert_array_equal(to_numpy(found(DATA)), to_numpy(model(DATA)))


def tree_of_weights(model):
    tree = tree_of(model)
    return {k: v for k, v in tree.items() if k.endswith("trainable_variables")}


def test_weights_of_a_plain_model_leave_the_adapters():
    x = keras.Input((6,), name="x")
    hidden = keras.layers.Dense(16, activation="relu", name="hidden")(x)
    plain = keras.Model({"x": x}, keras.layers.Dense(5, name="head")(hidden))
    plain.compile("sgd", loss="mse")
    model = stepped()
    tables = [to_numpy(v) for v in model.trainable_variables]
    model.set_state_tree(tree_of_weights(plain))
    # Keras' own would take none of them: they train there, and do not here.
    np.testing.assert_array_equal(
        to_numpy(model.get_layer("head").kernel), to_numpy(plain.layers[-1].kernel)
    )
    for variable, value in zip(model.trainable_variables, tables, strict=True):
        np.testing.assert_array_equal(to_numpy(variable), value)


def test_what_is_missing_superfluous_or_of_another_shape_is_refused():
    model = stepped()
    for change, message in (
        (lambda w: w["head"].pop("kernel"), r"At 'head/kernel', expected: shape \(16"),
        (lambda w: w["head"].update(more=np.ones(2)), "At 'head/more', expected: shap"),
        (
            lambda w: w["head"].update(flix_task_a=np.ones((1, 2))),
            r"At 'head/flix_task_a', expected: .* Received: \(1, 2\)",
        ),
        (
            lambda w: w["head"].pop("flix_task_a"),
            r"'head/flix_task_a'.* Received: none",
        ),
    ):
        tree = tree_of_weights(model)
        both = {"head": {}, "hidden": {}}
        for group in list(tree.values()):
            for name, layer in both.items():
                layer.update(group.get(name, {}))
        change(both)
        assert_refused(model, {"trainable_variables": both}, message)


def test_a_state_of_other_variables_alone():
    model, found = stepped(), stepped(seed=3)
    tables = [to_numpy(v) for v in found.trainable_variables]
    found.set_state_tree({"optimizer_variables": tree_of(model)["optimizer_variables"]})
    np.testing.assert_array_equal(
        to_numpy(found.optimizer.variables[3]), to_numpy(model.optimizer.variables[3])
    )
    for variable, value in zip(found.trainable_variables, tables, strict=True):
        np.testing.assert_array_equal(to_numpy(variable), value)


def test_states_without_a_schema_load_by_shape():
    model, found = stepped(), stepped(seed=3)
    tree = tree_of(model)
    del tree["non_trainable_variables"]["flix_schema"]
    found.set_state_tree(tree)
    np.testing.assert_array_equal(to_numpy(found(DATA)), to_numpy(model(DATA)))


def test_averages_of_frozen_values_follow():
    model = small_model()
    model.compile(keras.optimizers.SGD(0.1, use_ema=True), loss="mse")
    keras_flix.set_trainable(model, {"language": ["sw"]})
    model.set_state_tree(tree_of_weights(stepped(seed=4)))
    optimizer = model.optimizer
    for variable, average in zip(
        optimizer._trainable_variables, optimizer._model_variables_moving_average
    ):
        if "flix_task" in variable.path:
            np.testing.assert_array_equal(to_numpy(average), to_numpy(variable))
