"""Merged models for transformers: right, or refused."""

from __future__ import annotations

import importlib.util
import json
import re

import keras
import keras_hub
import numpy as np
import pytest
import safetensors.numpy
from helpers.gemma import FEATURES, randomize, to_numpy, train_tokenizer
from helpers.hugging_face import (
    VOCABULARY,
    keras_outputs,
    load,
    torch_outputs,
    transformers,
)

import keras_flix
from keras_flix import export_merged, merge_features
from keras_flix.exports import transformers_model

if keras.config.backend() != "torch":
    reason = "what is exported does not depend on the backend: tested once, with torch"
    pytest.skip(reason, allow_module_level=True)

COMBINATION = {"task": "parse", "language": "sw"}
CAUSAL_LM = "AutoModelForCausalLM"
SIZES = {
    "vocabulary_size": VOCABULARY,
    "num_layers": 2,
    "hidden_dim": 16,
    "intermediate_dim": 24,
}
GROUPED = {**SIZES, "num_query_heads": 4, "num_key_value_heads": 2}
GEMMA = {**GROUPED, "num_key_value_heads": 1, "head_dim": 4}
GEMMA_3 = {
    **GROUPED,
    "head_dim": 6,
    "image_size": 16,
    "use_query_key_norm": True,
    "use_post_ffw_norm": True,
    "use_post_attention_norm": True,
}
DAILY = ("Gemma", "Llama", "Qwen3")
"""Families in the daily loop."""
# As many layers as it takes for one to see all positions.
SLIDING = {"use_sliding_window_attention": True, "sliding_window_size": 3}
OPTIONS = {
    "Gemma": GEMMA,
    "Gemma3": {**GEMMA_3, **SLIDING, "num_layers": 6},
    "Gemma4": {
        **{**GROUPED, "head_dim": 8, "image_size": 16},
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window_size": 3,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
    },
    "Llama": {**GROUPED, "layer_norm_epsilon": 0.1, "rope_max_wavelength": 100},
    "Llama3": {**GROUPED, "layer_norm_epsilon": 0.1},
    "Mistral": {**GROUPED, "sliding_window": 3},
    "Qwen": {**GROUPED, "rope_max_wavelength": 100},
    "Qwen3": {
        **GROUPED,
        "head_dim": 6,
        "tie_word_embeddings": False,
        "rope_max_wavelength": 100,
        # None below that length.
        "sliding_window_size": 32768,
    },
    "Qwen3_5": {
        **{**GROUPED, "head_dim": 8, "partial_rotary_factor": 0.5},
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 4,
        "linear_value_head_dim": 6,
        "linear_conv_kernel_dim": 3,
    },
    "GPT2": {**SIZES, "num_heads": 4, "max_sequence_length": 16},
}


def make(family, head=True, preprocessor=None, **options):
    """A task or backbone, all of whose weights are random."""
    keras.utils.set_random_seed(0)
    cls = getattr(keras_hub.models, f"{family}Backbone")
    backbone = cls(**{**OPTIONS[family], **options})
    generator = np.random.default_rng(0)
    for variable in backbone.weights:
        spread = generator.normal(size=variable.shape) * 0.2
        variable.assign(to_numpy(variable) * 2 + spread)
    if not head:
        return backbone
    cls = getattr(keras_hub.models, f"{family}CausalLM")
    return cls(backbone=backbone, preprocessor=preprocessor)


def adapt(model, **options):
    return randomize(keras_flix.enable_flix(model, FEATURES, **options))


@pytest.mark.parametrize(
    "family, head",
    # Alone, that backbone is exported as a model that reads images.
    [
        pytest.param(f, h, marks=[pytest.mark.slow] * (f not in DAILY))
        for f in OPTIONS
        for h in (True, False)
        if h or f != "Qwen3_5"
    ],
)
def test_transformers_computes_the_same(family, head, tmp_path):
    model = adapt(make(family, head))
    export_merged(model, COMBINATION, tmp_path / "merged")
    theirs = load(tmp_path / "merged", CAUSAL_LM if head else "AutoModel")
    ours = keras_outputs(model, **COMBINATION)
    np.testing.assert_allclose(torch_outputs(theirs), ours, atol=1e-4)
    other = keras_outputs(model, task="qa", language="sw")
    assert np.abs(other - ours).max() > 0.1


