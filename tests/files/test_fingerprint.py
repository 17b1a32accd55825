"""Base fingerprints: copies of one base agree, other bases do not."""

import json

import keras
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from helpers.gemma import FEATURES, make_backbone, randomize
from helpers.models import make_mlp, rows, state

import keras_flix
from keras_flix import base_fingerprint
from keras_flix.files.fingerprint import BaseFingerprint
from keras_flix.files.saving import adapters_of
from keras_flix.files.weight_digests import SMALL

BACKBONE_DIGEST = "9f164836cf92e3ec"


def numbers(model, seed=0):
    """Gives a model weights that are the same numbers on every backend."""
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        variable.assign(generator.normal(size=variable.shape).astype("float32"))
    return model


def adapted_mlp(seed=0):
    model = keras_flix.enable_flix(make_mlp(seed), FEATURES, targets=["hidden"])
    return randomize(model)


def saved(tmp_path, model=None):
    path = tmp_path / "one.flix.safetensors"
    keras_flix.save_adapters(adapted_mlp() if model is None else model, path)
    return path


@pytest.mark.short("jax", "tensorflow", "torch")
def test_the_same_weights_have_one_digest_on_every_backend():
    # The one number says that three backends, and later versions, agree.
    assert base_fingerprint(numbers(make_backbone())).digest == BACKBONE_DIGEST


def test_a_rounded_copy_agrees_and_another_base_does_not():
    found = base_fingerprint(numbers(make_backbone()))
    rounded = base_fingerprint(numbers(make_backbone(dtype="bfloat16")))
    assert rounded == found and rounded.digest == found.digest
    other = base_fingerprint(numbers(make_backbone(), seed=1))
    assert found.differences(other) == sorted(found.variables)
    # Only those that both have are compared.
    half = BaseFingerprint(dict(list(found.variables.items())[:3]))
    assert half.differences(found) == found.differences(half) == []
    assert half.digest != found.digest


def test_float16_is_compared_with_float16_only():
    found = base_fingerprint(numbers(make_backbone()))
    half = base_fingerprint(numbers(make_backbone(dtype="float16")))
    assert half.differences(found) == []
    other = base_fingerprint(numbers(make_backbone(dtype="float16"), seed=1))
    assert len(half.differences(other)) == len(half.variables)


def test_adapters_are_no_part_of_it():
    plain = base_fingerprint(make_mlp())
    assert base_fingerprint(adapted_mlp()) == plain
    assert list(plain.variables) == [
        "hidden/kernel",
        "hidden/bias",
        "head/kernel",
        "head/bias",
    ]
    # Nor what training adds to the model: metrics, states of seeds.
    model = keras_flix.enable_flix(make_mlp(), FEATURES, targets=["head"], dropout=0.5)
    model.compile("adam", "mse", metrics=["mae"])
    batch = {**rows(), "task": "qa", "language": "sw"}
    model.train_on_batch(batch, np.zeros((3, 4)))
    assert base_fingerprint(model) == plain


