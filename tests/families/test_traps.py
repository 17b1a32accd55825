"""What single families do that would lose adapters, or mix examples up."""

import keras
import keras_hub
import numpy as np
import pytest
from families import decoders, vision
from helpers.gemma import FEATURES, randomize, to_numpy
from keras import ops

import keras_flix
from keras_flix.models.targets import find_targets, keyed_layers

FAMILIES = {family.name: family for family in decoders.FAMILIES + vision.FAMILIES}
STOCK = {keras.layers.Dense, keras.layers.EinsumDense}
IDS = {"task": np.array([0, 2, -1], "int32"), "language": np.array([1, -1, 2], "int32")}


def adapted(name):
    model = FAMILIES[name].build()
    return randomize(keras_flix.enable_flix(model, FEATURES, rank=2))


def outputs(model, name):
    return to_numpy(model({**FAMILIES[name].inputs(3), **IDS}))


@pytest.mark.short("torch")
@pytest.mark.parametrize("name", ["SmolLM3", "CLIP"])
def test_keys_are_unique_where_paths_are_not(name):
    model = FAMILIES[name].build()
    pairs = keyed_layers(model)
    paths = [layer.path for _, layer in pairs]
    assert len(set(paths)) < len(paths)
    assert len(dict(pairs)) == len(pairs)
    # They do not depend on how many models there are.
    assert [key for key, _ in keyed_layers(FAMILIES[name].build())] == [*dict(pairs)]


@pytest.mark.short("torch")
def test_keys_are_paths_where_these_are_unique():
    pairs = keyed_layers(FAMILIES["Gemma"].build())
    assert all(key == layer.path for key, layer in pairs)


@pytest.mark.short("torch")
def test_layers_of_one_path_are_told_apart():
    model = FAMILIES["SmolLM3"].build()
    key = "transformer_layer_1/self_attn/o_proj"
    ((found, layer),) = find_targets(model, [key]).items()
    assert (found, layer.path) == (key, "o_proj")
    assert layer is model.transformer_layers[1].self_attn.o_proj
    # Their common path, or name, is both of them.
    assert len(find_targets(model, ["o_proj"])) == 2


@pytest.mark.pairs
@pytest.mark.parametrize("suffix", [".flix.safetensors", ".weights.h5", ".keras"])
def test_files_of_layers_of_one_path(suffix, tmp_path):
    model = adapted("SmolLM3")
    path = str(tmp_path / f"x{suffix}")
    if suffix == ".flix.safetensors":
        keras_flix.save_adapters(model, path)
        loaded = keras_flix.load_adapters(FAMILIES["SmolLM3"].build(), path)
    elif suffix == ".weights.h5":
        model.save_weights(path)
        loaded = FAMILIES["SmolLM3"].build()
        loaded = keras_flix.enable_flix(loaded, FEATURES, rank=2)
        loaded.load_weights(path)
    else:
        model.save(path)
        loaded = keras.models.load_model(path)
    assert loaded._adaptation.layers.keys() == model._adaptation.layers.keys()
    np.testing.assert_array_equal(outputs(loaded, "SmolLM3"), outputs(model, "SmolLM3"))


@pytest.mark.skipif(
    keras.config.backend() != "torch", reason="Other backends know no `parameters()`."
)
def test_torch_parameters_of_layers_of_one_path():
    """Keras keeps parameters by path, one per path, but each layer has its own."""
    model = adapted("SmolLM3")
    known = {id(parameter) for parameter in model.parameters()}
    assert {id(v.value) for v in model.trainable_variables} <= known


