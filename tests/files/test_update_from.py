"""`update_from`: values trained elsewhere on the same base come over bit by bit."""

import re
import time

import keras
import numpy as np
import pytest
from helpers.gemma import FEATURES, randomize, to_numpy
from helpers.models import make_mlp, rows, state

import keras_flix
from keras_flix import Feature
from keras_flix.files.saving import adapters_of

LANGUAGES = FEATURES["language"]
BATCH = {**rows(), "task": ["qa", None, "list"], "language": ["sw", "en", None]}


def adapted(features=None, *, seed=0, base=0, targets="all-linear", **options):
    features = features or FEATURES
    options = {"rank": 2, **options}
    model = keras_flix.enable_flix(make_mlp(base), features, targets=targets, **options)
    return randomize(model, seed=seed)


def with_languages(*languages):
    return {**FEATURES, "language": list(languages)}


def tables_of(model):
    return adapters_of(model).tables


def row(model, axis, value):
    """All that a value owns, by table."""
    at = model._adaptation.schema[axis].id_of(value)
    names = [name for name in tables_of(model) if f"flix_{axis}_" in name]
    return {name: tables_of(model)[name][at] for name in names}


def assert_same_value(model, other, axis, value):
    for name, table in row(other, axis, value).items():
        np.testing.assert_array_equal(row(model, axis, value)[name], table)


@pytest.mark.support("Life of an adapter", "`update_from`")
@pytest.mark.parametrize("as_file", [True, False])
def test_new_values_come_over_bit_by_bit(tmp_path, as_file):
    model = adapted()
    other = adapted(with_languages("yo", "rw", "en", "lg"), seed=5)
    before = {v: row(model, "language", v) for v in LANGUAGES}
    tasks = {v: row(model, "task", v) for v in FEATURES["task"]}
    expected = to_numpy(model(BATCH))
    source = other
    if as_file:
        source = tmp_path / "other.flix.safetensors"
        keras_flix.save_adapters(other, source)
    assert keras_flix.update_from(model, source) is model
    language = model._adaptation.schema["language"]
    assert language.values == (*LANGUAGES, "rw", "lg")
    for value in ("rw", "lg"):
        assert_same_value(model, other, "language", value)
    for value, tables in before.items():
        for name, table in row(model, "language", value).items():
            np.testing.assert_array_equal(table, tables[name])
    for value, tables in tasks.items():
        for name, table in row(model, "task", value).items():
            np.testing.assert_array_equal(table, tables[name])
    np.testing.assert_array_equal(to_numpy(model(BATCH)), expected)
    # The update of the language alone is the one it was trained as.
    alone = {**rows(), "task": None, "language": "rw"}
    np.testing.assert_array_equal(to_numpy(model(alone)), to_numpy(other(alone)))
    # And the model is a whole one: it is saved, loaded and trained.
    path = tmp_path / "grown.flix.safetensors"
    keras_flix.save_adapters(model, path)
    loaded = keras_flix.load_adapters(make_mlp(), path)
    np.testing.assert_array_equal(to_numpy(loaded(alone)), to_numpy(model(alone)))


def test_named_values_are_overwritten_and_others_left_out():
    model = adapted()
    other = adapted(with_languages("sw", "rw", "lg"), seed=5)
    old_task = row(model, "task", "qa")
    keras_flix.update_from(model, other, {"language": ["rw", "sw"]})
    assert model._adaptation.schema["language"].values == (*LANGUAGES, "rw")
    for value in ("sw", "rw"):
        assert_same_value(model, other, "language", value)
    for name, table in row(model, "task", "qa").items():
        np.testing.assert_array_equal(table, old_task[name])
    keras_flix.update_from(model, other, {"task": ["qa"], "language": ["lg"]})
    assert_same_value(model, other, "task", "qa")
    assert_same_value(model, other, "language", "lg")


def test_values_bring_their_ranks_and_scales():
    model = adapted(alpha=4)
    features = [
        Feature("task", FEATURES["task"]),
        Feature("language", ["rw", "lg"], rank={"rw": 3, "*": 1}),
    ]
    other = adapted(features, alpha=4, seed=5)
    for layer in other._adaptation.layers.values():
        a, b = (to_numpy(v).copy() for v in layer._tables.variables["language"])
        # Beyond a value's own rank there are zeros.
        a[1, :, 1:], b[1, 1:] = 0, 0
        for variable, value in zip(layer._tables.variables["language"], (a, b)):
            variable.assign(value)
    keras_flix.update_from(model, other)
    assert model._adaptation.schema["language"].ranks == (2, 2, 2, 3, 1)
    combinations = [{"task": None, "language": v} for v in ("rw", "lg")]
    for combination in combinations:
        one, two = (
            to_numpy(m.get_layer("head").kernel_delta(combination))
            for m in (model, other)
        )
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-7)


