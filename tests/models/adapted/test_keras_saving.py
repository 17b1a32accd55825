"""What Keras itself saves keeps the adapters: files, callbacks, copies."""

import copy
import os
import pickle
import subprocess
import sys

import keras
import keras_hub
import numpy as np
import pytest
from helpers.gemma import FEATURES, make_backbone, randomize, to_numpy
from helpers.models import make_mlp
from helpers.training import (
    DATA,
    Y,
    assert_goes_on_alike,
    assert_same_state,
    small_model,
    state_of,
    train,
)

import keras_flix
from keras_flix.models.adapted.keras_files import DamagedFileError

pytestmark = pytest.mark.eager

OWN = {
    "token_ids": np.arange(15).reshape(3, 5).astype("int32"),
    "padding_mask": np.ones((3, 5), "int32"),
}
INPUTS = {**OWN, "task": ["qa", None, "list"], "language": ["sw", "yo", None]}


@pytest.mark.support("State", "`model.save('x.keras')` and `load_model`")
def test_keras_file_holds_everything(tmp_path):
    model = train(small_model())
    model.save(tmp_path / "model.keras")
    found = keras.models.load_model(tmp_path / "model.keras")
    assert type(found) is type(model)
    assert found._adaptation.schema == model._adaptation.schema
    np.testing.assert_array_equal(to_numpy(found(DATA)), to_numpy(model(DATA)))
    assert_goes_on_alike(found, model)


@pytest.mark.support("State", "`model.save('x.h5')`", "refused")
def test_old_hdf5_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must be saved as a `.keras` file"):
        small_model().save(tmp_path / "model.h5")
    assert not list(tmp_path.iterdir())


@pytest.mark.support("State", "`get_config`, `from_config`, `to_json`")
def test_configs():
    model = small_model()
    config = model.get_config()
    for found in (
        type(model).from_config(config),
        keras.models.model_from_json(model.to_json()),
    ):
        assert type(found) is type(model)
        again = found.get_config()
        assert again.pop("base")["class_name"] == "Functional"
        assert again == {key: config[key] for key in again}
        for one, other in zip(found.variables, model.variables, strict=True):
            one.assign(other.value)
        np.testing.assert_array_equal(to_numpy(found(DATA)), to_numpy(model(DATA)))


@pytest.mark.support("State", "`save_weights` and `load_weights`")
@pytest.mark.parametrize("file", ["model.weights.h5", "model.keras"])
def test_weights(tmp_path, file):
    model = train(small_model())
    save = model.save if file.endswith(".keras") else model.save_weights
    save(tmp_path / file)
    found = train(small_model(seed=3))
    found.load_weights(tmp_path / file)
    assert_goes_on_alike(found, model)