def test_large_variables_are_sampled_where_they_are(monkeypatch):
    table = keras.layers.Embedding(SMALL // 16, 32, name="table")
    model = keras.Sequential([table])
    model.build((None,))
    values = np.random.default_rng(0).normal(size=(SMALL // 16, 32)).astype("float32")
    table.embeddings.assign(values)
    pulled = []
    to_numpy = keras.ops.convert_to_numpy

    def counted(x):
        pulled.append(int(np.prod(x.shape)))
        return to_numpy(x)

    monkeypatch.setattr(keras.ops, "convert_to_numpy", counted)
    found = base_fingerprint(model)
    assert 1024 < max(pulled) <= 4096
    # A host copy of the same numbers would give the same digest.
    monkeypatch.setattr("keras_flix.files.weight_digests.SMALL", values.size)
    assert base_fingerprint(model) == found
    table.embeddings.assign(values * 1.01)
    assert base_fingerprint(model).differences(found) == list(found.variables)


@pytest.mark.parametrize(
    ("one", "other", "agree"),
    [
        (0.0, -1e-40, True),  # Some backends flush what is below normal to zero.
        (0.0, 1e-37, False),
        (np.nan, -np.nan, True),
        (np.nan, np.inf, False),
        (1.0, 1.0 + 2**-9, True),  # A tie goes to the even one.
        (1.0, 1.0 + 2**-8 + 2**-9, False),
        (1.0, -1.0, False),
    ],
)
def test_numbers_that_agree(one, other, agree):
    def digest(value):
        model = make_mlp()
        model.get_layer("head").bias.assign(np.full(4, value, "float32"))
        return base_fingerprint(model).variables["head/bias"]

    assert (digest(one) == digest(other)) == agree


def test_layers_of_one_path_are_told_apart():
    def stacked(first, second):
        # Each layer is the only one of its name in its own model.
        towers = [keras.Sequential([keras.layers.Dense(4, name="top")]) for _ in "ab"]
        x = keras.Input((4,), name="x")
        model = keras.Model(x, towers[1](towers[0](x)))
        for tower, value in zip(towers, (first, second)):
            tower.layers[0].bias.assign(np.full(4, value, "float32"))
            tower.layers[0].kernel.assign(np.eye(4, dtype="float32"))
            for variable in tower.variables:
                variable._path = f"top/{variable.name}"
        return base_fingerprint(model)

    found = stacked(1, 2)
    assert set(found.variables) == {
        *("top/kernel", "top/bias"),
        *("top/kernel:2", "top/bias:2"),
    }
    assert found.differences(stacked(1, 3)) == ["top/bias:2"]


def test_another_base_is_refused(tmp_path):
    path = saved(tmp_path)
    text = (
        "Adapters must be loaded into the base model that they were trained on. "
        f"Received: '{path}', from a base that differs from the model in 2 of the 4 "
        "variables that both have: 'head/kernel', 'hidden/kernel'. Load the right "
        "base, or pass check_base=False to go without this check."
    )
    batch = {**rows(), "task": "qa", "language": "sw"}
    for model, inputs in ((make_mlp(1), rows()), (adapted_mlp(1), batch)):
        before = state(model, inputs)
        with pytest.raises(ValueError) as error:
            keras_flix.load_adapters(model, path)
        assert str(error.value) == text
        assert state(model, inputs) == before
        keras_flix.load_adapters(model, path, check_base=False)
        tables = adapters_of(model).tables
        for name, table in adapters_of(adapted_mlp()).tables.items():
            np.testing.assert_array_equal(tables[name], table)


def test_another_head_is_another_base(tmp_path):
    path = saved(tmp_path)
    model = make_mlp()
    model.get_layer("head").kernel.assign(np.ones((6, 4)))
    with pytest.raises(ValueError, match="1 of the 4 .*both have: 'head/kernel'\\."):
        keras_flix.load_adapters(model, path)


def rewritten(path, change):
    with safetensors.safe_open(path, framework="numpy") as file:
        header = json.loads(file.metadata()["keras_flix"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    # As files of earlier versions: it would tell at once that something changed.
    del header["digest"]
    change(header)
    safetensors.numpy.save_file(tensors, path, {"keras_flix": json.dumps(header)})
    return path


def test_a_file_without_a_fingerprint_loads(tmp_path):
    path = rewritten(saved(tmp_path), lambda header: header.pop("base"))
    keras_flix.load_adapters(make_mlp(1), path)


def test_where_nothing_can_be_compared_a_file_loads(tmp_path):
    def rename(header):
        header["base"]["variables"] = {"elsewhere": "00000000"}

    keras_flix.load_adapters(make_mlp(1), rewritten(saved(tmp_path), rename))


@pytest.mark.parametrize("base", [3, {}, {"variables": 3}, {"variables": ["a"]}])
def test_a_fingerprint_of_another_form(tmp_path, base):
    path = rewritten(saved(tmp_path), lambda header: header.update(base=base))
    with pytest.raises(ValueError, match="which cannot be read"):
        keras_flix.load_adapters(make_mlp(), path)


@pytest.mark.slow
@pytest.mark.short("torch")
def test_a_quantized_copy_is_the_same_base(tmp_path):
    path = saved(tmp_path)
    quantized = make_mlp()
    quantized.quantize("int8")
    left = base_fingerprint(quantized).variables
    assert sorted(left) == ["head/bias", "hidden/bias"]
    keras_flix.load_adapters(quantized, path)
    other = make_mlp()
    other.quantize("int8")
    other.get_layer("head").bias.assign(np.ones(4))
    with pytest.raises(ValueError, match="1 of the 2 .*both have: 'head/bias'\\."):
        keras_flix.load_adapters(other, path)
    # And from the quantized copy back to the floating-point base.
    keras_flix.save_adapters(quantized, path)
    keras_flix.load_adapters(make_mlp(), path)