def test_a_tokenizer_is_written_too(make_gemma, tmp_path):
    task = adapt(make_gemma(num_key_value_heads=1, head_dim=4))
    export_merged(task, COMBINATION, tmp_path / "merged")
    found = {path.name for path in (tmp_path / "merged").iterdir()}
    assert found == {
        "config.json",
        "model.safetensors",
        "tokenizer.model",
        "tokenizer_config.json",
    }


def stock_difference(model, directory):
    """How far KerasHub's own export of a plain model is off; infinite if unreadable."""
    model.export_to_transformers(str(directory))
    try:
        theirs = load(directory, CAUSAL_LM)
    except RuntimeError:
        return np.inf
    return np.abs(torch_outputs(theirs) - keras_outputs(model)).max()


WRONG = [
    ("Gemma", {"num_key_value_heads": 2}, "num_key_value_heads=1. Received: "),
    ("Gemma", {"head_dim": 6}, "num_query_heads * head_dim=16. Received: "),
    ("Gemma", {"use_post_ffw_norm": True, "use_post_attention_norm": True}, None),
    ("Gemma", {"final_logit_soft_cap": 1.0}, "final_logit_soft_cap=None. Received: "),
    ("Gemma", {"attention_logit_soft_cap": 1.0}, None),
    ("Gemma", {"layer_norm_epsilon": 0.1}, "layer_norm_epsilon=1e-06. Received: "),
    (
        "Gemma",
        {**SLIDING, "num_layers": 2},
        "use_sliding_window_attention=False. Received: ",
    ),
    ("Gemma3", {"use_post_ffw_norm": False}, "use_post_ffw_norm=True. Received: "),
    ("Gemma3", {"use_post_attention_norm": False}, None),
    ("Gemma3", {"query_head_dim_normalize": False}, None),
    ("Gemma3", {"final_logit_soft_cap": 1.0}, None),
    ("Gemma3", {"attention_logit_soft_cap": 1.0}, None),
    ("Gemma3", {"layer_norm_epsilon": 0.1}, None),
    ("Mistral", {"head_dim": 6}, "num_query_heads * head_dim=16. Received: "),
    ("Mistral", {"rope_scaling_factor": 2.0}, "rope_scaling_factor=1.0. Received: "),
    ("Qwen", {"rope_scaling_factor": 2.0}, "rope_scaling_factor=1.0. Received: "),
]


@pytest.mark.parametrize("family, options, text", WRONG)
def test_what_kerashub_exports_wrongly_is_refused(family, options, text, tmp_path):
    # The trap. Where it is gone, so may its line in `EXPORTED`.
    plain = make(family, **{"num_layers": 1, **options})
    assert stock_difference(plain, tmp_path / "stock") > 1e-3
    name = next(iter(options))
    with pytest.raises(ValueError) as error:
        export_merged(adapt(plain), COMBINATION, tmp_path / "merged")
    message = str(error.value)
    assert f"A {family}Backbone is exported rightly only with " in message
    assert (text or f"{name}=") in message
    assert "Use `export_lora`, which does not need the base, or" in message
    assert not (tmp_path / "merged").exists()


def test_windows_that_kerashub_heeds_or_not_are_refused(tmp_path):
    model = adapt(make("Qwen3", num_layers=1, sliding_window_size=3))
    with pytest.raises(ValueError, match="sliding_window_size=None. Received: "):
        export_merged(model, COMBINATION, tmp_path / "merged")


def test_without_norms_of_queries_kerashub_exports_nothing(tmp_path):
    plain = make("Gemma3", use_query_key_norm=False)
    with pytest.raises(AttributeError):
        plain.export_to_transformers(str(tmp_path / "stock"))
    with pytest.raises(ValueError, match="use_query_key_norm=True. Received: "):
        export_merged(adapt(plain), COMBINATION, tmp_path / "merged")