def test_a_changed_bit_of_a_weights_file_is_found(tmp_path):
    path = tmp_path / "model.weights.h5"
    model = small_model()
    model.save_weights(path)
    model.load_weights(path)
    changed = bytearray(path.read_bytes())
    changed[len(changed) // 2] ^= 1
    path.write_bytes(changed)
    with pytest.raises(DamagedFileError, match="'model.weights.h5' is damaged"):
        model.load_weights(path)


def test_files_of_keras_own_are_not_overwritten_unasked(tmp_path, monkeypatch):
    model = small_model()
    path = tmp_path / "model.weights.json"
    model.save_weights(path, max_shard_size=1.0)
    path.write_text("mine")
    monkeypatch.setattr("builtins.input", lambda *_: "n")
    model.save_weights(path, overwrite=False, max_shard_size=1.0)
    assert path.read_text() == "mine"


@pytest.mark.skipif(
    not hasattr(os, "posix_fallocate"), reason="only there is room asked for ahead"
)
def test_as_much_room_is_asked_for_as_a_file_may_take(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "posix_fallocate", lambda *args: asked.append(args))
    path = tmp_path / "model.weights.h5"
    small_model().save_weights(path)
    ((_, start, size),) = asked
    assert start == 0
    assert path.stat().st_size <= size <= path.stat().st_size + 2**19


@pytest.mark.support("State", "Sharded weights (`max_shard_size`)")
def test_sharded_weights(tmp_path):
    model = train(small_model())
    path = tmp_path / "model.weights.json"
    # Smaller than one layer's tables, which then lie in two shards.
    model.save_weights(path, max_shard_size=1000 / 1024**3)
    assert len(list(tmp_path.glob("model_*.weights.h5"))) > 2
    found = train(small_model(seed=3))
    found.load_weights(path)
    assert_goes_on_alike(found, model)


@pytest.mark.support("State", "`load_weights` of what does not fit", "refused")
@pytest.mark.parametrize("sharded", [False, True])
def test_loading_weights_that_do_not_fit_changes_nothing(tmp_path, sharded):
    others = {**FEATURES, "language": FEATURES["language"][::-1]}
    options = {"max_shard_size": 1000 / 1024**3} if sharded else {}
    path = tmp_path / f"model.weights.{'json' if sharded else 'h5'}"
    train(small_model(seed=5, features=others)).save_weights(path, **options)
    model = train(small_model())
    before = state_of(model)
    with pytest.raises(ValueError, match="values in the same order"):
        model.load_weights(path)
    for found, expected in zip(state_of(model), before, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_loading_base_weights_that_do_not_fit_changes_nothing(tmp_path):
    path = tmp_path / "model.weights.h5"
    inputs = keras.Input((6,), name="x")
    hidden = keras.layers.Dense(16, name="hidden")(inputs)
    # Its first layer fits.
    keras.Model({"x": inputs}, keras.layers.Dense(4)(hidden)).save_weights(path)
    model = train(small_model())
    before = state_of(model)
    with pytest.raises(ValueError):
        model.load_weights(path)
    for found, expected in zip(state_of(model), before, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.support("State", "`ModelCheckpoint`")
@pytest.mark.parametrize("weights_only", [True, False])
def test_model_checkpoint_of_every_epoch(tmp_path, weights_only):
    suffix = ".weights.h5" if weights_only else ".keras"
    checkpoint = keras.callbacks.ModelCheckpoint(
        str(tmp_path / ("{epoch}" + suffix)), save_weights_only=weights_only
    )
    model = train(small_model(), epochs=3, callbacks=[checkpoint])
    if weights_only:
        found = train(small_model(seed=3))
        found.load_weights(tmp_path / "2.weights.h5")
    else:
        found = keras.models.load_model(tmp_path / "2.keras")
    train(found)
    assert_same_state(found, model)


@pytest.mark.support("State", "`ModelCheckpoint(save_best_only=True)`")
@pytest.mark.parametrize("weights_only", [True, False])
def test_model_checkpoint_of_the_best_epoch(tmp_path, weights_only):
    path = str(tmp_path / ("best" + (".weights.h5" if weights_only else ".keras")))
    validation = (DATA, Y)
    checkpoint = keras.callbacks.ModelCheckpoint(
        path,
        monitor="val_loss",
        # The worst is the best here, as the loss goes down.
        mode="max",
        save_best_only=True,
        save_weights_only=weights_only,
    )
    model = small_model()
    history = model.fit(
        DATA,
        Y,
        batch_size=3,
        epochs=6,
        shuffle=False,
        verbose=0,
        validation_data=validation,
        callbacks=[checkpoint],
    ).history["val_loss"]
    best = max(history)
    assert best > history[-1] + 1e-3
    if weights_only:
        found = small_model(seed=3)
        found.load_weights(path)
    else:
        found = keras.models.load_model(path)
    loss = found.evaluate(DATA, Y, batch_size=3, verbose=0)
    np.testing.assert_allclose(loss, best, rtol=1e-6)


@pytest.mark.support("State", "`copy.deepcopy`")
def test_deepcopy():
    model = train(small_model())
    found = copy.deepcopy(model)
    np.testing.assert_array_equal(to_numpy(found(DATA)), to_numpy(model(DATA)))
    kept = [to_numpy(v) for v in model.variables]
    found.compile("sgd", loss="mse")
    train(found)
    for variable, value in zip(model.variables, kept):
        np.testing.assert_array_equal(to_numpy(variable), value)


@pytest.mark.support("State", "`pickle`")
def test_pickle():
    model = train(small_model())
    found = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(to_numpy(found(DATA)), to_numpy(model(DATA)))
    assert_goes_on_alike(found, model)


@pytest.mark.support("State", "`clone_model`", "refused")
def test_clone_model_is_refused():
    with pytest.raises(ValueError, match="copy.deepcopy"):
        keras.models.clone_model(small_model())
    sequential = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, name="d")])
    keras_flix.enable_flix(sequential, FEATURES, targets=["d"], rank=2)
    # Keras makes this one of its layers, which are not called without features.
    with pytest.raises(ValueError, match="must know the features"):
        keras.models.clone_model(sequential)


