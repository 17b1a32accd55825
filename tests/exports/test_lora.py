"""What exported LoRAs hold, read without PEFT, and what is refused."""

from __future__ import annotations

import copy
import json

import keras
import keras_hub
import numpy as np
import pytest
import safetensors.numpy
from helpers.gemma import FEATURES, make_backbone, randomize, to_numpy

import keras_flix
from keras_flix import Feature, export_lora, export_loras
from keras_flix.exports.vllm_limits import RANKS

COMBINATION = {"task": "parse", "language": "sw"}
MODULES = {
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/attention_output": "self_attn.o_proj",
    "ffw_gating": "mlp.gate_proj",
    "ffw_gating_2": "mlp.up_proj",
    "ffw_linear": "mlp.down_proj",
}


MANY_KINDS = [
    Feature("task", ["qa", "parse"], rank={"qa": 3, "*": 1}, alpha=6),
    Feature("language", ["en", "sw", "yo"], rank={"en": 2, "*": 5}, multiple=True),
    Feature("all", always=True, rank=4),
]

only_once = pytest.mark.skipif(
    keras.config.backend() != "torch",
    reason="does not depend on the backend: tested once, with torch",
)


def make(features=FEATURES, **options):
    keras.utils.set_random_seed(0)
    backbone = make_backbone(num_layers=1)
    task = keras_hub.models.GemmaCausalLM(backbone=backbone, preprocessor=None)
    return randomize(keras_flix.enable_flix(task, features, **options))


@pytest.fixture(scope="module")
def model():
    """Exports leave it as it is."""
    return make(targets="all-linear")


@pytest.fixture(scope="module")
def many_kinds():
    return make(MANY_KINDS, alpha=2, targets=["query", "ffw_linear"])


@pytest.fixture(scope="module")
def within_ranks(many_kinds):
    """Zero beyond the values' ranks, as in training; `randomize` fills that too."""
    return cut_to_ranks(copy.deepcopy(many_kinds))


def cut_to_ranks(model):
    for layer in model._adaptation.layers.values():
        for feature in model._adaptation.schema:
            a, b = layer._tables.variables[feature.name]
            beyond = np.arange(a.shape[-1]) >= np.asarray(feature.ranks)[:, None]
            a.assign(np.where(beyond[:, None], 0.0, to_numpy(a)))
            b.assign(np.where(beyond[..., None], 0.0, to_numpy(b)))
    return model


def read(directory):
    config = json.loads((directory / "adapter_config.json").read_text())
    path = directory / "adapter_model.safetensors"
    return config, safetensors.numpy.load_file(path)


