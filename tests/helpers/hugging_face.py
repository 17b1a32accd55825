"""Tiny random models of transformers, and what KerasHub makes of them."""

from __future__ import annotations

import json
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
}
"""By KerasHub family, the name and the options of transformers' configuration."""


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
    model.save_pretrained(directory)


def load(directory: Path, auto: str):
    return getattr(transformers, auto).from_pretrained(directory).float().eval()


def load_keras(family: str, directory: Path) -> keras.Model:
    """KerasHub's backbone of a model of transformers, by KerasHub's own import."""
    name = {"Gemma2": "Gemma"}.get(family, family)
    cls = getattr(keras_hub.models, f"{name}Backbone")
    backbone = cls.from_preset(str(directory), dtype="float32")
    if type(backbone) is cls:
        return backbone
    # Llama 2 and 3 are one model type of transformers.
    config = backbone.get_config()
    other = cls(**{k: v for k, v in config.items() if k != "name"})
    other.set_weights(backbone.get_weights())
    return other


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
    with torch.no_grad():
        outputs = model(
            input_ids=torch.tensor(x["token_ids"]),
            attention_mask=torch.tensor(x["padding_mask"]),
        )
    kind = "logits" if hasattr(outputs, "logits") else "last_hidden_state"
    return _without_padding(getattr(outputs, kind).numpy())


def _without_padding(outputs: np.ndarray) -> np.ndarray:
    mask = batch()["padding_mask"].astype(bool)
    return outputs[mask] if outputs.ndim == 3 else outputs


def with_lora(base, directory: Path):
    """A model of transformers with an exported LoRA, every tensor of it in use."""
    model = peft.PeftModel.from_pretrained(base, directory).eval()
    used = peft.get_peft_model_state_dict(model)
    written = read_lora(directory)
    assert set(used) == set(written)
    for name, tensor in written.items():
        np.testing.assert_array_equal(used[name].numpy(), tensor)
    return model


def read_lora(directory: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(directory / "adapter_model.safetensors")


def read_config(directory: Path) -> dict:
    return json.loads((directory / "adapter_config.json").read_text())