def test_an_axis_that_is_always_active_is_taken_when_named():
    features = [Feature("language", LANGUAGES), Feature("shared", always=True)]
    model, other = adapted(features), adapted(features, seed=5)
    with pytest.raises(ValueError, match="must have values that the model does not"):
        keras_flix.update_from(model, other)
    keras_flix.update_from(model, other, {"shared": ["shared"]})
    assert_same_value(model, other, "shared", "shared")


def test_training_goes_on():
    model = adapted()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    targets = np.zeros((3, 4), "float32")
    model.train_on_batch(BATCH, targets)
    keras_flix.update_from(model, adapted(with_languages("rw"), seed=5))
    before = row(model, "language", "rw")
    model.train_on_batch({**BATCH, "language": "rw"}, targets)
    after = row(model, "language", "rw")
    assert any(np.abs(after[name] - before[name]).max() > 0 for name in before)


def test_averages_of_a_frozen_value_are_its_new_weights():
    model, other = adapted(), adapted(seed=5)
    model.compile(keras.optimizers.Adam(0.1, use_ema=True), "mse")
    keras_flix.set_trainable(model, {"language": ["sw"]})
    targets = np.zeros((3, 4), "float32")
    model.train_on_batch(BATCH, targets)
    keras_flix.update_from(model, other, {"language": ["en"]})
    model.evaluate(
        BATCH, targets, verbose=0, callbacks=[EndsSwapped(swap_on_epoch=False)]
    )
    assert_same_value(model, other, "language", "en")


class EndsSwapped(keras.callbacks.SwapEMAWeights):
    """Leaves the averages in the place of the weights."""

    def on_test_end(self, logs=None):
        pass


def test_the_workflow_of_two_people(tmp_path):
    """One file, a value trained alone by somebody else, and the value back."""
    path = tmp_path / "one.flix.safetensors"
    model = adapted()
    keras_flix.save_adapters(model, path)
    theirs = keras_flix.load_adapters(make_mlp(), path)
    keras_flix.add_values(theirs, "language", ["rw"], init="sw")
    theirs._adaptation.layers["head"]._tables.variables["language"][1].assign_add(
        np.arange(4)[:, None, None] == np.full((4, 2, 4), 3)
    )
    keras_flix.save_adapters(theirs, path)
    keras_flix.update_from(model, path)
    batch = {**BATCH, "language": ["rw", "en", "sw"]}
    np.testing.assert_array_equal(to_numpy(model(batch)), to_numpy(theirs(batch)))


