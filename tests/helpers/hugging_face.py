"""Tiny random models of transformers, and what KerasHub makes of them."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pytest
import safetensors.numpy
from helpers.gemma import to_numpy

torch = pytest.importorskip("torch", reason="transformers' models are PyTorch's")
transformers = pytest.importorskip("transformers", reason="not installed")
peft = pytest.importorskip("peft", reason="not installed")

VOCABULARY = 48
LENGTHS = np.array([7, 5, 6])
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
}
# Two query heads share a key and a value.
GROUPED = {**SIZES, "num_key_value_heads": 2}
# So that heads * head_dim is not the hidden size.
WIDE = {**GROUPED, "head_dim": 6}
# As all published ones have it: none for segments, and this epsilon.
ROBERTA = {**SIZES, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
MIXTURE = {
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
}
QWEN3_5 = {
    **WIDE,
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 6,
    "linear_conv_kernel_dim": 3,
    "layer_types": ["linear_attention", "full_attention"],
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [1, 1, 0],
    },
}
CONFIGS = {
    "Gemma": ("Gemma", WIDE),
    "Gemma2": (
        "Gemma2",
        {
            **WIDE,
            "query_pre_attn_scalar": 6,
            "sliding_window": 3,
            "attn_implementation": "eager",
        },
    ),
    "Gemma3": ("Gemma3Text", {**WIDE, "query_pre_attn_scalar": 6, "sliding_window": 3}),
    "Gemma4": (
        "Gemma4Text",
        {
            **GROUPED,
            # A quarter of a head is rotated, by pairs.
            "head_dim": 8,
            "global_head_dim": 8,
            "sliding_window": 3,
            "layer_types": ["sliding_attention", "full_attention"],
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCABULARY,
        },
    ),
    "Llama": ("Llama", GROUPED),
    "Llama3": ("Llama", {**GROUPED, "tie_word_embeddings": True}),
    "Mistral": ("Mistral", {**WIDE, "sliding_window": 3}),
    "Qwen": ("Qwen2", GROUPED),
    "Qwen3": ("Qwen3", WIDE),
    "Qwen3_5": ("Qwen3_5Text", QWEN3_5),
    "Mixtral": (
        "Mixtral",
        {**GROUPED, "num_local_experts": 3, "num_experts_per_tok": 2},
    ),
    "QwenMoe": (
        "Qwen2Moe",
        {**GROUPED, **MIXTURE, "shared_expert_intermediate_size": 8},
    ),
    "Qwen3Moe": ("Qwen3Moe", {**WIDE, **MIXTURE, "norm_topk_prob": True}),
    "Qwen3_5Moe": (
        "Qwen3_5MoeText",
        {**QWEN3_5, **MIXTURE, "shared_expert_intermediate_size": 8},
    ),
    "GptOss": (
        "GptOss",
        {
            # Blocks of 32 numbers share a scale.
            **{**WIDE, "hidden_size": 32, "intermediate_size": 32, "head_dim": 8},
            **{"num_local_experts": 3, "num_experts_per_tok": 2},
            "attn_implementation": "eager",
            # KerasHub reads no scale of positions, and has windows in other layers.
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "sliding_window": 64,
        },
    ),
    # The second layer rotates nothing.
    "SmolLM3": ("SmolLM3", {**GROUPED, "no_rope_layers": [1, 0], "pad_token_id": 0}),
    "GPT2": (
        "GPT2",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "bos_token_id": None,
            "eos_token_id": None,
        },
    ),
    # KerasHub's is that kind of GELU.
    "Bert": ("Bert", {**SIZES, "hidden_act": "gelu_pytorch_tanh"}),
    "Roberta": ("Roberta", ROBERTA),
    "XLMRoberta": ("XLMRoberta", ROBERTA),
    "DistilBert": (
        "DistilBert",
        {
            "vocab_size": VOCABULARY,
            "dim": 16,
            "hidden_dim": 24,
            "n_layers": 2,
            "n_heads": 4,
            "max_position_embeddings": 64,
        },
    ),
    "Bart": (
        "Bart",
        {
            "vocab_size": VOCABULARY,
            "d_model": 16,
            "bos_token_id": None,
            "eos_token_id": None,
            "forced_eos_token_id": None,
            "max_position_embeddings": 64,
            **{f"{part}_layers": 2 for part in ("encoder", "decoder")},
            **{f"{part}_attention_heads": 4 for part in ("encoder", "decoder")},
            **{f"{part}_ffn_dim": 24 for part in ("encoder", "decoder")},
        },
    ),
}
"""By KerasHub family, the name and the options of transformers' configuration."""

