"""Adapters survive saving: in their own file and in Keras' weight files."""

import os
import subprocess
import sys

import keras
import keras_hub
import numpy as np
import pytest
from helpers.gemma import FEATURES, make_backbone, randomize, to_numpy
from helpers.models import make_centred
from helpers.places import TESTS

import keras_flix

pytestmark = pytest.mark.eager

INPUTS = {
    "token_ids": np.arange(15).reshape(3, 5).astype("int32"),
    "padding_mask": np.ones((3, 5), "int32"),
    "task": np.array([0, 2, -1], "int32"),
    "language": np.array([1, -1, 2], "int32"),
}


def adapted(seed=0, **kwargs):
    model = seeded_backbone(seed)
    features = [
        keras_flix.Feature("task", FEATURES["task"], rank={"qa": 1, "*": 3}),
        keras_flix.Feature("language", FEATURES["language"]),
        keras_flix.Feature("shared", always=True),
    ]
    options = {"rank": 2, "alpha": 4, "targets": "all-linear", **kwargs}
    return randomize(keras_flix.enable_flix(model, features, **options), seed=seed)


def seeded_backbone(seed=0):
    """A backbone whose weights are the same numbers on every backend."""
    model = make_backbone()
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        variable.assign(generator.normal(size=variable.shape) * 0.2)
    return model


def outputs(model, inputs=INPUTS):
    return to_numpy(model(inputs))


@pytest.mark.slow
@pytest.mark.short("torch")
def test_a_scale_by_the_square_root_of_the_rank_lives_on(tmp_path):
    path = tmp_path / "one.flix.safetensors"
    model = adapted(scale="sqrt")
    mixed = outputs(model)
    names = ("task", "language")
    for i in range(3):
        merged = keras_flix.merge_features(
            model,
            {
                n: model._adaptation.schema[n].decode(INPUTS[n][i : i + 1])[0]
                for n in names
            },
        )
        plain = {n: v[i : i + 1] for n, v in INPUTS.items() if n not in names}
        np.testing.assert_allclose(outputs(merged, plain)[0], mixed[i], atol=2e-5)
    assert np.abs(outputs(adapted()) - mixed).max() > 1e-2
    keras_flix.save_adapters(model, path)
    with pytest.raises(ValueError, match="Received: alpha=4.0, scale='sqrt' in"):
        keras_flix.load_adapters(adapted(), path)
    loaded = keras_flix.load_adapters(seeded_backbone(), path)
    model.save(tmp_path / "model.keras")
    for other in (loaded, keras.models.load_model(tmp_path / "model.keras")):
        np.testing.assert_array_equal(outputs(other), mixed)
        keras_flix.add_values(other, "task", ["new"], init="qa", rank=4)
        np.testing.assert_allclose(outputs(other), mixed, atol=1e-5)
        new = outputs(other, {**INPUTS, "task": "new"})
        np.testing.assert_allclose(new[0], mixed[0], atol=1e-5)
        keras_flix.add_feature(other, keras_flix.Feature("domain", ["web"], rank=9))
        assert other._adaptation.schema["domain"].scales == (4 / 3,)


@pytest.mark.support("State", "`save_adapters` and `load_adapters`")
def test_adapter_file_onto_an_adapted_and_a_plain_model(tmp_path):
    path = tmp_path / "one.flix.safetensors"
    model = adapted()
    keras_flix.save_adapters(model, path)
    other = adapted()
    randomize(other, seed=5)
    assert np.abs(outputs(other) - outputs(model)).max() > 1e-2
    assert keras_flix.load_adapters(other, path) is other
    np.testing.assert_array_equal(outputs(other), outputs(model))
    plain = seeded_backbone()
    keras_flix.load_adapters(plain, path)
    np.testing.assert_array_equal(outputs(plain), outputs(model))
    assert plain._adaptation.schema == model._adaptation.schema
    names = {v.path for v in plain.trainable_variables}
    assert names == {v.path for v in model.trainable_variables}


