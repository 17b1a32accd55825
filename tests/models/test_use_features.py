"""Features stated for calls that bring none are as the same ones in an input dict."""

import asyncio
import contextvars
import copy
import threading

import keras
import numpy as np
import pytest
from helpers.gemma import FEATURES, randomize, to_numpy
from helpers.models import make_mlp, rows
from keras import ops

import keras_flix
from keras_flix import set_default_features, use_features

PROMPTS = ["the quick", "dog", "fox jumps over"]
STATED = {"task": "qa", "language": "sw"}


@pytest.fixture(scope="module")
def gemma(make_gemma):
    model = make_gemma()
    # Embeddings of unit size let the next token depend on more than the last.
    embedding = model.backbone.token_embedding.embeddings
    generator = np.random.default_rng(1)
    embedding.assign(generator.normal(size=embedding.shape) * 0.3)
    keras_flix.enable_flix(model, FEATURES, rank=2)
    model.compile(sampler="greedy", loss="sparse_categorical_crossentropy")
    return randomize(model, scale=0.8)


MLP = {
    "task": ["qa", "parse"],
    "language": ["en", "sw", "yo"],
}


def mlp(features=MLP, **options):
    model = make_mlp()
    keras_flix.enable_flix(
        model, features, rank=2, targets=["hidden"], seed=0, **options
    )
    return randomize(model)


def predict(model, x=None, **features):
    x = rows() if x is None else x
    return model.predict({**x, **features} if features else x, verbose=0)


def generated(model, **features):
    inputs = {"prompts": PROMPTS, **features} if features else PROMPTS
    return model.generate(inputs, max_length=16)


def test_every_way_to_ask_equals_the_merged_model(gemma):
    expected = generated(gemma, **STATED)
    tokens = gemma.preprocessor.generate_preprocess(PROMPTS, sequence_length=16)
    ids = tokens["token_ids"]
    merged = keras_flix.merge_features(gemma, STATED)
    assert generated(merged) == expected
    with use_features(gemma, **STATED) as entered:
        assert entered is gemma
        assert generated(gemma) == expected
        assert gemma.generate(PROMPTS[0], max_length=16) == expected[0]
        found = {
            "call": gemma(tokens),
            "backbone": gemma.backbone(tokens),
            "predict": gemma.predict(PROMPTS, verbose=0),
            "score": gemma.score(ids, padding_mask=tokens["padding_mask"]),
            "evaluate": gemma.evaluate(PROMPTS, verbose=0),
        }
    dicts = {
        "call": gemma({**tokens, **STATED}),
        "backbone": gemma.backbone({**tokens, **STATED}),
        "predict": gemma.predict({"text": PROMPTS, **STATED}, verbose=0),
        "score": gemma.score({**tokens, **STATED}),
        "evaluate": gemma.evaluate({"text": PROMPTS, **STATED}, verbose=0),
    }
    for name, value in found.items():
        np.testing.assert_array_equal(to_numpy(value), to_numpy(dicts[name]), name)
    # The same compiled step, whose features are inputs.
    with use_features(gemma, task=None, language="yo"):
        assert generated(gemma) == generated(gemma, task=None, language="yo")
        # The whole model states the features of its parts.
        assert generated(gemma, **STATED) == expected
    np.testing.assert_allclose(
        to_numpy(found["call"]), to_numpy(merged(tokens)), atol=1e-4
    )
    with pytest.raises(ValueError, match="no entry 'task'"):
        gemma.generate(PROMPTS, max_length=16)


@pytest.mark.eager
def test_what_is_stated_nearest_wins():
    model = mlp()
    everything = {"task": "qa", "language": "en"}
    set_default_features(model, everything)
    for given, language in (({}, "en"), ({"language": "yo"}, "yo")):
        np.testing.assert_array_equal(
            predict(model, **given), predict(model, task="qa", language=language)
        )
    # Absence is a statement, too.
    absent = predict(model, task="qa", language=None)
    np.testing.assert_array_equal(predict(model, language=None), absent)
    np.testing.assert_array_equal(predict(model, language=[-1] * 3), absent)
    with use_features(model, language="sw"):
        of_block = predict(model)
        np.testing.assert_array_equal(of_block, predict(model, task="qa"))
        with pytest.raises(KeyError), use_features(model, {"task": None}):
            np.testing.assert_array_equal(
                predict(model), predict(model, task=None, language="sw")
            )
            raise KeyError
        np.testing.assert_array_equal(predict(model), of_block)
        # It takes effect at once, also beside a block.
        set_default_features(model, {"task": "parse"})
        np.testing.assert_array_equal(
            predict(model), predict(model, task="parse", language="sw")
        )
    with pytest.raises(ValueError, match="no entry 'language'"):
        predict(model)
    set_default_features(model, None)
    with pytest.raises(ValueError, match="no entry 'task'"):
        predict(model, language="en")