ENCODERS = ("Bert", "Roberta", "XLMRoberta", "DistilBert")

AUTO = {**dict.fromkeys(ENCODERS, "AutoModel"), "Bart": "AutoModelForSeq2SeqLM"}
"""Where it is no `AutoModelForCausalLM`, what loads transformers' model."""


def save_base(family: str, directory: Path, auto: str, **more) -> None:
    """Writes a random model, as one that `transformers.{auto}` loads."""
    name, options = CONFIGS[family]
    config = getattr(transformers, f"{name}Config")(**{**options, **more})
    torch.manual_seed(0)
    model = getattr(transformers, auto).from_config(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            # Gemma 4 does not scale queries: attention would be all too sharp.
            is_sharp = family == "Gemma4" and "q_norm" in key
            parameter.mul_(1 if is_sharp else 3).add_(torch.randn_like(parameter) * 0.2)
            # KerasHub loads Mistral's weights as float16.
            parameter.copy_(parameter.half().float())
            if family == "GptOss" and key.endswith("_proj"):
                # Numbers that MXFP4 has.
                codes = torch.randint(0, 6, parameter.shape)
                signs = torch.randint(0, 2, parameter.shape) * 2 - 1
                parameter.copy_(torch.tensor(FOUR_BITS)[codes] * signs / 4)
            # RoBERTa was trained without segments: zeros in what is published.
            parameter.mul_(not (family == "Roberta" and "token_type" in key))
    model.save_pretrained(directory)
    if family in ("Roberta", "DistilBert") and auto == "AutoModel":
        # As if a head had been saved with it, which KerasHub expects.
        _rename(directory, lambda name: f"{family.lower()}.{name}")
    if family == "Qwen3Moe":
        # As the published configurations call it.
        _configure(directory, lambda config: {**config, "num_experts": 3})
    if family == "Bart":
        # Written into the published configurations by older transformers.
        _configure(directory, lambda config: {**config, "num_hidden_layers": 2})


def _rename(directory: Path, new_name) -> None:
    path = directory / "model.safetensors"
    weights = safetensors.numpy.load_file(path)
    weights = {new_name(name): weight for name, weight in weights.items()}
    safetensors.numpy.save_file(weights, path, {"format": "pt"})


def _configure(directory: Path, change) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def load(directory: Path, auto: str):
    return getattr(transformers, auto).from_pretrained(directory).float().eval()


def load_keras(family: str, directory: Path) -> keras.Model:
    """KerasHub's backbone of a model of transformers, by KerasHub's own import."""
    name = {"Gemma2": "Gemma"}.get(family, family)
    cls = getattr(keras_hub.models, f"{name}Backbone")
    if family in ("Qwen3_5", "Qwen3_5Moe"):
        directory = _with_room_for_images(directory)
    if family == "GptOss":
        directory = _in_blocks_of_4_bits(directory)
    backbone = cls.from_preset(str(directory), dtype="float32")
    if type(backbone) is cls:
        return backbone
    # Llama 2 and 3 are one model type of transformers.
    config = backbone.get_config()
    other = cls(**{k: v for k, v in config.items() if k != "name"})
    other.set_weights(backbone.get_weights())
    return other


def _with_room_for_images(directory: Path) -> Path:
    """A copy of a model of texts as all published ones are saved."""
    copy = Path(tempfile.mkdtemp(dir=directory.parent)) / "model"
    shutil.copytree(directory, copy)
    _rename(copy, lambda name: name.replace("model.", "model.language_model.", 1))
    _configure(
        copy,
        lambda config: {
            "model_type": config["model_type"].removesuffix("_text"),
            "tie_word_embeddings": config["tie_word_embeddings"],
            "text_config": config,
        },
    )
    return copy


FOUR_BITS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], "float32")
"""What three bits mean in MXFP4, besides a sign."""