@pytest.mark.parametrize("family", ["Llama", "Qwen3"])
def test_tied_embeddings_have_no_head_of_their_own(family, tmp_path):
    model = adapt(make(family, tie_word_embeddings=True, num_layers=1))
    export_merged(model, COMBINATION, tmp_path / "merged", verify=True)
    weights = safetensors.numpy.load_file(tmp_path / "merged" / "model.safetensors")
    assert "lm_head.weight" not in weights


def test_slowed_down_positions_of_llama(tmp_path):
    options = {
        "rope_frequency_adjustment_factor": 8.0,
        "rope_low_freq_factor": 1.0,
        "rope_high_freq_factor": 4.0,
        "rope_pretraining_sequence_length": 8,
    }
    plain = make("Llama", num_layers=1, **options)
    export_merged(adapt(plain), COMBINATION, tmp_path / "merged", verify=True)


def qwen_preprocessor():
    """Words of a few letters, and tokens that no text may be split into."""
    special = ["<|im_end|>", "<|endoftext|>", "<|im_start|>"]
    letters = [*"abcdefgh", "Ġ", "ab", "abc", "Ġd", *special]
    tokenizer = keras_hub.models.Qwen3Tokenizer(
        vocabulary={token: i for i, token in enumerate(letters)},
        merges=["a b", "ab c", "Ġ d"],
        unsplittable_tokens=special,
    )
    return keras_hub.models.Qwen3CausalLMPreprocessor(tokenizer, sequence_length=8)


def llama_preprocessor():
    proto = train_tokenizer(
        model_type="bpe",
        vocab_size=320,
        **{"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1},
        **{"unk_piece": "<unk>", "bos_piece": "<s>", "eos_piece": "</s>"},
        **{"remove_extra_whitespaces": False, "normalization_rule_name": "identity"},
    )
    tokenizer = keras_hub.models.LlamaTokenizer(proto)
    return keras_hub.models.LlamaCausalLMPreprocessor(tokenizer, sequence_length=8)


@pytest.mark.parametrize(
    "family, preprocessor, texts",
    [
        ("Qwen3", qwen_preprocessor, ["abc dabh", "<|im_start|>abd<|im_end|> d"]),
        ("Llama", llama_preprocessor, ["the quick dog", "fox  jumps\nzé", "en sw"]),
    ],
)
def test_transformers_reads_texts_as_the_same_tokens(
    family, preprocessor, texts, tmp_path
):
    tokenizer = preprocessor().tokenizer
    options = {"vocabulary_size": tokenizer.vocabulary_size(), "num_layers": 1}
    plain = make(family, preprocessor=preprocessor(), **options)
    export_merged(adapt(plain), COMBINATION, tmp_path / "merged", verify=True)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "merged")
    for text in texts:
        ids = np.asarray(tokenizer(text)).tolist()
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids
        assert theirs.decode(ids) == text
        # What no text may be split into is not said.
        said = re.sub(r"<\|.*?\|>", "", text)
        assert theirs.decode(ids, skip_special_tokens=True) == said
    assert theirs.eos_token_id == tokenizer.end_token_id
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["eos_token_id"] == tokenizer.end_token_id