@pytest.mark.short("torch")
@pytest.mark.eager
def test_values_of_all_kinds():
    kind = keras_flix.Feature("kind-of", ["a", "b", "c"], multiple=True)
    year = keras_flix.Feature("year", [1900, 7, 1])
    model = mlp([kind, year, keras_flix.Feature("shared", always=True)])
    for stated, entry in (
        (["a", "c"], [["a", "c"]] * 3),
        ("b", ["b"] * 3),
        ([], [[]] * 3),
        (None, None),
        ({"a": 0.3, "b": -1.7}, {"a": 0.3, "b": -1.7}),
        (np.array([1, 2]), np.array([[1, 2]] * 3)),
        (ops.array([1, 2]), np.array([[1, 2]] * 3)),
    ):
        for key, value in (("year", 1900), ("year:ids", 2), ("year", {7: 2.0})):
            with use_features(model, {"kind-of": stated, key: value}):
                found = to_numpy(model(rows()["x"]))
            expected = to_numpy(model({**rows(), "kind-of": entry, key: value}))
            np.testing.assert_array_equal(found, expected)


@pytest.mark.short("torch")
@pytest.mark.eager
def test_refusals_state_nothing():
    model = mlp()
    set_default_features(model, {"task": "qa"})
    for given, text in (
        ({"language": "swa"}, "nearest known value is 'sw'"),
        ({"langauge": "sw"}, "belong to the schema's features"),
        ({"language": ["en", "sw"]}, "one value per feature, a dict from values"),
        ({"language": np.array([0])}, "one value per feature, a dict from values"),
        ({"language": 3}, r"must be in \[0, 3\)"),
    ):
        with pytest.raises(ValueError, match=text):
            set_default_features(model, given)
        with pytest.raises(ValueError, match=text), use_features(model, given):
            raise AssertionError
    with pytest.raises(ValueError, match="as a dict from their names"):
        set_default_features(model, ["qa"])
    with (
        pytest.raises(ValueError, match=r"stated once. Received: \['task'\]"),
        use_features(model, {"task": "qa"}, task="qa"),
    ):
        raise AssertionError
    plain = make_mlp()
    for call in (
        lambda: keras_flix.schema_of(plain),
        lambda: set_default_features(plain, None),
        lambda: use_features(plain).__enter__(),
    ):
        with pytest.raises(ValueError, match=r"Call `enable_flix\(model, ...\)` first"):
            call()
    always = mlp([keras_flix.Feature("shared", always=True)])
    with (
        pytest.raises(ValueError, match="always active and takes no entry"),
        use_features(always, shared="shared"),
    ):
        raise AssertionError
    expected = predict(model, task="qa", language="en")
    np.testing.assert_array_equal(predict(model, language="en"), expected)


def in_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.short("torch")
@pytest.mark.eager
def test_a_block_is_its_own_threads_and_tasks():
    model = mlp()
    x = rows()["x"]

    def ask():
        return to_numpy(model(x))

    set_default_features(model, {"task": "qa", "language": "en"})
    outside = ask()
    with use_features(model, language="sw"):
        within = ask()
        context = contextvars.copy_context()
        np.testing.assert_array_equal(in_thread(ask), outside)
        np.testing.assert_array_equal(in_thread(lambda: context.run(ask)), within)
    assert not np.array_equal(within, outside)

    async def chat(language, started, others):
        with use_features(model, language=language):
            started.set()
            await others.wait()
            return ask(), await asyncio.to_thread(ask)

    async def both():
        events = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(chat("sw", *events), chat("yo", *events[::-1]))

    for language, found in zip(("sw", "yo"), asyncio.run(both())):
        with use_features(model, language=language):
            for one in found:
                np.testing.assert_array_equal(one, ask())