def assert_deltas(model, combination, directory):
    """Each `B @ A` is the update of its layer, whose kernel is `(heads, in, dim)`."""
    config, tensors = read(directory)
    assert len(tensors) == 2 * len(model._adaptation.layers)
    for path, layer in model._adaptation.layers.items():
        block, _, below = path.partition("/")
        name = f"model.layers.{block[-1]}.{MODULES[below]}"
        a, b = (tensors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        assert len(a) == b.shape[1] == config["r"] == config["lora_alpha"]
        delta = to_numpy(layer.kernel_delta(combination))
        if delta.ndim == 3:
            outputs = 2 if below == "attention/attention_output" else 0
            delta = np.moveaxis(delta, outputs, 0)
            if outputs == 0:
                delta = np.swapaxes(delta, 1, 2).reshape(-1, delta.shape[1])
            else:
                delta = delta.reshape(len(delta), -1)
        else:
            delta = delta.T
        np.testing.assert_allclose(b @ a, delta, atol=1e-5)
    return config, tensors


def used_rank(tensors):
    """The highest rank of the layers, without padding."""
    return max(int(np.any(t, 1).sum()) for k, t in tensors.items() if ".lora_A." in k)


@pytest.mark.parametrize(
    "combination, rank",
    [
        ({"task": "qa", "language": ["en", "yo"]}, 3 + 2 + 5 + 4),
        ({"task": "parse", "language": "sw"}, 1 + 5 + 4),
        ({"task": None, "language": ["yo"]}, 5 + 4),
        ({"task": "qa", "language": []}, 3 + 4),
        ({"task": None, "language": None}, 4),
    ],
)
def test_ranks_scales_and_axes_of_all_kinds(combination, rank, within_ranks, tmp_path):
    export_lora(within_ranks, combination, tmp_path / "lora")
    config, tensors = assert_deltas(within_ranks, combination, tmp_path / "lora")
    assert used_rank(tensors) == rank
    assert config["r"] == next(r for r in RANKS if r >= rank)


def test_features_in_some_layers_only(tmp_path):
    features = [
        Feature("task", ["qa", "parse"], rank=8, targets=["query"]),
        Feature("language", ["en", "sw"], rank=6, targets=["ffw_linear", "query"]),
        Feature("shared", always=True, rank=3, targets=["ffw_linear"]),
    ]
    model = make(features)
    combination = {"task": "qa", "language": "sw"}
    export_lora(model, combination, tmp_path / "lora")
    config, tensors = assert_deltas(model, combination, tmp_path / "lora")
    # Of the layers, not of the features: no layer has all three.
    assert used_rank(tensors) == 14 and config["r"] == 16


def test_weights_of_values(model, tmp_path):
    combination = {"task": "qa", "language": {"sw": 0.75, "yo": -0.5}}
    export_lora(model, combination, tmp_path / "lora")
    _, tensors = assert_deltas(model, combination, tmp_path / "lora")
    assert used_rank(tensors) == 3 * 4


def test_without_any_value_the_lora_is_zero(model, tmp_path):
    nothing = {"task": None, "language": None}
    export_lora(model, nothing, tmp_path / "lora")
    config, tensors = read(tmp_path / "lora")
    assert config["r"] == 1
    assert not any(map(np.any, tensors.values()))


def test_one_scale_and_nothing_that_servers_do_not_read(model, tmp_path):
    directory = tmp_path / "lora"
    directory.mkdir()
    export_lora(model, COMBINATION, directory, base_model="google/gemma-2b")
    config, tensors = read(directory)
    assert config == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "google/gemma-2b",
        "inference_mode": True,
        "r": 8,
        "lora_alpha": 8,
        "use_rslora": False,
        "use_dora": False,
        "lora_dropout": 0.0,
        "bias": "none",
        "modules_to_save": None,
        "fan_in_fan_out": False,
        "target_modules": sorted(m.split(".")[1] for m in MODULES.values()),
    }
    assert {t.dtype for t in tensors.values()} == {np.dtype("float32")}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lora"]


def test_a_single_value_scaled_by_the_root_is_written_as_an_rslora(tmp_path):
    features = [Feature("task", ["qa", "parse"], rank={"qa": 8, "*": 4})]
    options = {"alpha": 6, "scale": "sqrt", "targets": ["query"]}
    model = cut_to_ranks(make(features, **options))
    for name, written in (("qa", True), ("parse", False)):
        export_lora(model, {"task": name}, tmp_path / name)
        config, tensors = read(tmp_path / name)
        assert config["use_rslora"] is written and config["r"] == 8
        assert config["lora_alpha"] == (6 if written else 8)
        scale = config["lora_alpha"] / 8 ** (0.5 if written else 1)
        (a,) = (t for k, t in tensors.items() if ".lora_A." in k)
        (b,) = (t for k, t in tensors.items() if ".lora_B." in k)
        (layer,) = model._adaptation.layers.values()
        table, _ = layer._tables.variables["task"]
        own = to_numpy(table)[model._adaptation.schema["task"].id_of(name)]
        if written:
            np.testing.assert_array_equal(a, own.T)
        delta = to_numpy(layer.kernel_delta({"task": name}))
        delta = np.moveaxis(delta, 1, 2).reshape(-1, delta.shape[1])
        np.testing.assert_allclose(scale * b @ a, delta, atol=1e-5)
    # Of one LoRA per value, which are added up, the scale is 1 in all of them.
    keras_flix.export_values(model, tmp_path / "values", format="peft")
    config, tensors = read(tmp_path / "values" / "task-qa")
    assert (config["lora_alpha"], config["use_rslora"]) == (8, False)
    (a,) = (t for k, t in tensors.items() if ".lora_A." in k)
    np.testing.assert_allclose(a, to_numpy(table)[0].T * 6 / 8**0.5, rtol=1e-5)