@pytest.mark.slow
@pytest.mark.short("torch")
def test_a_quantized_gemma4_says_what_to_leave_in_floats():
    model = FAMILIES["Gemma4"].build()
    model.quantize("int8")
    with pytest.raises(ValueError) as error:
        keras_flix.enable_flix(model, FEATURES, rank=2, targets="all-linear")
    assert str(error.value) == (
        "A target whose kernel another layer multiplies by must not be quantized: that "
        "layer, a Gemma4TextDecoderBlock, does not undo it, so that its own outputs "
        "are wrong, too. Received: layer 'decoder_block_0/ffw_gating' with "
        "quantization_mode='int8'. Quantize the model without these layers: "
        "`model.quantize(mode, filters=lambda layer: layer.name not in ['ffw_gating', "
        "'ffw_gating_2', 'ffw_linear'])`."
    )
    plain = outputs_of(FAMILIES["Gemma4"].build())
    model = FAMILIES["Gemma4"].build()
    names = ["ffw_gating", "ffw_gating_2", "ffw_linear"]
    model.quantize("int8", filters=lambda layer: layer.name not in names)
    base = outputs_of(model)
    # As of other families: KerasHub's own is off by a third without these.
    assert np.abs(base - plain).max() < 0.1 * np.abs(plain).max()
    keras_flix.enable_flix(model, FEATURES, rank=2, targets="all-linear")
    absent = {name: None for name in FEATURES}
    np.testing.assert_array_equal(outputs_of(model, absent), base)


def outputs_of(model, ids=None):
    return to_numpy(model({**FAMILIES["Gemma4"].inputs(3), **(ids or {})}))


@pytest.mark.short("torch")
@pytest.mark.skipif(
    "DiffusionGemma" not in FAMILIES, reason="KerasHub has DiffusionGemma from 0.33 on."
)
def test_blocks_of_text_are_denoised_by_each_examples_values():
    def generate(adapted, ids, combination=None):
        model = keras_hub.models.DiffusionGemmaBlockDiffusionLM(
            preprocessor=None,
            backbone=FAMILIES["DiffusionGemma"].build(),
            canvas_length=5,
            max_denoising_steps=2,
        )
        keras_flix.enable_flix(model, FEATURES, rank=2)
        randomize(model, scale=3.0)
        if not adapted:
            model = keras_flix.merge_features(model, combination)
        inputs = FAMILIES["DiffusionGemma"].inputs(3)
        del inputs["position_ids"]
        # The same draws in every run of three examples.
        keras.utils.set_random_seed(5)
        model.compile(sampler=keras_hub.samplers.EntropyBoundSampler(seed=7))
        inputs |= ids if adapted else {}
        return model.generate(inputs, stop_token_ids=None)["token_ids"]

    mixed = generate(True, IDS)
    for row in range(3):
        combination = {name: int(ids[row]) for name, ids in IDS.items()}
        merged = generate(False, {}, combination)
        np.testing.assert_array_equal(mixed[row], merged[row])
    absent = generate(True, {name: np.full(3, -1, "int32") for name in IDS})
    assert (mixed != absent).any(axis=1).all()


@pytest.mark.short("torch")
def test_gemma3n_has_projections_that_it_never_uses():
    model = FAMILIES["Gemma3n"].build()
    unused = "text_model/decoder_block_2/attention/k_proj"
    assert unused in dict(keyed_layers(model))
    assert unused not in find_targets(model, None)
    assert unused not in find_targets(model, "all-linear")
    with pytest.raises(ValueError, match="which the model never calls"):
        keras_flix.enable_flix(model, FEATURES, rank=2, targets=[unused])


@pytest.mark.short("torch")
@pytest.mark.parametrize(
    "name, router",
    [
        ("Mixtral", "sparse_feedforward_gate_dense"),
        ("QwenMoe", "sparse_feedforward_gate_dense"),
        ("QwenMoe", "shared_expert_gate_dense"),
        ("Qwen3Moe", "sparse_feedforward_gate_dense"),
        ("Qwen3_5Moe", "router_gate"),
        ("Qwen3_5Moe", "shared_expert_gate"),
        ("GptOss", "router_dense"),
        ("Gemma4", "proj"),
        ("Gemma3n", "modality_router"),
        ("RWKV7", "head"),
    ],
)
def test_routers_gates_and_heads_must_be_named(name, router):
    model = FAMILIES[name].build()
    named = find_targets(model, [router])
    assert not named.keys() & find_targets(model, "all-linear").keys()
    assert not named.keys() & find_targets(model, None).keys()
    experts = "shared" if FAMILIES[name].experts else None
    keras_flix.enable_flix(
        model, FEATURES, rank=1, targets="all-linear", experts=experts
    )
    assert not named.keys() & model._adaptation.layers.keys()
    assert {type(layer) for layer in named.values()} <= STOCK