def test_saving_replaces_a_file_at_once(tmp_path, monkeypatch):
    path = tmp_path / "one.flix.safetensors"
    model = adapted()
    keras_flix.save_adapters(model, path)
    before = path.read_bytes()
    monkeypatch.setattr(
        os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full"))
    )
    with pytest.raises(OSError, match="full"):
        keras_flix.save_adapters(randomize(model, seed=9), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_keras_weights_keep_the_adapters(tmp_path):
    path = tmp_path / "model.weights.h5"
    model = adapted()
    model.save_weights(path)
    other = adapted(seed=3)
    assert np.abs(outputs(other) - outputs(model)).max() > 1e-2
    other.load_weights(path)
    np.testing.assert_array_equal(outputs(other), outputs(model))


@pytest.mark.support("State", "`load_weights` of a plain model's file")
def test_plain_weights_load_into_an_adapted_model(tmp_path):
    path = tmp_path / "base.weights.h5"
    seeded_backbone().save_weights(path)
    model = adapted(seed=3)
    tables = [to_numpy(v) for v in model.trainable_variables]
    model.load_weights(path)
    for variable, value in zip(model.trainable_variables, tables):
        np.testing.assert_array_equal(to_numpy(variable), value)
    with keras_flix.adapters_disabled(model):
        np.testing.assert_array_equal(outputs(model), outputs(adapted_base()))


def adapted_base():
    model = seeded_backbone()

    def call(inputs):
        return model({k: inputs[k] for k in ("token_ids", "padding_mask")})

    return call


def test_adapted_weights_are_refused_by_a_plain_model(tmp_path):
    path = tmp_path / "model.weights.h5"
    adapted().save_weights(path)
    with pytest.raises(ValueError):
        seeded_backbone().load_weights(path)


def test_weights_of_other_features_are_refused(tmp_path):
    path = tmp_path / "model.weights.h5"
    adapted().save_weights(path)
    other = keras_flix.enable_flix(seeded_backbone(), FEATURES, targets="all-linear")
    with pytest.raises(ValueError, match="must match layer"):
        other.load_weights(path)


@pytest.mark.short("torch", "jax")
@pytest.mark.slow
def test_model_checkpoint(tmp_path, make_gemma):
    path = str(tmp_path / "epoch.weights.h5")
    model = keras_flix.enable_flix(make_gemma(), FEATURES, rank=2)
    randomize(model)
    model.compile(optimizer=keras.optimizers.Adam(0.01))
    data = {"prompts": ["the", "dog"], "responses": ["fox", "the"]}
    data |= {"task": ["qa", "list"], "language": "sw"}
    checkpoint = keras.callbacks.ModelCheckpoint(path, save_weights_only=True)
    model.fit(data, callbacks=[checkpoint], verbose=0)
    expected = model.predict(data, verbose=0)
    other = keras_flix.enable_flix(make_gemma(seed=4), FEATURES, rank=2)
    other.load_weights(path)
    np.testing.assert_allclose(other.predict(data, verbose=0), expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.support("State", "`merge_features(...).save_to_preset`")
def test_merged_model_round_trips_through_a_preset(tmp_path, make_gemma):
    model = randomize(keras_flix.enable_flix(make_gemma(), FEATURES, rank=2))
    combination = {"task": "list", "language": "yo"}
    before = [to_numpy(v) for v in model.weights]
    merged = keras_flix.merge_features(model, combination)
    assert type(merged) is keras_hub.models.GemmaCausalLM
    assert type(merged.backbone) is keras_hub.models.GemmaBackbone
    assert not [v for v in merged.weights if "flix" in v.path]
    for variable, value in zip(model.weights, before):
        np.testing.assert_array_equal(to_numpy(variable), value)
    texts = ["the dog", "fox"]
    expected = model.predict({"text": texts, **combination}, verbose=0)
    np.testing.assert_allclose(merged.predict(texts, verbose=0), expected, atol=1e-5)
    merged.save_to_preset(str(tmp_path / "preset"))
    loaded = keras_hub.models.GemmaCausalLM.from_preset(str(tmp_path / "preset"))
    np.testing.assert_allclose(loaded.predict(texts, verbose=0), expected, atol=1e-5)
    keras_flix.enable_flix(merged, FEATURES)


def test_merge_of_a_functional_model():
    inputs = keras.Input((6,), name="x")
    hidden = keras.layers.Dense(16, activation="relu", name="hidden")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(5, name="head")(hidden))
    keras_flix.enable_flix(model, FEATURES, targets="all-linear", rank=2)
    randomize(model)
    x = np.random.default_rng(0).normal(size=(3, 6)).astype("float32")
    expected = to_numpy(model({"x": x, "task": "qa", "language": None}))
    merged = keras_flix.merge_features(model, {"task": "qa", "language": None})
    np.testing.assert_allclose(to_numpy(merged(x)), expected, atol=1e-5)
    assert {type(layer) for layer in merged.layers[1:]} == {keras.layers.Dense}


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np, keras, keras_flix
from files.test_saving import seeded_backbone, outputs
assert keras.config.backend() == sys.argv[4]
model = keras_flix.load_adapters(seeded_backbone(), sys.argv[2])
np.save(sys.argv[3], outputs(model))
"""


@pytest.mark.short("torch")
@pytest.mark.slow
@pytest.mark.support("State", "One adapter file on three backends")
def test_one_file_on_three_backends(tmp_path):
    path = tmp_path / "one.flix.safetensors"
    model = adapted()
    keras_flix.save_adapters(model, path)
    for backend in {"jax", "tensorflow", "torch"} - {keras.config.backend()}:
        result = tmp_path / f"{backend}.npy"
        subprocess.run(
            [
                sys.executable,
                "-c",
                SCRIPT,
                str(TESTS),
                str(path),
                str(result),
                backend,
            ],
            check=True,
            env={**os.environ, "KERAS_BACKEND": backend},
        )
        np.testing.assert_allclose(np.load(result), outputs(model), atol=1e-5)


def small_functional():
    inputs = keras.Input((6,), name="x")
    hidden = keras.layers.Dense(16, activation="relu", name="hidden")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(5, name="head")(hidden))
    keras_flix.enable_flix(
        model, FEATURES, targets=["hidden"], rank=2, dropout=0.2, alpha=3
    )
    return randomize(model)


def assert_same(found, model, inputs):
    assert type(found) is type(model) and found is not model
    assert found._adaptation.schema == model._adaptation.schema
    np.testing.assert_allclose(
        to_numpy(found(inputs)), to_numpy(model(inputs)), atol=1e-6
    )
    trained = {v.path for v in found.trainable_variables}
    assert trained == {v.path for v in model.trainable_variables}


@pytest.mark.slow
def test_keras_file_of_a_functional_model(tmp_path):
    model = small_functional()
    model.compile(optimizer="adam", loss="mse")
    inputs = {"x": np.ones((2, 6), "float32"), "task": "qa", "language": ["sw", None]}
    model.fit(inputs, np.zeros((2, 5)), verbose=0)
    model.save(tmp_path / "model.keras")
    found = keras.models.load_model(tmp_path / "model.keras")
    assert_same(found, model, inputs)
    # The optimizer's state came along: both go on to the same weights.
    seed = to_numpy(model._adaptation.dropout_seed.state)
    for one in (model, found):
        one._adaptation.dropout_seed.state.assign(seed)
        one.fit(inputs, np.zeros((2, 5)), verbose=0)
    assert_same(found, model, inputs)


@pytest.mark.short("torch")
@pytest.mark.slow
@pytest.mark.support("State", "`.keras` files and copies of a KerasHub task")
def test_keras_file_and_copies_of_a_task(tmp_path, make_gemma):
    import copy
    import pickle

    model = randomize(keras_flix.enable_flix(make_gemma(), FEATURES, rank=2))
    path = str(tmp_path / "best.keras")
    data = {"prompts": ["the", "dog"], "responses": ["fox", "the"]}
    data |= {"task": ["qa", "list"], "language": "sw"}
    sampler = keras_hub.samplers.BeamSampler(num_beams=3)
    model.compile(optimizer=keras.optimizers.SGD(0.1), sampler=sampler)
    model.fit(data, callbacks=[keras.callbacks.ModelCheckpoint(path)], verbose=0)
    inputs = {
        "token_ids": INPUTS["token_ids"],
        "padding_mask": INPUTS["padding_mask"],
        "task": ["qa", None, "list"],
        "language": "yo",
    }
    for found in (
        keras.models.load_model(path),
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
    ):
        assert_same(found, model, inputs)
        assert type(found.backbone).__name__ == "GemmaBackbone"
        assert type(found.sampler) is type(sampler)
        assert found.sampler.get_config() == sampler.get_config()
        prompts = {"prompts": ["the dog"], "task": "list", "language": "en"}
        assert found.generate(dict(prompts), max_length=12) == model.generate(
            dict(prompts), max_length=12
        )


def test_a_sampler_that_is_not_known_is_told(make_gemma):
    class Own(keras_hub.samplers.GreedySampler):
        """Known where it is made, and in no file."""

    model = keras_flix.enable_flix(make_gemma(), FEATURES, rank=2)
    model.compile(optimizer=keras.optimizers.SGD(0.1), sampler=Own())
    config = model.get_compile_config()
    with pytest.warns(UserWarning, match="sampler .* was left out.*Own"):
        model.compile_from_config(config)


def test_keras_file_of_a_sequential_model(tmp_path):
    model = keras.Sequential(
        [keras.layers.Dense(8, name="hidden"), keras.layers.Dense(3, name="head")]
    )
    model(np.ones((1, 6), "float32"))
    keras_flix.enable_flix(model, FEATURES, targets=["hidden"], rank=2)
    randomize(model)
    inputs = {"x": np.ones((2, 6), "float32"), "task": "qa", "language": ["sw", None]}
    model.save(tmp_path / "model.keras")
    found = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        to_numpy(found(inputs)), to_numpy(model(inputs)), atol=1e-6
    )


def test_weights_with_values_in_another_order_are_refused(tmp_path):
    path = tmp_path / "model.weights.h5"
    adapted().save_weights(path)
    swapped = {**FEATURES, "task": FEATURES["task"][::-1]}
    features = [
        keras_flix.Feature("task", swapped["task"], rank={"qa": 1, "*": 3}),
        keras_flix.Feature("language", swapped["language"]),
        keras_flix.Feature("shared", always=True),
    ]
    other = keras_flix.enable_flix(
        seeded_backbone(), features, rank=2, alpha=4, targets="all-linear"
    )
    with pytest.raises(ValueError, match="values in the same order"):
        other.load_weights(path)


def test_stated_rows_are_in_the_file(tmp_path):
    path = tmp_path / "one.flix.safetensors"
    model = randomize(make_centred("block"))
    keras_flix.save_adapters(model, path)
    found = keras_flix.load_adapters(make_centred("block", adapted=False), path)
    assert found._adaptation.rows == {"block/encoder": {"batch"}}
    x = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    batch = {"x": x, "task": ["p", None, "q"]}
    found.set_weights(model.get_weights())
    np.testing.assert_array_equal(outputs(found, batch), outputs(model, batch))