def _in_blocks_of_4_bits(directory: Path) -> Path:
    """A copy of a GPT-OSS with its experts as published ones have them: in MXFP4."""
    copy = Path(tempfile.mkdtemp(dir=directory.parent)) / "model"
    shutil.copytree(directory, copy)
    path = copy / "model.safetensors"
    weights = safetensors.numpy.load_file(path)
    for name in [name for name in weights if name.endswith("_proj")]:
        # (experts, outputs, blocks of inputs, 32), as quarters.
        kernel = weights.pop(name).transpose(0, 2, 1) * 4
        blocks = kernel.reshape(*kernel.shape[:2], -1, 32)
        codes = np.abs(blocks[..., None]).astype("float32") == FOUR_BITS
        assert codes.any(-1).all()
        codes = (codes.argmax(-1) + 8 * (blocks < 0)).astype("uint8")
        weights[f"{name}_blocks"] = codes[..., ::2] | codes[..., 1::2] << 4
        weights[f"{name}_scales"] = np.full(blocks.shape[:3], 127 - 2, "uint8")
    safetensors.numpy.save_file(weights, path, {"format": "pt"})
    return copy


def batch(**features) -> dict:
    generator = np.random.default_rng(0)
    tokens = generator.integers(5, VOCABULARY, (len(LENGTHS), LENGTHS.max()))
    mask = np.arange(LENGTHS.max()) < LENGTHS[:, None]
    return {
        "token_ids": np.where(mask, tokens, 0).astype("int32"),
        "padding_mask": mask.astype("int32"),
        **features,
    }


def keras_outputs(model, **features) -> np.ndarray:
    """Logits, or last hidden states, of a batch, without its padding."""
    x = batch(**features)
    if isinstance(model, keras_hub.models.Seq2SeqLM):
        ids, mask = x.pop("token_ids"), x.pop("padding_mask")
        x |= {"encoder_token_ids": ids, "encoder_padding_mask": mask}
        # Others than the encoder's, of the same lengths.
        x |= {"decoder_token_ids": ids[:, ::-1] * mask, "decoder_padding_mask": mask}
    if isinstance(getattr(model, "backbone", model), keras_hub.models.BertBackbone):
        x["segment_ids"] = np.zeros_like(x["token_ids"])
    if isinstance(getattr(model, "backbone", model), keras_hub.models.Gemma4Backbone):
        x["position_ids"] = np.tile(np.arange(LENGTHS.max()), (len(LENGTHS), 1))
    outputs = model(x)
    if isinstance(outputs, dict):
        outputs = outputs["sequence_output"]
    return _without_padding(to_numpy(outputs))


def torch_outputs(model) -> np.ndarray:
    x = batch()
    ids, mask = x["token_ids"], x["padding_mask"]
    inputs = {"input_ids": ids, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids[:, ::-1] * mask
        inputs["decoder_attention_mask"] = mask
    with torch.no_grad():
        outputs = model(**{k: torch.tensor(v) for k, v in inputs.items()})
    kind = "logits" if hasattr(outputs, "logits") else "last_hidden_state"
    return _without_padding(getattr(outputs, kind).numpy())


def _without_padding(outputs: np.ndarray) -> np.ndarray:
    mask = batch()["padding_mask"].astype(bool)
    return outputs[mask] if outputs.ndim == 3 else outputs


def with_lora(base, directory: Path):
    """A model of transformers with an exported LoRA, every tensor of it in use."""
    model = peft.PeftModel.from_pretrained(base, directory).eval()
    # By itself, it would add the base's embeddings where they have a LoRA.
    used = peft.get_peft_model_state_dict(model, save_embedding_layers=False)
    written = read_lora(directory)
    assert set(used) == set(written)
    for name, tensor in written.items():
        np.testing.assert_array_equal(used[name].numpy(), tensor)
    return model


def read_lora(directory: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(directory / "adapter_model.safetensors")


def read_config(directory: Path) -> dict:
    return json.loads((directory / "adapter_config.json").read_text())
