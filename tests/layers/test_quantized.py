"""Adapters on quantized bases, as with QLoRA."""

import keras
import keras_hub
import numpy as np
import pytest
from helpers.gemma import FEATURES, make_backbone, randomize, to_numpy

import keras_flix

pytestmark = pytest.mark.eager

MODES = {"int8": {"mode": "int8"}, "int4": {"mode": "int4"}}
CALIBRATED = {"gptq": keras.quantizers.GPTQConfig}
# Keras 3.13 has neither blocks of int4 kernels nor AWQ.
if hasattr(keras.quantizers, "AWQConfig"):
    per_channel = keras.quantizers.Int4QuantizationConfig(block_size=-1)
    MODES["int4_per_channel"] = {"config": per_channel}
    CALIBRATED["awq"] = keras.quantizers.AWQConfig
# From Keras 3.16 on. Of a Gemma, it quantizes half: not the kernels of einsums.
TERNARY = {}
if hasattr(keras.quantizers, "TernaryQuantizationConfig"):
    TERNARY = {"ternary": {"mode": "ternary"}}
X = {
    "token_ids": np.arange(20).reshape(4, 5).astype("int32"),
    "padding_mask": np.array([[1] * 5, [1] * 3 + [0] * 2] * 2, "int32"),
}
OF = {"task": ["qa", "list", None, "qa"], "language": ["sw", None, "yo", "en"]}


def no_embeddings(layer):
    return not isinstance(layer, keras.layers.Embedding)


def quantized(mode):
    """A tiny Gemma with a quantized base."""
    keras.utils.set_random_seed(0)
    backbone = make_backbone(num_layers=1 if mode in CALIBRATED else 2)
    model = keras_hub.models.GemmaCausalLM(backbone=backbone, preprocessor=None)
    if mode in CALIBRATED:
        tokens = np.random.default_rng(0).integers(0, 40, (2, 1, 8))
        config = CALIBRATED[mode](
            dataset=list(tokens),
            tokenizer=lambda text: text,
            num_samples=2,
            sequence_length=8,
            group_size=-1,
        )
        model.quantize(mode, config=config)
    else:
        model.quantize(**{**MODES, **TERNARY}[mode], filters=no_embeddings)
    return model


def mark(mode):
    row = {"int4_per_channel": "int4"}.get(mode, mode)
    marks = [pytest.mark.support("Paths", f"{row} base: train, generate")]
    if mode != "int8":
        # What adapters meet is the same, and JAX takes a minute to calibrate one.
        marks.append(pytest.mark.short("torch"))
    return pytest.param(mode, marks=[*marks, pytest.mark.slow])


ALL_MODES = pytest.mark.parametrize(
    "mode", [mark(m) for m in (*MODES, *TERNARY, *CALIBRATED)]
)


def weights(model):
    return {v.path: to_numpy(v) for v in model.weights}


@pytest.mark.pairs("quantized")
@ALL_MODES
def test_a_quantized_base(mode):
    model = quantized(mode)
    base, base_weights = to_numpy(model(X)), weights(model)
    keras_flix.enable_flix(model, FEATURES, rank=2, targets="all-linear", seed=0)
    fresh = to_numpy(model({**X, **OF}))
    np.testing.assert_array_equal(fresh, base)
    randomize(model)

    mixed = to_numpy(model({**X, **OF}))
    assert np.abs(mixed - base).max(axis=(1, 2)).min() > 0.01
    for i in range(4):
        one = {k: v[i : i + 1] for k, v in {**X, **OF}.items()}
        np.testing.assert_allclose(to_numpy(model(one))[0], mixed[i], atol=2e-5)
    with keras_flix.adapters_disabled(model):
        np.testing.assert_array_equal(to_numpy(model(X)), base)

    tables = [to_numpy(v) for v in model.trainable_variables]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss=loss, sampler="greedy")
    y = np.roll(X["token_ids"], -1, axis=1)
    history = model.fit({**X, **OF}, y, epochs=8, verbose=0).history["loss"]
    assert history[-1] < history[0]
    for path, value in base_weights.items():
        np.testing.assert_array_equal(weights(model)[path], value)
    for before, variable in zip(tables, model.trainable_variables):
        assert np.abs(to_numpy(variable) - before).max() > 0

    together = model.generate({**X, **OF}, stop_token_ids=None)["token_ids"]
    for i in (1, 2):
        one = {k: v[i : i + 1] for k, v in {**X, **OF}.items()}
        alone = model.generate(one, stop_token_ids=None)["token_ids"]
        np.testing.assert_array_equal(to_numpy(alone)[0], to_numpy(together)[i])


@pytest.mark.pairs
@pytest.mark.parametrize("mode", [*MODES, *TERNARY])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_the_update_is_added_in_floating_point_before_the_activation(mode, activation):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 8)).astype("float32")
    inputs = keras.Input((8,), name="x")
    layer = keras.layers.Dense(6, activation=activation, name="layer")
    model = keras.Model({"x": inputs}, layer(inputs))
    layer.bias.assign(rng.normal(size=6))
    model.quantize(**{**MODES, **TERNARY}[mode])
    layer.activation, own = None, layer.activation
    linear = to_numpy(layer(x))
    layer.activation = own
    keras_flix.enable_flix(model, {"task": ["qa", "parse"]}, rank=2, targets=["layer"])
    randomize(model)
    found = to_numpy(model({"x": x, "task": ["qa", None, "parse"]}))
    deltas = [to_numpy(layer.kernel_delta({"task": t})) for t in ("qa", None, "parse")]
    expected = linear + np.stack([row @ delta for row, delta in zip(x, deltas)])
    assert np.abs(expected - linear)[[0, 2]].min(axis=0).max() > 0.05
    if activation:
        expected = np.maximum(expected, 0)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.short("torch")
