"""Exported LoRAs: transformers and PEFT compute what the adapted model does."""

from __future__ import annotations

import keras_hub
import numpy as np
import pytest
from helpers.gemma import FEATURES, randomize
from helpers.hugging_face import (
    AUTO,
    CONFIGS,
    ENCODERS,
    batch,
    keras_outputs,
    load,
    load_keras,
    read_config,
    torch_outputs,
    transformers,
    with_lora,
)
from helpers.loras import (
    CAUSAL_LM,
    COMBINATION,
    assert_same,
    generator,
    needs_torch,
)

import keras_flix

DAILY = ("Gemma", "Llama", "GPT2", "Bert")
"""Families in the daily loop."""


@pytest.mark.parametrize(
    "family, targets",
    [
        pytest.param(
            family,
            targets,
            marks=[
                # One on every backend.
                *[needs_torch] * ((family, targets) != ("Gemma", "all-linear")),
                *[pytest.mark.slow] * (family not in DAILY),
            ],
        )
        for family in CONFIGS
        for targets in (None, "all-linear")
    ],
)
def test_transformers_computes_the_same(family, targets, bases, tmp_path):
    auto = AUTO.get(family, CAUSAL_LM)
    base = bases(family, auto)
    model = load_keras(family, base)
    if family not in ENCODERS:
        model = generator(family, model)
    keras_flix.enable_flix(
        model, FEATURES, rank={"task": 3, "language": 2}, alpha=2, targets=targets
    )
    randomize(model)
    keras_flix.export_lora(model, COMBINATION, tmp_path / "lora")
    assert_same(model, base, auto, tmp_path / "lora")
    config = read_config(tmp_path / "lora")
    # GPT-2 has one module for queries, keys and values.
    assert config["r"] == config["lora_alpha"] == (16 if family == "GPT2" else 8)


@needs_torch
@pytest.mark.parametrize("family", ["Gemma", "GPT2"])
def test_a_backbone_is_a_model_without_a_head(family, bases, tmp_path):
    base = bases(family, CAUSAL_LM)
    model = keras_flix.enable_flix(load_keras(family, base), FEATURES)
    keras_flix.export_lora(randomize(model), COMBINATION, tmp_path / "lora")
    assert_same(model, base, "AutoModel", tmp_path / "lora")
    assert read_config(tmp_path / "lora")["task_type"] == "FEATURE_EXTRACTION"


@needs_torch
@pytest.mark.parametrize(
    "family, auto, targets",
    [
        # The other block has modules of the same names.
        ("Gemma", CAUSAL_LM, [".*_1/attention/value", ".*_0/ffw_linear"]),
        # Queries, and nothing where keys and values are.
        ("GPT2", CAUSAL_LM, ["query", ".*_1/self_attention/value"]),
        # Four modules are called `dense`, and one's name ends like another's.
        ("Bert", "AutoModel", ["feedforward_output_dense", "pooled_dense"]),
    ],
)
def test_some_layers_alone(family, auto, targets, bases, tmp_path):
    base = bases(family, auto)
    model = load_keras(family, base)
    model = model if family == "Bert" else generator(family, model)
    keras_flix.enable_flix(model, FEATURES, targets=targets)
    keras_flix.export_lora(randomize(model), COMBINATION, tmp_path / "lora")
    assert_same(model, base, auto, tmp_path / "lora")


@needs_torch
def test_many_modules_by_their_whole_names(bases, tmp_path):
    """From 20 on, PEFT looks for shorter names."""
    base = bases("Bert", "AutoModel", num_hidden_layers=7)
    model = load_keras("Bert", base)
    targets = ["attention_output", ".*/feedforward_.*_dense"]
    keras_flix.enable_flix(model, FEATURES, targets=targets, rank=1)
    keras_flix.export_lora(randomize(model), COMBINATION, tmp_path / "lora")
    assert len(read_config(tmp_path / "lora")["target_modules"]) == 21
    assert_same(model, base, "AutoModel", tmp_path / "lora")