@pytest.mark.parametrize(
    ("other", "values", "text"),
    [
        (
            {},
            None,
            "Without `values`, `other` must have values that the model does not have. "
            "Received: values=None, and {source} without any. Name those that are to "
            "be overwritten.",
        ),
        (
            {"features": {"task": ["qa"], "domain": ["web"]}},
            None,
            "Without `values`, all features of `other` must be the model's: ['task', "
            "'language']. Received: values=None, and {source} with the feature "
            "'domain'. Name the values to take over, such as values={{'task': [...]}}.",
        ),
        (
            {},
            {"domain": ["web"]},
            "A feature must be one of the model's: ['task', 'language']. Received: "
            "'domain'.",
        ),
        (
            {"features": {"task": ["qa"]}},
            {"language": ["rw"]},
            "`values` must name features that `other` has. Received: 'language', and "
            "{source} with ['task']. Leave it out.",
        ),
        (
            {},
            ["rw"],
            "`values` must be None or a dict from the name of a feature to a list of "
            "values. Received: values=['rw']. Write such as {{'task': [...]}}.",
        ),
        (
            {},
            {"language": ["rw"]},
            "A value of feature 'language' must be one of its 3 values. Received: "
            "language='rw'. Known values: 'en', "
            "'sw', 'yo'. State absence as None.",
        ),
        (
            {"targets": ["hidden"]},
            {"language": ["sw"]},
            "Feature 'language' must be in the same layers of both. Received: "
            "{source}, where 1 differ: 'head' has adapter weights of it in the model "
            "only. Adapt both with the same `targets`.",
        ),
        (
            {"alpha": 8},
            {"language": ["sw"]},
            "The scale of feature 'language' must be the same in both. Expected: "
            "alpha=None. Received: alpha=8.0 in {source}. Adapt both with the same "
            "alpha and scale.",
        ),
        (
            {"alpha": 8, "scale": "sqrt"},
            {"language": ["sw"]},
            "The scale of feature 'language' must be the same in both. Expected: "
            "alpha=None. Received: alpha=8.0, scale='sqrt' in {source}. Adapt both "
            "with the same alpha and scale.",
        ),
        (
            {"rank": {"task": 2, "language": 3}},
            {"language": ["sw"]},
            "A value that is overwritten must have the rank it has in the model. "
            "Expected: rank=2 of language='sw'. Received: rank=3 in {source}. Remove "
            "the value with `remove_values` first, or give it another name with "
            "`rename_value`.",
        ),
        (
            {"base": 1},
            {"language": ["sw"]},
            "Adapters must be loaded into the base model that they were trained on. "
            "Received: {source}, from a base that differs from the model in 2 of the 4 "
            "variables that both have: 'head/kernel', 'hidden/kernel'. Load the right "
            "base, or pass check_base=False to go without this check.",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, other, values, text):
    model, path = adapted(), tmp_path / "other.flix.safetensors"
    keras_flix.save_adapters(adapted(seed=5, **other), path)
    before = state(model, BATCH)
    with pytest.raises(ValueError) as error:
        keras_flix.update_from(model, path, values)
    assert str(error.value) == text.format(source=f"'{path}'")
    assert state(model, BATCH) == before


def test_layers_that_the_model_does_not_have_are_refused():
    """Though what is asked for has adapter weights in the same layers of both."""
    features = [
        Feature("task", FEATURES["task"]),
        Feature("language", LANGUAGES, targets=["hidden"]),
    ]
    model, other = adapted(targets=["hidden"]), adapted(features)
    before = state(model, BATCH)
    with pytest.raises(ValueError, match="1 differ: 'head' is adapted in `other` only"):
        keras_flix.update_from(model, other, {"language": ["sw"]})
    assert state(model, BATCH) == before


def test_another_base_can_be_waved_through():
    model, other = adapted(), adapted(with_languages("rw"), seed=5, base=1)
    with pytest.raises(ValueError, match="base model that they were trained on"):
        keras_flix.update_from(model, other)
    keras_flix.update_from(model, other, check_base=False)
    assert_same_value(model, other, "language", "rw")


def test_other_sizes_are_refused():
    x = keras.Input((8,), name="x")
    hidden = keras.layers.Dense(5, name="hidden")(x)
    other = keras.Model({"x": x}, keras.layers.Dense(4, name="head")(hidden))
    keras_flix.enable_flix(other, with_languages("rw"), rank=2, targets="all-linear")
    text = "At 'hidden', expected: (d_in, d_out)=(8, 6). Received: (8, 5) in"
    with pytest.raises(ValueError, match=re.escape(text)):
        keras_flix.update_from(adapted(), other)


def test_of_two_axes_none_changes_if_one_cannot():
    model = adapted()
    features = {"task": ["sum"], "language": ["sw"]}
    other = adapted(features, seed=5, rank={"task": 2, "language": 3})
    before = state(model, BATCH)
    with pytest.raises(ValueError, match="must have the rank it has in the model"):
        keras_flix.update_from(model, other, {"task": ["sum"], "language": ["sw"]})
    assert state(model, BATCH) == before


def test_time_grows_with_the_number_of_values_alone():
    names = [f"user-{i}" for i in range(30_000)]
    model, other = (
        adapted({"user": users}, rank=1, targets=["head"])
        for users in (names[:20_000], names[10_000:])
    )
    start = time.process_time()
    keras_flix.update_from(model, other)
    keras_flix.update_from(model, other, {"user": names[10_000:20_000]})
    # Both searched all values for each of them: half a minute.
    assert time.process_time() - start < 4
    assert model._adaptation.schema["user"].values == tuple(names)
    assert_same_value(model, other, "user", names[10_000])
