"""Other models over the layers of an adapted one, with features and without."""

import copy
import gc

import keras
import numpy as np
import pytest
from helpers.gemma import make_backbone, randomize, to_numpy
from helpers.models import make_mlp, rows
from keras import ops

import keras_flix

FEATURES = {"task": ["qa", "parse"]}
TASK = ["qa", None, "parse"]


def adapted(**options):
    model = keras_flix.enable_flix(
        make_mlp(), FEATURES, rank=2, targets=["hidden"], seed=0, **options
    )
    return randomize(model)


def looks_at_hidden(model):
    return keras.Model(model.input, model.get_layer("hidden").output)


def two_models():
    """Two models on one trunk, the first of them adapted."""
    keras.utils.set_random_seed(0)
    x = keras.Input((8,), name="x")
    trunk = keras.layers.Dense(6, activation="tanh", name="hidden")
    first = keras.Model({"x": x}, keras.layers.Dense(4, name="head")(trunk(x)))
    z = keras.Input((8,), name="z")
    second = keras.Model({"z": z}, keras.layers.Dense(2, name="other")(trunk(z)))
    keras_flix.enable_flix(first, FEATURES, rank=2, targets=["hidden"], seed=0)
    return randomize(first), second


def hidden_of_merged(model, value, x):
    merged = keras_flix.merge_features(model, {"task": value})
    return to_numpy(merged.get_layer("hidden")(x))


def test_a_model_that_looks_at_a_layer_equals_each_merged_one():
    model = adapted()
    looks = looks_at_hidden(model)
    assert keras_flix.share_features(model, looks) is looks
    x = rows()
    expected = np.concatenate(
        [
            hidden_of_merged(model, value, x["x"][i : i + 1])
            for i, value in enumerate(TASK)
        ]
    )
    mixed = {**x, "task": TASK}
    np.testing.assert_allclose(to_numpy(looks(mixed)), expected, atol=1e-6)
    found = looks.predict(mixed, verbose=0)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    with keras_flix.adapters_disabled(model):
        base = looks.predict(x, verbose=0)
        np.testing.assert_array_equal(base, looks.predict(mixed, verbose=0))
    plain = to_numpy(make_mlp().get_layer("hidden")(x["x"]))
    np.testing.assert_allclose(base, plain, atol=1e-6)
    # What the block compiled does not outlive it.
    np.testing.assert_array_equal(looks.predict(mixed, verbose=0), found)


def test_a_second_model_on_the_trunk_trains_the_same_tables():
    first, second = two_models()
    keras_flix.share_features(first, second)
    table = first._adaptation.layers["hidden"]._tables.variables["task"][1]
    before = to_numpy(table)
    second.compile(keras.optimizers.SGD(0.1), loss="mse")
    batch = {"z": rows()["x"], "task": ["qa"] * 3}
    second.fit(batch, np.ones((3, 2)), verbose=0)
    assert not np.array_equal(to_numpy(table)[0], before[0])
    np.testing.assert_array_equal(to_numpy(table)[1], before[1])
    names = {v.path.rpartition("/")[2] for v in second.trainable_variables}
    assert names == {"flix_task_a", "flix_task_b", "kernel", "bias"}
    assert {v.path for v in second.trainable_variables if "other" in v.path}


@pytest.mark.eager
def test_what_changes_the_values_reaches_the_other_model():
    first, second = two_models()
    keras_flix.share_features(first, second)
    second.compile(keras.optimizers.Adam(0.1), loss="mse")
    y = np.ones((3, 2))
    z = {"z": rows()["x"]}
    second.train_on_batch({**z, "task": ["qa"] * 3}, y)
    keras_flix.add_values(first, "task", ["list"], init="qa")
    a, b = first._adaptation.layers["hidden"]._tables.variables["task"]
    np.testing.assert_array_equal(
        to_numpy(second({**z, "task": "list"})), to_numpy(second({**z, "task": "qa"}))
    )
    keras_flix.set_trainable(first, {"task": ["list"]})
    before = to_numpy(b)
    second.train_on_batch({**z, "task": ["qa", "list", "parse"]}, y)
    after = to_numpy(b)
    np.testing.assert_array_equal(after[:2], before[:2])
    assert not np.array_equal(after[2], before[2])
    with keras_flix.adapters_disabled(second):
        assert to_numpy(first(rows())).shape == (3, 4)


def test_feature_dropout_is_drawn_in_the_other_model():
    model = adapted(dropout=0.5)
    looks = keras_flix.share_features(model, looks_at_hidden(model))
    looks.compile(keras.optimizers.SGD(0.0), loss="mse")
    x = {"x": np.repeat(rows(1)["x"], 64, axis=0), "task": "qa"}
    state = model._adaptation.dropout_seed.state
    before = to_numpy(state.value)
    looks.train_on_batch(x, np.zeros((64, 6)))
    assert not np.array_equal(to_numpy(state.value), before)
    assert len(np.unique(to_numpy(looks(x, training=True)).round(4), axis=0)) == 2