class Trainings(keras.callbacks.Callback):
    """Asks while `fit` runs."""

    def on_epoch_end(self, epoch, logs=None):
        self.answer = to_numpy(self.model(rows()["x"]))


@pytest.mark.eager
def test_training_takes_features_from_blocks_alone():
    model, x, y = mlp(), rows()["x"], np.ones((3, 4))
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    a, b = model._adaptation.layers["hidden"]._tables.variables["language"]
    set_default_features(model, {"task": "qa", "language": "en"})
    before = to_numpy(a).copy(), to_numpy(b).copy()
    for call in (
        lambda: model.fit(x, y, verbose=0),
        lambda: model.train_on_batch({"x": x, "task": "qa"}, y),
        lambda: model(x, training=True),
    ):
        with pytest.raises(ValueError, match="Training takes no features from `set_d"):
            call()
    np.testing.assert_array_equal(to_numpy(b), before[1])
    asks = Trainings()
    with use_features(model, task="qa", language="sw"):
        model.fit(x, y, validation_data=(x, y), callbacks=[asks], verbose=0)
        assert np.isfinite(model.evaluate(x, y, verbose=0))
        np.testing.assert_array_equal(asks.answer, to_numpy(model(x)))
    moved = [not np.array_equal(row, old) for row, old in zip(to_numpy(b), before[1])]
    assert moved == [False, True, False]


def batches(kind, x):
    if kind == "tf.data":
        tf = pytest.importorskip("tensorflow", reason="extra `tensorflow`")
        return tf.data.Dataset.from_tensor_slices((x,)).batch(2)
    if kind == "generator":
        return (((part,)) for part in (x[:2], x[2:]))
    grain = pytest.importorskip("grain", reason="grain is not installed")
    return grain.MapDataset.source([(row,) for row in x]).batch(2)


@pytest.mark.short("torch")
@pytest.mark.parametrize(
    "kind",
    [pytest.param("tf.data", marks=pytest.mark.slow), "generator", "grain"],
)
def test_sources_are_read_with_the_features_of_the_call(kind):
    model, x = mlp(), rows()["x"]
    stated = {"task": "qa", "language": {"en": 0.5, "sw": 0.5}}
    with use_features(model, stated):
        found = model.predict(batches(kind, x), verbose=0)
    expected = predict(model, **stated)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.short("torch")