SEQ_CLS = "AutoModelForSequenceClassification"


HEADS = {
    "Bert": {"logits": "classifier"},
    "Roberta": {"pooled_dense": "classifier.dense", "logits": "classifier.out_proj"},
    "DistilBert": {"pooled_dense": "pre_classifier", "logits": "classifier"},
}


def classifier(family, base):
    """A classifier with the head of the base; `None` as `train` is the default."""
    cls = getattr(keras_hub.models, f"{family}TextClassifier")
    sizes = {} if family == "Bert" else {"hidden_dim": 16}
    task = cls(
        load_keras(family, base), num_classes=2, preprocessor=None, dropout=0.0, **sizes
    )
    theirs = load(base, SEQ_CLS)
    for name, module in HEADS[family].items():
        head = theirs.get_submodule(module)
        weights = [p.detach().numpy() for p in (head.weight, head.bias)]
        task.get_layer(name).set_weights([weights[0].T, weights[1]])
    return task


@needs_torch
@pytest.mark.parametrize("family", HEADS)
def test_a_classifier_has_its_head_in_the_base(family, bases, tmp_path):
    base = bases(family, SEQ_CLS)
    # The head may have a LoRA, too.
    for targets in ("all-linear", ["query", *HEADS[family]]):
        task = classifier(family, base)
        keras_flix.enable_flix(task, FEATURES, targets=targets, rank=2, train=())
        directory = tmp_path / str(targets[:3])
        keras_flix.export_lora(randomize(task), COMBINATION, directory)
        assert_same(task, base, SEQ_CLS, directory)
        assert read_config(directory)["task_type"] is None


@needs_torch
@pytest.mark.parametrize("family", ["Roberta", "DistilBert"])
def test_heads_of_two_layers_that_train_whole(family, bases, tmp_path):
    base = bases(family, SEQ_CLS)
    task = keras_flix.enable_flix(classifier(family, base), FEATURES, rank=2)
    # Heads too.
    randomize(task)
    keras_flix.export_lora(task, COMBINATION, tmp_path / "lora")
    modules = read_config(tmp_path / "lora")["modules_to_save"]
    assert set(modules) == set(HEADS[family].values())
    adapted = with_lora(load(base, SEQ_CLS), tmp_path / "lora")
    ours = keras_outputs(task, **COMBINATION)
    np.testing.assert_allclose(torch_outputs(adapted), ours, atol=1e-4)


@needs_torch
@pytest.mark.parametrize(
    "targets, train, modules",
    [
        (None, None, ["classifier"]),
        # What trains whole and is adapted, too, is merged.
        (["query", "logits"], None, ["classifier"]),
        (
            ["query", ".*_1/self_attention_layer/value"],
            ["logits", "pooled_dense", ".*_0/.*_dense", ".*_1/.*/value"],
            [
                *("pooler.dense", "encoder.layer.0.intermediate.dense"),
                "encoder.layer.0.output.dense",
                "encoder.layer.1.attention.self.value",
                "classifier",
            ],
        ),
    ],
)
def test_layers_that_train_whole_are_modules_to_save(
    targets, train, modules, bases, tmp_path
):
    base = bases("Bert", SEQ_CLS)
    task = classifier("Bert", base)
    keras_flix.enable_flix(task, FEATURES, rank=2, targets=targets, train=train)
    # Heads too.
    randomize(task)
    keras_flix.export_lora(task, COMBINATION, tmp_path / "lora")
    config = read_config(tmp_path / "lora")
    expected = {m if m == "classifier" else f"bert.{m}" for m in modules}
    assert set(config["modules_to_save"]) == expected
    assert config["task_type"] == "SEQ_CLS"
    adapted = with_lora(load(base, SEQ_CLS), tmp_path / "lora")
    ours = keras_outputs(task, **COMBINATION)
    np.testing.assert_allclose(torch_outputs(adapted), ours, atol=1e-4)