@pytest.mark.support("State", "`save_to_preset`", "refused")
def test_presets_do_not_lose_the_adapters_in_silence(tmp_path, make_gemma):
    whole = keras_flix.enable_flix(make_gemma(), FEATURES)
    alone = make_gemma()
    keras_flix.enable_flix(alone.backbone, FEATURES)
    for model in (whole, whole.backbone, alone, alone.backbone):
        with pytest.raises(ValueError, match="would lose the adapters"):
            model.save_to_preset(str(tmp_path / "preset"))
        assert not list(tmp_path.glob("preset/*weights*"))


@pytest.mark.support("State", "A task around an adapted backbone", "refused")
def test_a_task_around_an_adapted_backbone_is_refused(make_gemma):
    plain = make_gemma()
    whole = keras_flix.enable_flix(make_gemma(), FEATURES)
    alone = keras_flix.enable_flix(make_backbone(), FEATURES)
    for backbone in (whole.backbone, alone):
        with pytest.raises(ValueError, match="must be adapted as a whole"):
            keras_hub.models.GemmaCausalLM(backbone, plain.preprocessor)


@pytest.mark.slow
@pytest.mark.support("State", "A task whose backbone alone is adapted")
def test_a_task_whose_backbone_alone_is_adapted(tmp_path, make_gemma):
    task = make_gemma()
    backbone = randomize(keras_flix.enable_flix(task.backbone, FEATURES, rank=2))
    with pytest.raises(ValueError, match="must have an entry"):
        task(OWN)
    with pytest.raises(ValueError, match="must know the features"):
        task.generate("the dog", max_length=8)
    # Copies would call the backbone without features; files hold the adapters.
    task.save(tmp_path / "task.keras")
    task.save_weights(tmp_path / "task.weights.h5")
    for make_copy in (
        lambda: keras.models.load_model(tmp_path / "task.keras"),
        lambda: copy.deepcopy(task),
        lambda: pickle.loads(pickle.dumps(task)),
    ):
        with pytest.raises(ValueError, match="must be adapted as a whole"):
            make_copy()
    for file in ("task.keras", "task.weights.h5"):
        found = make_gemma(seed=3)
        keras_flix.enable_flix(found.backbone, FEATURES, rank=2)
        found.load_weights(tmp_path / file)
        np.testing.assert_array_equal(
            to_numpy(found.backbone(INPUTS)), to_numpy(backbone(INPUTS))
        )


@pytest.mark.support("State", "An adapted model as a part of a larger functional one")
def test_a_functional_model_that_passes_the_features_on(tmp_path):
    backbone = randomize(keras_flix.enable_flix(make_backbone(), FEATURES, rank=2))
    shapes = {**dict.fromkeys(OWN, (None,)), "task": (), "language": ()}
    inputs = {
        name: keras.Input(shape, dtype="int32", name=name)
        for name, shape in shapes.items()
    }
    outputs = keras.layers.Dense(3, name="head")(backbone(inputs))
    model = keras.Model(inputs, outputs)
    ids = {**OWN, "task": np.array([0, -1, 2]), "language": np.array([1, 2, -1])}
    expected = to_numpy(model.layers[-1](backbone(ids)))
    np.testing.assert_array_equal(to_numpy(model(ids)), expected)
    model.save(tmp_path / "model.keras")
    found = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(to_numpy(found(ids)), expected)


WITHOUT_THE_IMPORT = """
import sys, keras
for name in ("model.keras", "layer.keras"):
    try:
        keras.models.load_model(name)
    except TypeError as error:
        print(" ".join(str(error).split()))
    else:
        raise SystemExit("it loaded")
assert "keras_flix" not in sys.modules
"""


@pytest.mark.slow
@pytest.mark.short("torch")
def test_a_process_without_the_import_is_told_of_it(tmp_path):
    model = keras_flix.enable_flix(
        make_mlp(), {"task": ["qa"]}, rank=2, targets="all-linear"
    )
    model.save(tmp_path / "model.keras")
    shared = keras_flix.Feature("shared", always=True)
    layer = keras_flix.FlixDense(2, features=[shared], rank=1)
    keras.Sequential([keras.Input((3,)), layer]).save(tmp_path / "layer.keras")
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_IMPORT],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    model_says, layer_says = result.stdout.splitlines()
    assert (
        "'needs': '`import keras_flix` before `keras.models.load_model`'"
        in (model_says[:600])
    )
    assert "Could not locate class 'FlixDense'" in layer_says
    assert "'module': 'keras_flix" in layer_says


def test_files_of_0_1_do_not_say_what_they_need():
    model = keras_flix.enable_flix(
        make_mlp(), {"task": ["qa"]}, rank=2, targets="all-linear"
    )
    config = model.get_config()
    assert next(iter(config)) == "needs"
    del config["needs"]
    assert type(model).from_config(config).get_config() == model.get_config()
