"""Files of layers that KerasHub gives no name, which Keras counts up."""

import keras
import numpy as np
import pytest
from families import decoders, seq_2_seq
from helpers.gemma import FEATURES, randomize, to_numpy
from keras import tree

import keras_flix
from keras_flix import _compat
from keras_flix.files.counted_names import named_as_in
from keras_flix.files.saving import adapters_of

pytestmark = pytest.mark.eager

FAMILIES = {family.name: family for family in decoders.FAMILIES + seq_2_seq.FAMILIES}
OPTIONS = {
    # The layers around shared experts, and their gates.
    "QwenMoe": {"targets": "all-linear", "train": ["shared_expert_gate_dense"]},
    # Around the feed-forward layers of some blocks, and around experts.
    "Qwen3Moe": {
        "targets": "all-linear",
        "experts": "each",
        "layer_ranks": {"feedforward_output_dense": {"task": 1}},
    },
    # Its attention, twice in each block of the decoder.
    "Moonshine": {"train": [".*layer_normalization.*"]},
    # Norms, which are compared.
    "T5": {},
}
IDS = {"task": np.array([0, 2, -1], "int32"), "language": np.array([1, -1, 2], "int32")}


def build(name):
    model = FAMILIES[name].build()
    generator = np.random.default_rng(0)
    for layer in _compat.flatten_layers(model):
        if "layer_norm" in layer.name:
            # All are ones, whose order would not matter.
            for variable in layer.weights:
                variable.assign(generator.uniform(0.5, 2, size=variable.shape))
    return model


def adapted(model, features=FEATURES, seed=0):
    name = type(model).__name__.removesuffix("Backbone")
    options = {"rank": 2, **OPTIONS[name]}
    return randomize(keras_flix.enable_flix(model, features, **options), seed=seed)


def outputs(model, name):
    found = model({**FAMILIES[name].inputs(3), **IDS})
    return [to_numpy(x) for x in tree.flatten(found)]


def assert_same(model, expected, name):
    for one, two in zip(outputs(model, name), expected, strict=True):
        np.testing.assert_array_equal(one, two)


COUNTED = {
    "T5LayerNorm": {},
    "MoonshineMultiHeadAttention": {"num_heads": 1, "key_dim": 2},
}


def count_one(model):
    """Has Keras count one more layer of a kind that it counts in a model."""
    for layer in _compat.flatten_layers(model):
        arguments = COUNTED.get(type(layer).__name__)
        if arguments is not None:
            type(layer)(**arguments)
            return


@pytest.mark.slow
@pytest.mark.short("torch")
@pytest.mark.parametrize("overlapping", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_files_fit_the_next_model_of_a_process(name, overlapping, tmp_path):
    path = tmp_path / "one.flix.safetensors"
    if overlapping:
        keras.backend.clear_session()
    model = adapted(build(name))
    expected = outputs(model, name)
    keras_flix.save_adapters(model, path)
    if overlapping:
        keras.backend.clear_session()
        count_one(model)
    plain = build(name)
    assert_same(keras_flix.load_adapters(plain, path), expected, name)
    other = adapted(build(name), seed=1)
    assert_same(keras_flix.load_adapters(other, path), expected, name)
    # They are as before where they are saved again.
    keras_flix.save_adapters(plain, path)
    assert_same(keras_flix.load_adapters(build(name), path), expected, name)


@pytest.mark.slow
@pytest.mark.short("torch")
def test_values_come_over_from_another_model(tmp_path):
    path = tmp_path / "one.flix.safetensors"
    theirs = adapted(build("Qwen3Moe"))
    expected = outputs(theirs, "Qwen3Moe")
    keras_flix.save_adapters(theirs, path)
    for other in (theirs, path):
        model = adapted(build("Qwen3Moe"), {**FEATURES, "task": ["qa"]}, seed=1)
        keras_flix.update_from(model, other, FEATURES)
        assert_same(model, expected, "Qwen3Moe")


@pytest.mark.slow
@pytest.mark.short("torch")
def test_another_base_is_still_another_one(tmp_path):
    path = tmp_path / "one.flix.safetensors"
    keras_flix.save_adapters(adapted(build("Qwen3Moe")), path)
    model = build("Qwen3Moe")
    (layer,) = [
        layer
        for layer in _compat.flatten_layers(model)
        if layer.name == "feedforward_output_dense"
    ]
    layer.kernel.assign(layer.kernel + 1)
    with pytest.raises(ValueError, match="feedforward_output_dense/kernel"):
        keras_flix.load_adapters(model, path)


@pytest.mark.short("torch")
def test_what_is_not_there_as_often_is_left_as_it_is():
    model = keras_flix.enable_flix(
        build("Moonshine"), FEATURES, targets=["decoder_block_0/.*_1/query"], rank=1
    )
    found = adapters_of(model)
    assert named_as_in(build("Moonshine"), found).layers == found.layers