def test_a_model_around_an_adapted_one_is_built_within_the_block():
    model = adapted()
    x = keras.Input((8,), name="x")
    with keras_flix.adapters_disabled(model):
        around = keras.Model({"x": x}, ops.square(model({"x": x})))
    keras_flix.share_features(model, around)
    batch = {**rows(), "task": TASK}
    np.testing.assert_allclose(
        to_numpy(around(batch)), to_numpy(model(batch)) ** 2, rtol=1e-5
    )


@pytest.mark.short("torch")
def test_blocks_of_a_backbone():
    backbone = make_backbone()
    keras_flix.enable_flix(backbone, FEATURES, rank=2, seed=0)
    randomize(backbone)
    block = backbone.get_layer("decoder_block_0").output
    first = keras_flix.share_features(backbone, keras.Model(backbone.input, block))
    tokens = np.array([[2, 5, 6, 7]] * 3)
    inputs = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
    found = to_numpy(first({**inputs, "task": TASK}))
    for i, value in enumerate(TASK):
        merged = keras_flix.merge_features(backbone, {"task": value})
        block = merged.get_layer("decoder_block_0").output
        plain = keras.Model(merged.input, block)
        one = {name: x[i : i + 1] for name, x in inputs.items()}
        expected = to_numpy(plain(one))
        np.testing.assert_allclose(found[i : i + 1], expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.short("torch")
def test_a_model_that_is_gone_is_forgotten():
    model = adapted()
    keras_flix.share_features(model, looks_at_hidden(model))
    gc.collect()
    assert model._adaptation.users == [model]


def test_what_only_the_adapted_model_can_do(tmp_path):
    model = adapted()
    looks = keras_flix.share_features(model, looks_at_hidden(model))
    for refused in (
        lambda: keras_flix.save_adapters(looks, tmp_path / "x.flix.safetensors"),
        lambda: keras_flix.add_values(looks, "task", ["list"]),
        lambda: keras_flix.merge_features(looks, {"task": "qa"}),
        lambda: looks.save(tmp_path / "x.keras"),
        lambda: copy.deepcopy(looks),
    ):
        with pytest.raises(ValueError, match="must be the one that `enable_flix`"):
            refused()
    looks.save_weights(tmp_path / "x.weights.h5")
    randomize(model, seed=1)
    changed = to_numpy(looks({**rows(), "task": "qa"}))
    looks.load_weights(tmp_path / "x.weights.h5")
    assert not np.array_equal(to_numpy(looks({**rows(), "task": "qa"})), changed)


def test_what_is_refused_when_it_is_built_and_what_when_it_runs():
    model = adapted()
    hidden = model.get_layer("hidden")
    x = keras.Input((8,))
    text = r"must know the features \['task'\].* by `share_features\(model, other\)`"
    for build in (
        lambda: keras.Model(x, hidden(x)),
        lambda: keras.Sequential([x, hidden]),
    ):
        with pytest.raises(ValueError, match=text):
            build()
    # Keras makes this one of tensors that are there, and calls no layer: whether
    # features are then shared with it is known when it runs.
    looks = looks_at_hidden(model)
    with pytest.raises(ValueError, match=text):
        looks(rows())
    keras_flix.share_features(model, looks)
    assert to_numpy(looks({**rows(), "task": TASK})).shape == (3, 6)


def test_refusals_leave_the_other_model_as_it_was():
    model = adapted()
    looks = looks_at_hidden(model)
    plain, strange = make_mlp(), looks_at_hidden(adapted())
    unbuilt = keras.Sequential([model.get_layer("hidden")])
    x = keras.Input((8,), name="task")
    with keras_flix.adapters_disabled(model):
        same_name = keras.Model({"task": x}, model.get_layer("hidden")(x))
    cases = [
        (plain, "Received: none of them"),
        (strange, r"Received: \['hidden'\] of others"),
        (unbuilt, "Received: an unbuilt Sequential"),
        (model, "Received: an adapted Functional"),
        (same_name, "must not be called like one of the model's own inputs"),
        (model.get_layer("hidden"), "Received: an object of type FlixDense"),
    ]
    for other, text in cases:
        before = type(other)
        with pytest.raises(ValueError, match=text):
            keras_flix.share_features(model, other)
        assert type(other) is before
    with pytest.raises(ValueError, match=r"share_features\(model, other\)"):
        keras_flix.enable_flix(looks, FEATURES, targets=["hidden"])
    with pytest.raises(ValueError, match="without adapters"):
        keras_flix.share_features(plain, looks)