def test_other_tokenizers_are_refused(tmp_path):
    tokenizer = keras_hub.models.GemmaTokenizer(train_tokenizer())
    preprocessor = keras_hub.models.GemmaCausalLMPreprocessor(tokenizer)
    plain = make("Llama", preprocessor=preprocessor, num_layers=1)
    with pytest.raises(ValueError, match="Qwen3Tokenizer. Received: a GemmaTokenizer"):
        export_merged(adapt(plain), COMBINATION, tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


def test_tied_embeddings_of_llama_are_kept(tmp_path):
    plain = make("Llama3", tie_word_embeddings=True)
    # The trap: a copy by its config is another model.
    assert "tie_word_embeddings" not in plain.backbone.get_config()
    merged = keras_flix.merge_features(adapt(plain), COMBINATION)
    assert merged.backbone.tie_word_embeddings
    export_merged(plain, COMBINATION, tmp_path / "merged", verify=True)
    assert (tmp_path / "merged" / "config.json").exists()


def test_images_of_other_lengths_are_refused(tmp_path):
    sizes = {"hidden_dim": 8, "num_heads": 2, "num_layers": 1, "intermediate_dim": 12}
    encoder = keras_hub.models.Gemma3VisionEncoder(
        image_size=16, patch_size=4, pool_size=2, output_dim=16, **sizes
    )
    model = adapt(make("Gemma3", vision_encoder=encoder))
    with pytest.raises(ValueError, match="per_image=256. Received: .*per_image=4"):
        export_merged(model, COMBINATION, tmp_path / "merged")


def test_the_check_finds_what_is_not_known(monkeypatch, tmp_path):
    monkeypatch.setitem(transformers_model.EXPORTED, "GemmaBackbone", {})
    model = adapt(make("Gemma", final_logit_soft_cap=1.0))
    with pytest.raises(ValueError) as error:
        export_merged(model, COMBINATION, tmp_path / "merged")
    text = "must compute what the merged model does, to 0.01 of the largest logit."
    assert text in str(error.value)
    assert "This is an error of the export" in str(error.value)
    assert list(tmp_path.iterdir()) == []
    # Not looked for, not found.
    export_merged(model, COMBINATION, tmp_path / "merged", verify=False)
    assert (tmp_path / "merged" / "config.json").exists()


def test_the_check_needs_transformers(monkeypatch, tmp_path):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *a: n != "torch" and real(n, *a) or None
    )
    model = adapt(make("GPT2"))
    with pytest.raises(ImportError, match="pip install 'keras-flix.torch,evidence.'"):
        export_merged(model, COMBINATION, tmp_path / "merged", verify=True)
    assert list(tmp_path.iterdir()) == []
    export_merged(model, COMBINATION, tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").exists()


@pytest.mark.parametrize("family", ["GPT2", "Qwen3"])
def test_half_precision(family, tmp_path):
    keras.config.set_dtype_policy("bfloat16")
    try:
        model = adapt(make(family))
    finally:
        keras.config.set_dtype_policy("float32")
    export_merged(model, COMBINATION, tmp_path / "merged")
    ours = keras_outputs(merge_features(model, COMBINATION))
    theirs = torch_outputs(load(tmp_path / "merged", CAUSAL_LM))
    assert np.abs(theirs - ours).max() < 0.05 * np.abs(ours).max()


def test_families_without_an_export_are_refused(tmp_path):
    phi = keras_hub.models.Phi3Backbone(**GROUPED)
    with pytest.raises(ValueError, match="'Qwen3Backbone'.*Received: a Phi3Backbone"):
        export_merged(adapt(phi), COMBINATION, tmp_path / "merged")
    qwen = adapt(make("Qwen3_5", head=False))
    with pytest.raises(ValueError, match="Qwen3_5 only as a CausalLM. Received: "):
        export_merged(qwen, COMBINATION, tmp_path / "merged")
    # Its head would be lost.
    gpt2 = make("GPT2", head=False)
    head = keras.Model(gpt2.input, keras.layers.Dense(3)(gpt2(gpt2.input)))
    adapted = adapt(head, targets=[".*query"])
    with pytest.raises(ValueError, match="Received: a Functional"):
        export_merged(adapted, COMBINATION, tmp_path / "merged")
    with pytest.raises(ValueError, match="no entry 'language'"):
        export_merged(adapt(make("GPT2")), {"task": "qa"}, tmp_path / "merged")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("head", [True, False])
def test_a_model_that_reads_images_is_exported(head, tmp_path):
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 8}
    encoder = keras_hub.models.Gemma3VisionEncoder(
        image_size=32, patch_size=2, pool_size=1, output_dim=16, **sizes
    )
    model = make("Gemma3", head, vision_encoder=encoder, image_size=32, num_layers=1)
    export_merged(adapt(model), COMBINATION, tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").is_file()