@only_once
def test_the_base_may_be_quantized(tmp_path):
    backbone = make_backbone(num_layers=1)
    backbone.quantize("int8", filters=["ffw_linear"])
    task = keras_hub.models.GemmaCausalLM(backbone=backbone, preprocessor=None)
    keras_flix.enable_flix(task, FEATURES, targets=["ffw_linear"])
    # The tables are floats.
    export_lora(randomize(task), COMBINATION, tmp_path / "lora")
    assert_deltas(task, COMBINATION, tmp_path / "lora")


# What is refused. ---------------------------------------------------------------


def refused(directory, text, model, combination=COMBINATION, export=export_lora):
    before = sorted(directory.parent.iterdir())
    with pytest.raises(ValueError) as error:
        export(model, combination, directory)
    assert text in " ".join(str(error.value).split())
    assert sorted(directory.parent.iterdir()) == before


def small(backbone):
    """A backbone of one layer."""
    return backbone(
        vocabulary_size=40,
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=24,
        max_sequence_length=16,
    )


def masked_lm():
    """With a head and a pooler that PEFT has no place for."""
    bert = small(keras_hub.models.BertBackbone)
    return keras_hub.models.BertMaskedLM(bert, preprocessor=None)


@only_once
def test_other_families_are_refused_by_name(tmp_path):
    opt = small(keras_hub.models.OPTBackbone)
    keras_flix.enable_flix(opt, FEATURES)
    text = (
        "'DistilBertBackbone', 'BartBackbone']. Received: a OPTBackbone: KerasHub "
        "loads none of transformers' checkpoints of this family, so nothing could show "
        "that its layers are theirs. Use `save_adapters`, or"
    )
    refused(tmp_path / "lora", text, opt)
    plain = keras.Sequential([keras.Input((16,)), keras.layers.Dense(16, name="a")])
    keras_flix.enable_flix(plain, FEATURES, targets=["a"])
    refused(tmp_path / "lora", "Received: a Sequential.", plain)


def test_plain_models_are_refused(tmp_path):
    refused(tmp_path / "lora", "Received: a", make_backbone())


@only_once
def test_layers_without_a_counterpart_are_refused(tmp_path):
    task = masked_lm()
    keras_flix.enable_flix(task, FEATURES, targets=["query", "intermediate_dense"])
    text = "Every adapted layer must have a counterpart in Hugging Face transformers."
    refused(tmp_path / "lora", text + " Received: ['mlm_head/", task)


@only_once
def test_what_trains_besides_and_has_no_counterpart_is_refused(tmp_path):
    model = make(train=["final_normalization", "query"])
    text = "Received: 'final_normalization/scale', which trained besides and is of no"
    refused(tmp_path / "lora", text, model)
    refused(tmp_path / "all", text, model, None, export_loras)
    # One LoRA per value holds nothing else.
    for options, name in (
        ({"train": [".*_0/ffw_linear"]}, "model.layers.0.mlp.down_proj"),
        ({"trainable_tokens": [7]}, "model.embed_tokens"),
    ):
        with pytest.raises(ValueError, match=f"in which .'{name}'. .as transformers"):
            keras_flix.export_values(make(**options), tmp_path / "values")
    model = make(targets=["token_embedding"])
    with pytest.raises(ValueError, match="whose embedding 'token_embedding' is adapt"):
        keras_flix.export_values(model, tmp_path / "values", format="gguf")
    model = make(targets=["query"], train=["query"])
    text = "Received: a model in which ['decoder_block_0/attention/query'] do, and no"
    refused(tmp_path / "lora", text, model)