@pytest.mark.short("torch")
def test_image_encoders_of_language_models_must_be_named():
    model = FAMILIES["PaliGemma"].build()
    encoder = {k for k, _ in keyed_layers(model) if k.startswith("image_")}
    assert "image_encoder/encoder_block_0/multi_head_attention/query_proj" in encoder
    for targets in (None, "all-linear"):
        assert not encoder & find_targets(model, targets).keys()
    # A regex of linear layers names no embeddings among them.
    linear = {key for key in encoder if not key.endswith("_embedding")}
    assert find_targets(model, ["image_.*"]).keys() == linear != encoder
    clip = find_targets(FAMILIES["CLIP"].build(), None)
    assert {key.partition("/")[0] for key in clip} == {"vision_encoder", "text_encoder"}


@pytest.mark.short("torch")
def test_feed_forward_layers_of_a_block_named_after_attention():
    model = keras_hub.models.DebertaV3Backbone(
        vocabulary_size=40,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=12,
        max_sequence_length=8,
        bucket_size=4,
    )
    found = {path.rpartition("/")[2] for path in find_targets(model, None)}
    assert found == {"query", "key", "value", "attention_output"}


class SharedPositions(keras.layers.Layer):
    """Adds a projection of positions, which all examples share."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.positions = keras.layers.EinsumDense(
            "btd,dnh->btnh", (None, 2, 4), name="positions"
        )
        self.content = keras.layers.Dense(8, name="content")

    def build(self, input_shape):
        self.table = self.add_weight(shape=(1, input_shape[1], 6), name="table")
        self.positions.build(self.table.shape)
        self.content.build(input_shape)

    def call(self, inputs):
        content = ops.reshape(self.content(inputs), (-1, *inputs.shape[1:-1], 2, 4))
        return content + self.positions(ops.convert_to_tensor(self.table))


def test_an_input_that_all_examples_share():
    """Its leading axis is one, whatever the batch."""
    keras.utils.set_random_seed(0)
    x = keras.Input((5, 6), name="x")
    model = keras.Model({"x": x}, SharedPositions(name="block")(x))
    targets = ["positions", "content"]
    keras_flix.enable_flix(model, FEATURES, rank=2, targets=targets)
    randomize(model)
    own = np.random.default_rng(0).normal(size=(3, 5, 6)).astype("float32")
    for run in (model, model.predict_on_batch):
        mixed = to_numpy(run({"x": own, **IDS}))
        for i in range(3):
            one = {name: int(ids[i]) for name, ids in IDS.items()}
            merged = keras_flix.merge_features(model, one)
            expected = to_numpy(merged({"x": own[i : i + 1]}))
            np.testing.assert_allclose(mixed[i : i + 1], expected, atol=1e-5)


def test_rows_of_expert_layers_are_example_major():
    """Tokens of all examples in one axis, as mixtures of experts flatten them."""
    x = keras.Input((5, 6), name="x")
    hidden = keras.layers.Dense(6, name="hidden")(x)
    flat = ops.reshape(hidden, (-1, 6))
    outputs = ops.reshape(keras.layers.Dense(4, name="expert")(flat), (-1, 5, 4))
    model = keras.Model({"x": x}, outputs)
    keras_flix.enable_flix(model, FEATURES, rank=2, targets=["expert"])
    randomize(model)
    own = np.random.default_rng(0).normal(size=(3, 5, 6)).astype("float32")
    mixed = to_numpy(model.predict_on_batch({"x": own, **IDS}))
    for i in range(3):
        one = {name: int(ids[i]) for name, ids in IDS.items()}
        expected = to_numpy(keras_flix.merge_features(model, one)({"x": own}))[i]
        np.testing.assert_allclose(mixed[i], expected, atol=1e-5)