@pytest.mark.slow
@pytest.mark.support("Paths", "int8 base: rematerialization")
def test_gradients_with_rematerialization():
    def trained(remat):
        keras.utils.set_random_seed(0)
        with keras.RematScope(mode="full" if remat else None):
            model = make_backbone()
        model.quantize("int8", filters=no_embeddings)
        randomize(keras_flix.enable_flix(model, FEATURES, rank=2, dropout=0.3, seed=1))
        model.compile(keras.optimizers.SGD(0.5), loss="mse")
        target = np.random.default_rng(0).normal(size=(4, 5, 16))
        model.fit({**X, **OF}, target, epochs=2, verbose=0)
        return [to_numpy(v) for v in model.trainable_variables]

    for one, other in zip(trained(True), trained(False)):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.pairs("quantized")
@pytest.mark.slow
@pytest.mark.support("Paths", "int8 base: adapter files, `.keras` files")
@pytest.mark.parametrize(
    "mode", ["int8", pytest.param("int4", marks=pytest.mark.short("torch"))]
)
def test_files(mode, tmp_path):
    model = keras_flix.enable_flix(quantized(mode), FEATURES, rank=2)
    expected = to_numpy(randomize(model)({**X, **OF}))
    keras_flix.save_adapters(model, tmp_path / "a.flix.safetensors")
    other = keras_flix.load_adapters(quantized(mode), tmp_path / "a.flix.safetensors")
    np.testing.assert_allclose(to_numpy(other({**X, **OF})), expected, atol=1e-5)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(to_numpy(loaded({**X, **OF})), expected, atol=1e-5)
    # What was trained on a quantized base, on the float one, which can be merged.
    keras.utils.set_random_seed(0)
    plain = keras_hub.models.GemmaCausalLM(backbone=make_backbone(), preprocessor=None)
    plain = keras_flix.load_adapters(plain, tmp_path / "a.flix.safetensors")
    combination = {"task": "qa", "language": "sw"}
    merged = keras_flix.merge_features(plain, combination)
    np.testing.assert_allclose(
        to_numpy(merged(X)), to_numpy(plain({**X, **combination})), atol=1e-4
    )


@pytest.mark.support("Paths", "Quantized base: `merge_features`", "refused")
@pytest.mark.parametrize("mode", list(MODES))
def test_merging_is_refused(mode):
    model = keras_flix.enable_flix(quantized(mode), FEATURES)
    with pytest.raises(ValueError, match="Load the model without quantization"):
        keras_flix.merge_features(model, {"task": "qa", "language": None})


@pytest.mark.support("Paths", "float8 base", "refused")
def test_float8_is_refused():
    model = make_backbone()
    model.quantize("float8", filters=no_embeddings)
    before = weights(model)
    with pytest.raises(ValueError, match="quantization_mode='float8'"):
        keras_flix.enable_flix(model, FEATURES)
    assert type(model) is keras_hub.models.GemmaBackbone
    assert list(weights(model)) == list(before)


@pytest.mark.slow
@pytest.mark.support("Paths", "int8 embeddings: train", "refused")
def test_logits_without_a_gradient_are_refused_in_training():
    model = keras_hub.models.GemmaCausalLM(backbone=make_backbone(), preprocessor=None)
    model.quantize("int8")
    keras_flix.enable_flix(model, FEATURES, rank=2)
    randomize(model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="sgd", loss=loss, sampler="greedy")
    before = weights(model)
    with pytest.raises(ValueError, match="Quantize without the embeddings"):
        model.fit({**X, **OF}, X["token_ids"], verbose=0)
    for path, value in weights(model).items():
        np.testing.assert_array_equal(value, before[path])
    # It can generate, and be evaluated.
    mixed = to_numpy(model.generate({**X, **OF}, stop_token_ids=None)["token_ids"])
    assert mixed.shape == (4, 5)
    assert np.isfinite(model.evaluate({**X, **OF}, X["token_ids"], verbose=0)).all()


def test_quantizing_without_calibration_is_refused():
    inputs = keras.Input((8,), name="x")
    model = keras.Model({"x": inputs}, keras.layers.Dense(6, name="layer")(inputs))
    config = keras.quantizers.GPTQConfig(dataset=None, tokenizer=None, group_size=-1)
    model.get_layer("layer").quantize("gptq", config=config)
    with pytest.raises(ValueError, match="seen no calibration data"):
        keras_flix.enable_flix(model, FEATURES, targets=["layer"])


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_an_adapted_layer_is_not_quantized_anew(mode):
    model = keras_flix.enable_flix(make_backbone(), FEATURES)
    with pytest.raises(ValueError, match="cannot be quantized"):
        model.quantize(mode)
    layer = model.get_layer("decoder_block_0").attention.query_dense
    with pytest.raises(NotImplementedError):
        layer.quantize(mode)
    assert layer.quantization_mode is None