def values_of(model, combination, directory):
    keras_flix.export_values(model, directory)


@only_once
def test_a_feature_in_layers_alone_that_peft_does_not_have_has_a_rank(tmp_path):
    task = masked_lm()
    # A masked LM does not read its pooler.
    pooler = Feature("genre", ["news"], targets=["pooled_dense"])
    keras_flix.enable_flix(
        task, [Feature("task", ["qa"], targets=["query"]), pooler], rank=2
    )
    keras_flix.export_values(randomize(task), tmp_path / "values")
    index = keras_flix.serving.read_index(tmp_path / "values")
    assert [adapter["rank"] for adapter in index.adapters] == [2, 1]
    config, tensors = read(tmp_path / "values" / "genre-news")
    assert (config["r"], config["lora_alpha"]) == (1, 1)
    assert tensors and not any(map(np.any, tensors.values()))


def test_wrong_combinations_are_refused(model, tmp_path):
    refused(tmp_path / "lora", "no entry 'language'", model, {"task": "qa"})
    wrong = {"task": "qa", "language": "xx"}
    refused(tmp_path / "lora", "Received: language='xx'", model, wrong)


def test_ranks_beyond_those_of_servers_are_refused(tmp_path):
    many = [Feature("language", range(40), rank=16, multiple=True)]
    model = make(many, targets=["query"])
    text = "must be at most 512, which is what servers take. Received: a combination"
    every = {"language": list(range(40))}
    refused(tmp_path / "lora", text, model, every)


@pytest.mark.parametrize("part", "ab")
def test_tables_that_are_not_finite_are_refused(part, tmp_path):
    model = make(targets=["ffw_linear"])
    layer = model._adaptation.layers["decoder_block_0/ffw_linear"]
    table = layer._tables.named_variables[f"flix_language_{part}"]
    broken = np.array(to_numpy(table))
    broken[1, 0, 0] = np.nan
    table.assign(broken)
    text = "must be finite, and zero beyond its values' ranks [4, 4, 4]. Received: "
    text += "other numbers in feature 'language' of layer 'decoder_block_0/ffw_linear'"
    refused(tmp_path / "lora", text, model)
    refused(tmp_path / "all", text, model, None, export_loras)
    # Nobody else's tables.
    export_lora(model, {"task": "qa", "language": "en"}, tmp_path / "other")
    assert (tmp_path / "other" / "adapter_config.json").exists()


def test_tables_beyond_their_ranks_are_refused(many_kinds, tmp_path):
    refused(
        tmp_path / "lora",
        "zero beyond its values' ranks [3, 1]. Received: other numbers in",
        many_kinds,
        {"task": "parse", "language": None},
    )


def test_directories_that_are_not_free_are_refused(model, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    text = "`directory` must be new or empty, so that nothing of an earlier export"
    refused(tmp_path / "full", text, model)
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    refused(tmp_path / "file", "which is a file. Choose another.", model)
    with pytest.raises(ValueError, match="must be in an existing folder"):
        export_lora(model, COMBINATION, tmp_path / "none" / "lora")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize(
    "files, export",
    [
        (1, lambda model, path: export_lora(model, COMBINATION, path)),
        (2, lambda model, path: export_loras(model, None, path)),
        (2, lambda model, path: keras_flix.export_values(model, path)),
    ],
)
def test_nothing_is_left_where_writing_ends_early(
    stop, files, export, model, tmp_path, monkeypatch
):
    written = []

    def write(tensors, path, *_):
        path.write_bytes(b"half of it")
        written.append(path)
        if len(written) == files:
            raise stop

    monkeypatch.setattr("safetensors.numpy.save_file", write)
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        written.clear()
        with pytest.raises(stop):
            export(model, tmp_path / name)
        assert len(written) == files
        assert [path.name for path in tmp_path.iterdir()] == ["empty"]
        assert list((tmp_path / "empty").iterdir()) == []