@pytest.mark.parametrize(
    "kind", [pytest.param("tf.data", marks=pytest.mark.slow), "grain"]
)
def test_texts_of_sources(gemma, kind):
    data = batches(kind, np.array(PROMPTS))
    with use_features(gemma, **STATED):
        found = gemma.evaluate(data, verbose=0)
    inputs = {"text": PROMPTS, **STATED}
    expected = gemma.evaluate(inputs, batch_size=2, verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def compiled(function, x):
    if keras.config.backend() == "jax":
        import jax

        return jax.jit(function)
    if keras.config.backend() == "torch":
        import torch

        return torch.jit.trace(function, x, check_trace=False)
    import tensorflow as tf

    return tf.function(function)


def test_nothing_compiled_keeps_what_was_stated():
    model = mlp()
    x = ops.convert_to_tensor(rows()["x"])
    language = ops.array([2, 2, 2])
    with use_features(model, task="qa", language="sw"):
        for own in (lambda x: model(x), lambda _: model(x)):
            with pytest.raises(ValueError, match="the features among its inputs"):
                compiled(own, x)(x)
        with pytest.raises(ValueError, match="the features among its inputs"):
            model({"x": keras.Input((8,), name="x")})
    if keras.config.backend() != "torch":
        given = {"x": x, "task": ops.zeros((3,), "int32")}
        ask = compiled(lambda language: model({**given, "language": language}), None)
        with use_features(model, task="qa", language="sw"):
            found = to_numpy(ask(language))
        expected = predict(model, task="qa", language="yo")
        np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.short("jax", "tensorflow")
def test_one_compiled_step_serves_all_values():
    model, calls = mlp(), []
    layer = model.get_layer("hidden")
    call = layer.call

    def counted(*args, **kwargs):
        calls.append(1)
        return call(*args, **kwargs)

    object.__setattr__(layer, "call", counted)
    predict(model, task="qa", language="en")
    first = len(calls)
    found = []
    for language in ("en", "sw", "yo"):
        set_default_features(model, {"task": "qa", "language": language})
        found.append(predict(model))
    if keras.config.backend() != "torch":
        assert len(calls) == first
    for language, one in zip(("en", "sw", "yo"), found):
        np.testing.assert_array_equal(one, predict(model, task="qa", language=language))


@pytest.mark.short("torch")
@pytest.mark.eager
def test_values_that_change_never_stand_for_others():
    model = mlp()
    set_default_features(model, {"task": "qa", "language": 2})
    yo = predict(model)
    keras_flix.remove_values(model, "language", ["en"])
    np.testing.assert_array_equal(predict(model), yo)
    keras_flix.rename_value(model, "language", "yo", "yor")
    np.testing.assert_array_equal(predict(model), yo)
    assert keras_flix.schema_of(model)["language"].values == ("sw", "yor")
    # Another one of the old name is another value.
    keras_flix.add_values(model, "language", ["yo"])
    np.testing.assert_array_equal(predict(model), yo)
    keras_flix.remove_values(model, "language", ["yor"])
    with pytest.raises(ValueError, match=r"Received: language='yor'"):
        predict(model)


@pytest.mark.short("torch")
@pytest.mark.eager
def test_they_are_no_part_of_the_model(tmp_path):
    model = mlp()
    set_default_features(model, {"task": "qa", "language": "sw"})
    expected = predict(model)
    with use_features(model, task="parse"):
        model.save(tmp_path / "model.keras")
        copied = copy.deepcopy(model)
    for other in (copied, keras.models.load_model(tmp_path / "model.keras")):
        with pytest.raises(ValueError, match="no entry"):
            predict(other)
        found = predict(other, task="qa", language="sw")
        np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(predict(model), expected)


@pytest.mark.short("torch")
@pytest.mark.eager
def test_models_that_share_features_and_the_base():
    model = mlp()
    looks = keras.Model(model.input, model.get_layer("hidden").output)
    keras_flix.share_features(model, looks)
    expected = predict(looks, task="qa", language="sw")
    assert keras_flix.schema_of(looks) is keras_flix.schema_of(model)
    with use_features(model, task="qa"), use_features(looks, language="sw"):
        np.testing.assert_array_equal(predict(looks), expected)
        with keras_flix.adapters_disabled(model):
            base = predict(model)
    # What a backend compiles for other inputs may round otherwise.
    expected = predict(model, task=None, language=None)
    np.testing.assert_allclose(base, expected, rtol=1e-5, atol=1e-7)
    set_default_features(looks, {"task": "qa", "language": "sw"})
    expected = predict(model, task="qa", language="sw")
    np.testing.assert_allclose(predict(model), expected, rtol=1e-5, atol=1e-7)


class Takes(keras.Model):
    """A model that tells no names of its inputs."""

    def __init__(self):
        super().__init__()
        self.hidden = keras.layers.Dense(4, name="hidden")

    def call(self, inputs):
        return self.hidden(inputs)


@pytest.mark.short("torch", "jax")
@pytest.mark.eager
def test_models_that_take_no_dict():
    keras.utils.set_random_seed(0)
    x = rows()["x"]
    one, two = keras.Input((8,), name="one"), keras.Input((8,), name="two")
    head = keras.layers.Dense(4, name="hidden")
    takes = Takes()
    takes(x)
    for model, own in (
        (keras.Model([one, two], head(one + two)), [x, 2 * x]),
        (
            keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="hidden")]),
            x,
        ),
        (takes, x),
    ):
        features = {"inputs": ["qa", "parse"]}
        keras_flix.enable_flix(model, features, rank=2, targets=["hidden"])
        randomize(model)
        expected = predict(model, {"own": own, "inputs": "parse"})
        with use_features(model, inputs="parse"):
            np.testing.assert_array_equal(predict(model, own), expected)
            np.testing.assert_allclose(to_numpy(model(own)), expected, atol=1e-6)
    model = keras.Model({"one": one, "two": two}, keras.layers.Dense(4, name="h")(one))
    keras_flix.enable_flix(model, {"task": ["qa"]}, targets=["h"])
    with (
        use_features(model, task="qa"),
        pytest.raises(ValueError, match=r"must be a dict of \['one', 'two'\]"),
    ):
        model([x, x])
