"""Settings of a base that change what it computes are told apart, others are not."""

import json

import keras
import keras_hub
import numpy as np
import pytest
from helpers.gemma import FEATURES, SIZES, randomize, to_numpy
from helpers.models import make_mlp

import keras_flix
from keras_flix import base_fingerprint
from keras_flix.files.base_configuration import base_configuration
from keras_flix.files.fingerprint import BaseFingerprint

GEMMA = {
    "vocabulary_size": 40,
    **SIZES,
    "attention_logit_soft_cap": 50.0,
    "final_logit_soft_cap": 30.0,
    "use_sliding_window_attention": True,
    "sliding_window_size": 4,
}
LLAMA = {
    "vocabulary_size": 40,
    "num_layers": 1,
    "num_query_heads": 4,
    "num_key_value_heads": 2,
    "hidden_dim": 16,
    "intermediate_dim": 32,
}
BERT = {
    "vocabulary_size": 40,
    "num_layers": 1,
    "num_heads": 2,
    "hidden_dim": 16,
    "intermediate_dim": 32,
    "max_sequence_length": 8,
}
PHI3 = {
    **LLAMA,
    "max_sequence_length": 8,
    "pretraining_sequence_length": 4,
    "rope_scaling_type": "su",
    "rope_scaling_short_factor": [1.0, 1.0],
    "rope_scaling_long_factor": [2.0, 3.0],
}
CASES = {
    "length that positions are scaled by": (
        "Phi3Backbone",
        PHI3,
        {"max_sequence_length": 64},
    ),
    "norm": ("GemmaBackbone", GEMMA, {"layer_norm_epsilon": 0.5}),
    "soft cap": ("GemmaBackbone", GEMMA, {"attention_logit_soft_cap": 0.01}),
    "window": ("GemmaBackbone", GEMMA, {"sliding_window_size": 1}),
    "rope": ("LlamaBackbone", LLAMA, {"rope_max_wavelength": 10}),
    "epsilon of Llama": ("LlamaBackbone", LLAMA, {"layer_norm_epsilon": 0.5}),
}


def made(kind, options):
    keras.utils.set_random_seed(0)
    model = getattr(keras_hub.models, kind)(**options)
    generator = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(generator.normal(size=variable.shape) * 0.3)
    return model


TOKENS = {
    "token_ids": np.arange(14).reshape(2, 7).astype("int32"),
    "padding_mask": np.ones((2, 7), "int32"),
}


@pytest.mark.short("torch")
@pytest.mark.parametrize("case", CASES)
def test_settings_that_change_what_a_base_computes_are_refused(case, tmp_path):
    kind, options, other = CASES[case]
    path = tmp_path / "one.flix.safetensors"
    base, changed = made(kind, options), made(kind, {**options, **other})
    assert np.abs(to_numpy(base(TOKENS)) - to_numpy(changed(TOKENS))).max() > 1e-3
    assert base_fingerprint(base).digest == base_fingerprint(changed).digest
    adapted = randomize(keras_flix.enable_flix(base, FEATURES, rank=2))
    keras_flix.save_adapters(adapted, path)
    with pytest.raises(ValueError) as error:
        keras_flix.load_adapters(changed, path)
    ((name, value),) = other.items()
    assert f"{kind}: {name}={value!r} for {name}=" in str(error.value)
    assert "from a base with other settings than the model's" in str(error.value)
    keras_flix.load_adapters(changed, path, check_base=False)
    keras_flix.load_adapters(made(kind, options), path)


def test_a_text_soft_cap_of_the_task_counts():
    def made_with(cap):
        backbone = made("GemmaBackbone", {**GEMMA, "final_logit_soft_cap": cap})
        return keras_hub.models.GemmaCausalLM(backbone, preprocessor=None)

    one, other = base_fingerprint(made_with(30.0)), base_fingerprint(made_with(0.5))
    assert one.other_settings(other) == [
        "GemmaBackbone: final_logit_soft_cap=30.0 for final_logit_soft_cap=0.5",
        "token_embedding: logit_soft_cap=30.0 for logit_soft_cap=0.5",
    ]
    assert one.other_settings(one) == []


