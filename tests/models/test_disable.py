"""`adapters_disabled` reaches everything that runs adapted layers, and only there."""

import contextvars
import threading

import keras
import numpy as np
import pytest
from helpers.gemma import randomize, to_numpy
from helpers.models import make_mlp, rows

import keras_flix

FEATURES = {"task": ["qa", "parse"]}


def adapted(features=FEATURES):
    model = make_mlp()
    keras_flix.enable_flix(model, features, rank=2, targets=["hidden"], seed=0)
    return randomize(model)


def test_layers_blocks_and_score_are_those_of_the_base(make_gemma):
    model = make_gemma()
    ids = np.array([[2, 5, 6, 7]])
    mask = np.ones((1, 4), "int32")
    block = model.backbone.transformer_layers[0]
    x = np.random.default_rng(0).normal(size=(1, 4, 16)).astype("float32")
    tokens = {"token_ids": ids, "padding_mask": mask}
    calls = {
        "score": lambda: model.score(ids, padding_mask=mask),
        "score of a dict": lambda: model.score(tokens),
        "block": lambda: block(x),
        "layer": lambda: block.attention.query_dense(x),
        "sub-model": lambda: keras.Model(model.backbone.input, block.output)(tokens),
    }
    # A plain model takes no dict.
    whole = calls.pop("score of a dict")
    base = {name: to_numpy(call()) for name, call in calls.items()}
    calls["score of a dict"], base["score of a dict"] = whole, base["score"]
    randomize(keras_flix.enable_flix(model, FEATURES, rank=2))
    for name, call in calls.items():
        with keras_flix.adapters_disabled(model):
            np.testing.assert_array_equal(to_numpy(call()), base[name], name)
        with pytest.raises(ValueError, match="'task'"):
            call()


def test_it_holds_for_the_layers_of_this_model_only():
    # Of equal schemas, whose one feature need not be stated.
    shared = [keras_flix.Feature("shared", always=True)]
    one, other = adapted(shared), adapted(shared)
    layer = other.get_layer("hidden")
    x = rows()["x"]
    expected = to_numpy(other(rows())), to_numpy(layer(x))
    with keras_flix.adapters_disabled(one):
        np.testing.assert_array_equal(to_numpy(other(rows())), expected[0])
        np.testing.assert_array_equal(to_numpy(layer(x)), expected[1])
        base = to_numpy(one.get_layer("hidden")(x))
    assert not np.array_equal(base, expected[1])


CHANGES = {
    "compile": lambda model: model.compile(keras.optimizers.SGD(2.0), loss="mae"),
    "set_trainable": lambda model: keras_flix.set_trainable(model, {"task": ["qa"]}),
    "set_learning_rates": lambda model: keras_flix.set_learning_rates(model, 8.0),
    "add_values": lambda model: keras_flix.add_values(
        model, "task", ["list"], init="qa"
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_within_holds_afterwards(change):
    within, without = adapted(), adapted()
    x, y = {**rows(2), "task": ["qa", "parse"]}, np.ones((2, 4))
    for model in (within, without):
        model.compile(keras.optimizers.SGD(0.1), loss="mse")
        model.fit(x, y, verbose=0)
        model.evaluate(x, y, verbose=0)
        model.predict(x, verbose=0)
    with keras_flix.adapters_disabled(within):
        CHANGES[change](within)
        within.predict(rows(2), verbose=0)
    CHANGES[change](without)
    if change == "add_values":
        x = {**x, "task": ["list", "parse"]}
    found, expected = (m.predict(x, verbose=0) for m in (within, without))
    np.testing.assert_array_equal(found, expected)
    found, expected = (m.evaluate(x, y, verbose=0) for m in (within, without))
    assert found == expected
    for model in (within, without):
        model.fit(x, y, verbose=0)
    for one, other in zip(within.trainable_variables, without.trainable_variables):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))


def test_what_was_compiled_before_is_kept():
    model, x = adapted(), {**rows(2), "task": ["qa", "parse"]}
    model.predict(x, verbose=0)
    before = model.predict_function
    with keras_flix.adapters_disabled(model):
        model.predict(rows(2), verbose=0)
    assert model.predict_function is before


def test_it_holds_in_its_own_context_only():
    model = adapted()
    layer, x = model.get_layer("hidden"), rows()["x"]
    found = {}

    def look(name):
        found[name] = to_numpy(layer(x, features={"task": "qa"}))

    look("before")
    with keras_flix.adapters_disabled(model):
        look("within")
        context = contextvars.copy_context()
        for name, run in (
            ("other thread", lambda: look("other thread")),
            ("worker", lambda: context.run(look, "worker")),
        ):
            thread = threading.Thread(target=run, name=name)
            thread.start()
            thread.join()
    look("after")
    assert not np.array_equal(found["within"], found["before"])
    np.testing.assert_array_equal(found["worker"], found["within"])
    for name in ("other thread", "after"):
        np.testing.assert_array_equal(found[name], found["before"])


@pytest.mark.short("jax", "tensorflow", "torch")
def test_another_model_is_not_compiled_without_adapters():
    model = adapted()
    looks = keras.Model(model.input, model.get_layer("hidden").output)
    with keras_flix.adapters_disabled(model):
        base = to_numpy(looks(rows()))
        if keras.config.backend() == "torch":
            # Compiles nothing, so nothing stays.
            np.testing.assert_array_equal(looks.predict(rows(), verbose=0), base)
        else:
            with pytest.raises(ValueError, match="Within `adapters_disabled`"):
                looks.predict(rows(), verbose=0)
    with pytest.raises(ValueError, match=r"share_features\(model, other\)"):
        looks.predict(rows(), verbose=0)
    assert to_numpy(model({**rows(), "task": "qa"})).shape == (3, 4)