@needs_torch
def test_modules_of_several_layers_that_train_whole(bases, tmp_path):
    base = bases("GPT2", CAUSAL_LM)
    model = generator("GPT2", load_keras("GPT2", base))
    train = [".*_0/self_attention/query", ".*_1/feedforward_output_dense"]
    keras_flix.enable_flix(model, FEATURES, train=train)
    keras_flix.export_lora(randomize(model), COMBINATION, tmp_path / "lora")
    adapted = with_lora(load(base, CAUSAL_LM), tmp_path / "lora")
    ours = keras_outputs(model, **COMBINATION)
    np.testing.assert_allclose(torch_outputs(adapted), ours, atol=1e-4)


@needs_torch
@pytest.mark.parametrize(
    "family, auto, modules",
    [
        ("Gemma", CAUSAL_LM, ["model.embed_tokens"]),
        ("Qwen", CAUSAL_LM, ["model.embed_tokens", "lm_head"]),
        ("GPT2", CAUSAL_LM, ["transformer.wte"]),
        ("Llama", "AutoModel", ["embed_tokens"]),
        ("Bert", "AutoModel", ["embeddings.word_embeddings"]),
    ],
)
def test_rows_of_tokens_are_trainable_token_indices(
    family, auto, modules, bases, tmp_path
):
    base = bases(family, "AutoModel" if family == "Bert" else CAUSAL_LM)
    model = load_keras(family, base)
    model = generator(family, model) if auto == CAUSAL_LM else model
    # Among those of the batch.
    tokens = np.unique(batch()["token_ids"])[1:8:2].tolist()
    keras_flix.enable_flix(model, FEATURES, rank=2, trainable_tokens=tokens)
    keras_flix.export_lora(randomize(model), COMBINATION, tmp_path / "lora")
    indices = read_config(tmp_path / "lora")["trainable_token_indices"]
    assert indices == dict.fromkeys(modules, tokens)
    adapted = with_lora(load(base, auto), tmp_path / "lora")
    ours = keras_outputs(model, **COMBINATION)
    np.testing.assert_allclose(torch_outputs(adapted), ours, atol=1e-4)


@needs_torch
@pytest.mark.parametrize(
    "family, auto, modules",
    [
        ("Gemma", CAUSAL_LM, ["embed_tokens", "lm_head"]),
        ("Qwen", CAUSAL_LM, ["embed_tokens"]),
        ("GPT2", CAUSAL_LM, ["lm_head", "wte"]),
        ("Bert", "AutoModel", ["word_embeddings"]),
    ],
)
def test_adapted_embeddings_are_loras_of_embeddings(
    family, auto, modules, bases, tmp_path
):
    base = bases(family, "AutoModel" if family == "Bert" else CAUSAL_LM)
    model = load_keras(family, base)
    model = generator(family, model) if auto == CAUSAL_LM else model
    keras_flix.enable_flix(model, FEATURES, rank=2, targets=["token_embedding"])
    keras_flix.export_lora(randomize(model), COMBINATION, tmp_path / "lora")
    config = read_config(tmp_path / "lora")
    assert config["target_modules"] == modules
    assert_same(model, base, auto, tmp_path / "lora")


@needs_torch
def test_a_masked_lm_has_no_pooler(bases, tmp_path):
    base = bases("Bert", "AutoModelForSequenceClassification")

    def make(targets):
        backbone = load_keras("Bert", base)
        task = keras_hub.models.BertMaskedLM(backbone, preprocessor=None)
        return randomize(keras_flix.enable_flix(task, FEATURES, targets=targets))

    task = make("all-linear")
    keras_flix.export_lora(task, COMBINATION, tmp_path / "lora")
    theirs = with_lora(load(base, "AutoModelForMaskedLM"), tmp_path / "lora")
    encoder = theirs.get_base_model().bert
    assert encoder.pooler is None
    ours = keras_outputs(task.backbone, **COMBINATION)
    np.testing.assert_allclose(torch_outputs(encoder), ours, atol=1e-4)
    with pytest.raises(ValueError, match="Received: .'pooled_dense'., which have none"):
        keras_flix.export_lora(make(["pooled_dense"]), COMBINATION, tmp_path / "none")