@pytest.mark.parametrize(
    "other",
    [
        {"dropout": 0.5},
        {"dtype": "bfloat16"},
        {"name": "mine"},
        {"trainable": False},
    ],
)
def test_settings_that_change_nothing_do_not_count(other):
    one, same = made("GemmaBackbone", GEMMA), made("GemmaBackbone", {**GEMMA, **other})
    assert base_configuration(one) == base_configuration(same)


def test_lengths_are_told_by_the_weights():
    one = made("BertBackbone", BERT)
    same = made("BertBackbone", {**BERT, "max_sequence_length": 12})
    assert base_configuration(one) == base_configuration(same)


def test_adapters_have_no_part_in_it():
    backbone = made("GemmaBackbone", GEMMA)
    before = base_configuration(backbone)
    assert before["final_normalization"] == {"epsilon": 1e-6}
    keras_flix.enable_flix(backbone, FEATURES, targets="all-linear")
    assert base_configuration(backbone) == before


def test_layers_of_any_model():
    def made_with(epsilon, activation):
        x = keras.Input((8,), name="x")
        hidden = keras.layers.Dense(6, activation=activation, name="hidden")(x)
        normed = keras.layers.LayerNormalization(epsilon=epsilon, name="norm")(hidden)
        return base_fingerprint(keras.Model({"x": x}, normed))

    one = made_with(1e-3, "tanh")
    assert one.other_settings(made_with(1e-5, "relu")) == [
        "hidden: activation='tanh' for activation='relu'",
        "norm: epsilon=0.001 for epsilon=1e-05",
    ]
    # As it comes out of a checkpoint in float32.
    assert one.other_settings(made_with(float(np.float32(1e-3)), "tanh")) == []
    # Other layers are other variables: there is nothing to compare.
    assert one.other_settings(base_fingerprint(make_mlp())) == []


def test_entries_of_other_types():
    class Odd(keras.layers.Dense):
        def get_config(self):
            entries = [{"scale": 2.0, "name": "x"}, {"scale": np.float32(0.5)}]
            gains = {"gains": np.array([1, 2]), "sizes": (3, (4, np.int64(5)))}
            return {"entries": entries, **gains, "object": object()}

    model = keras.Sequential([keras.Input((4,)), Odd(3, name="odd")], name="model")
    expected = {"entries.0.scale": 2.0, "entries.1.scale": 0.5, "gains": [1, 2]}
    expected |= {"sizes": [3, [4, 5]]}
    assert base_configuration(model) == {"model/odd": expected}


@pytest.mark.parametrize("raises", [True, False])
def test_a_layer_without_a_config_is_left_out(raises):
    class Odd(keras.layers.Dense):
        def get_config(self):
            if raises:
                raise RuntimeError("none")
            # As that of KerasHub's `Gemma3VisionOutput`.
            return None

    model = keras.Sequential([keras.Input((4,)), Odd(3, name="odd")])
    assert base_configuration(model) == {}


def test_each_distinct_one_is_listed_once():
    found = base_fingerprint(made("GemmaBackbone", GEMMA))
    config = json.loads(json.dumps(found.get_config()))
    assert BaseFingerprint.from_config(config) == found
    blocks = [config["layers"][f"decoder_block_{i}/attention/query"] for i in range(2)]
    assert blocks[0] == blocks[1]
    assert len(config["settings"]) < len(config["layers"])


def test_files_without_settings_are_compared_by_weights():
    found = base_fingerprint(made("GemmaBackbone", GEMMA))
    config = found.get_config()
    old = BaseFingerprint.from_config({"variables": config["variables"]})
    assert old.settings == {} and old.digest == found.digest
    assert found.other_settings(old) == old.other_settings(found) == []


@pytest.mark.parametrize(
    "more",
    [
        {"settings": [3], "layers": {}},
        {"settings": 3, "layers": {}},
        {"settings": [{}], "layers": {"a": 1}},
        {"settings": [{}], "layers": [0]},
        {"settings": [{}], "layers": {"a": "0"}},
    ],
)
def test_settings_of_another_form(more):
    with pytest.raises((TypeError, LookupError, AttributeError)):
        BaseFingerprint.from_config({"variables": {}, **more})


def test_odd_numbers_are_compared():
    def of(value):
        return BaseFingerprint({}, {"a": {"x": value}})

    values = [10**400, None, "1", [1, 2], [1], True, 2, float("inf")]
    for i, one in enumerate(values):
        for j, other in enumerate(values):
            assert bool(of(one).other_settings(of(other))) == (i != j)