@needs_torch
def test_the_text_decoder_of_a_gemma_4_that_reads_images(tmp_path):
    """Transformers' model has each of the modules, and none is in its image tower."""
    hub = keras_hub.models
    sizes = {"hidden_dim": 8, "num_layers": 1, "intermediate_dim": 12, "head_dim": 4}
    encoder = hub.Gemma4VisionEncoder(
        image_size=16, patch_size=4, pool_size=2, num_heads=2, output_dim=16, **sizes
    )
    backbone = hub.Gemma4Backbone(
        vocabulary_size=48,
        image_size=16,
        num_layers=2,
        num_query_heads=4,
        num_key_value_heads=2,
        hidden_dim=16,
        intermediate_dim=24,
        head_dim=8,
        layer_types=["sliding_attention", "full_attention"],
        vision_encoder=encoder,
    )
    task = hub.Gemma4CausalLM(backbone=backbone, preprocessor=None)
    keras_flix.enable_flix(task, FEATURES, targets="all-linear")
    keras_flix.export_lora(randomize(task), COMBINATION, tmp_path / "lora")
    options = {**CONFIGS["Gemma4"][1], "hidden_size_per_layer_input": 0}
    config = transformers.Gemma4Config(
        text_config=transformers.Gemma4TextConfig(**options),
        vision_config=transformers.Gemma4VisionConfig(
            hidden_size=8,
            intermediate_size=12,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=4,
            patch_size=4,
        ),
        audio_config=None,
    )
    theirs = transformers.AutoModelForCausalLM.from_config(config)
    adapted = with_lora(theirs, tmp_path / "lora")
    names = [name for name, _ in adapted.named_modules() if name.endswith("lora_A")]
    assert len(names) == 2 * 7
    assert all(".language_model.layers." in name for name in names)


@needs_torch
def test_the_text_decoder_of_a_gemma_3_that_reads_images(tmp_path):
    hub = keras_hub.models
    sizes = {"hidden_dim": 8, "num_heads": 2, "num_layers": 1, "intermediate_dim": 12}
    encoder = hub.Gemma3VisionEncoder(
        image_size=16, patch_size=4, pool_size=2, output_dim=16, **sizes
    )
    backbone = hub.Gemma3Backbone(
        vocabulary_size=48,
        image_size=16,
        num_layers=2,
        num_query_heads=4,
        num_key_value_heads=2,
        hidden_dim=16,
        intermediate_dim=24,
        head_dim=6,
        vision_encoder=encoder,
        use_query_key_norm=True,
        use_post_ffw_norm=True,
        use_post_attention_norm=True,
    )
    task = hub.Gemma3CausalLM(backbone=backbone, preprocessor=None)
    task.export_to_transformers(str(tmp_path / "base"))
    keras_flix.enable_flix(task, FEATURES, targets="all-linear")
    keras_flix.export_lora(randomize(task), COMBINATION, tmp_path / "lora")
    no_images = {
        "images": np.zeros((3, 0, 16, 16, 3), "float32"),
        "vision_indices": np.zeros((3, 0), "int32"),
        "vision_mask": np.zeros((3, 7), "int32"),
    }
    base = load(tmp_path / "base", "AutoModelForImageTextToText")
    adapted = with_lora(base, tmp_path / "lora")
    ours = keras_outputs(task, **COMBINATION, **no_images)
    np.testing.assert_allclose(torch_outputs(adapted), ours, atol=1e-4)
