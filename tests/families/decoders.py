"""Families that generate text from left to right."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import keras_hub
import numpy as np
from families.encoders import (
    ATTENTION,
    FEED_FORWARD as FFW,
    VOCABULARY,
    embedder,
)
from families.family import Family, builder, has_backbone

LENGTH = 7
SIZES = {
    "vocabulary_size": VOCABULARY,
    "num_layers": 2,
    "hidden_dim": 16,
    "intermediate_dim": 24,
}
GROUPED = {**SIZES, "num_query_heads": 4, "num_key_value_heads": 2}
"""Two query heads share a key and a value."""
EXPERTS = {"num_experts": 3, "top_k": 2}

PROJ = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})
DENSE = frozenset({"query_dense", "key_dense", "value_dense", "output_dense"})
GEMMA_FFW = frozenset({"ffw_gating", "ffw_gating_2", "ffw_linear"})
GATED_FFW = FFW | {"feedforward_gate_dense"}
PROJ_FFW = frozenset({"gate_proj", "up_proj", "down_proj"})
GATED_EXPERTS = frozenset(
    {"expert_feedforward_gate_dense", "expert_feedforward_output_dense"}
)
LINEAR_ATTENTION = frozenset({"in_proj_qkv", "in_proj_z", "out_proj"})


def texts(size: int, **more: Callable[[int], Any]) -> dict[str, Any]:
    """A batch of token ids of different lengths."""
    generator = np.random.default_rng(0)
    token_ids = generator.integers(5, VOCABULARY, (size, LENGTH))
    mask = np.arange(LENGTH) < LENGTH - np.arange(size)[:, None] % 4
    return {
        "token_ids": np.where(mask, token_ids, 0).astype("int32"),
        "padding_mask": mask.astype("int32"),
        **{name: make(size) for name, make in more.items()},
    }


def positions(size: int) -> np.ndarray:
    return np.tile(np.arange(LENGTH, dtype="int32"), (size, 1))


def images(size: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(size, 8, 8, 3)).astype("float32")


def recurrent_prompts(size: int) -> dict[str, Any]:
    """A prompt but for its last token, and that with room for new ones."""
    batch = texts(size)
    answers = np.zeros((size, 5), "int32")
    answers[:, 0] = batch["token_ids"][:, 1]
    return {
        "token_ids": batch["token_ids"],
        "input_padding_mask": batch["padding_mask"],
        "padding_mask": (answers != 0).astype("int32"),
        "predict_token_ids": answers,
    }


def causal_lm(name: str) -> dict[str, Callable[[Any], keras.Model]]:
    cls = getattr(keras_hub.models, f"{name}CausalLM")
    return {"causal_lm": lambda b: cls(backbone=b, preprocessor=None)}


def decoder(
    name: str,
    sizes: dict[str, Any],
    *,
    default: frozenset[str] = ATTENTION,
    all_linear: frozenset[str] = frozenset(),
    experts: frozenset[str] = frozenset(),
    inputs: Callable[[int], Any] = texts,
    embeds: bool = False,
    **options: Any,
) -> Family:
    """A family of a backbone and its causal language model."""
    return Family(
        name,
        builder(name, **sizes),
        inputs,
        {**causal_lm(name), **(embedder(name) if embeds else {})},
        default=default,
        all_linear=all_linear,
        experts=experts,
        **options,
    )


# Layer 0 is dense, layer 1 has experts.
SPARSE = {**GROUPED, **EXPERTS, "decoder_sparse_step": 2, "moe_intermediate_dim": 8}
QWEN3_5 = {
    **GROUPED,
    "head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 6,
    "linear_value_head_dim": 6,
}
QWEN3_5_MOE = {
    **{k: v for k, v in QWEN3_5.items() if k != "intermediate_dim"},
    **EXPERTS,
    "moe_intermediate_dim": 8,
    "shared_expert_intermediate_size": 8,
}
SMOLLM3 = {
    **SIZES,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "rope_layer_enabled_list": [True, False],
    "layer_types": ["full_attention"] * 2,
    "mlp_bias": False,
    "layer_norm_epsilon": 1e-5,
    "max_position_embeddings": 16,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 1.0,
}
# The third layer takes the second one's keys and values.
GEMMA3N = {
    "text_vocab_size": VOCABULARY,
    "text_hidden_size": 16,
    "num_hidden_layers": 3,
    "pad_token_id": 0,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "intermediate_size": [24] * 3,
    "hidden_activation": "gelu_approximate",
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    "sliding_window": 3,
    "rope_theta": 10000.0,
    "max_position_embeddings": 16,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "altup_num_inputs": 2,
    "laurel_rank": 4,
    "num_kv_shared_layers": 1,
}
GEMMA4 = {
    **GROUPED,
    "num_layers": 3,
    "head_dim": 6,
    "image_size": 16,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    "sliding_window_size": 3,
    "num_kv_shared_layers": 1,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "enable_moe_block": True,
    "num_experts": 3,
    "num_experts_per_token": 2,
    "expert_intermediate_dim": 8,
}
DIFFUSION_GEMMA = {
    **GROUPED,
    "head_dim": 6,
    "image_size": 16,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window_size": 3,
    "enable_moe_block": True,
    "num_experts": 3,
    "num_experts_per_token": 2,
    "expert_intermediate_dim": 8,
}

FAMILIES = [
    decoder("Gemma", {**GROUPED, "head_dim": 6}, all_linear=GEMMA_FFW),
    decoder(
        "Gemma3",
        {
            **GROUPED,
            "head_dim": 6,
            "image_size": 16,
            "use_sliding_window_attention": True,
            "sliding_window_size": 3,
        },
        all_linear=GEMMA_FFW,
        embeds=True,
    ),
    decoder(
        "Gemma3n",
        GEMMA3N,
        default=PROJ,
        all_linear=PROJ_FFW
        | {"linear_left", "linear_right"}
        | {"per_layer_input_gate", "per_layer_projection", "per_layer_model_projection"}
        | {"altup_projection_1", "altup_unembed_projection_1"},
    ),
    # It multiplies by its feed-forward kernels without calling the layers.
    decoder(
        "Gemma4",
        GEMMA4,
        all_linear=GEMMA_FFW
        | {"per_layer_input_gate", "per_layer_up_proj", "per_layer_model_projection"},
        experts=PROJ_FFW,
        inputs=functools.partial(texts, position_ids=positions),
    ),
    # Of the text decoder only: the image encoder has attention too.
    decoder(
        "PaliGemma",
        {
            **GROUPED,
            "head_dim": 6,
            "image_size": 8,
            "vit_patch_size": 4,
            "vit_num_heads": 2,
            "vit_hidden_dim": 8,
            "vit_num_layers": 1,
            "vit_intermediate_dim": 12,
        },
        all_linear=GEMMA_FFW,
        inputs=lambda size: {
            **texts(size, images=images),
            "response_mask": np.zeros((size, LENGTH), "int32"),
        },
    ),
    decoder("Llama", GROUPED, all_linear=GATED_FFW),
    decoder("Llama3", GROUPED, all_linear=GATED_FFW),
    decoder("Mistral", {**GROUPED, "sliding_window": 3}, all_linear=GATED_FFW),
    # The feed-forward layers are experts, whose kernels are no layers.
    decoder(
        "Mixtral",
        {**GROUPED, **EXPERTS},
        experts=GATED_EXPERTS | {"expert_feedforward_intermediate_dense"},
    ),
    decoder("Phi3", GROUPED, all_linear=GATED_FFW),
    decoder("Qwen", GROUPED, all_linear=GATED_FFW),
    decoder("Qwen3", {**GROUPED, "head_dim": 6}, all_linear=GATED_FFW, embeds=True),
    # The expert that all tokens share is made of layers.
    decoder(
        "QwenMoe",
        {**SPARSE, "decoder_sparse_step": 1, "shared_expert_intermediate_dim": 8},
        all_linear=GATED_FFW,
        experts=GATED_EXPERTS,
    ),
    decoder(
        "Qwen3Moe",
        {**SPARSE, "head_dim": 6},
        all_linear=GATED_FFW,
        experts=GATED_EXPERTS,
    ),
    decoder(
        "Qwen3_5",
        QWEN3_5,
        default=ATTENTION | LINEAR_ATTENTION,
        all_linear=GATED_FFW | {"in_proj_a", "in_proj_b"},
    ),
    decoder(
        "Qwen3_5Moe",
        QWEN3_5_MOE,
        default=ATTENTION | LINEAR_ATTENTION,
        all_linear=GATED_FFW | {"in_proj_a", "in_proj_b"},
        experts=GATED_EXPERTS,
    ),
    decoder(
        "GptOss",
        {**GROUPED, **EXPERTS, "sliding_window": 3},
        experts=frozenset({"gate_up_proj", "down_proj"}),
    ),
    # All its `o_proj` have the same path.
    decoder("SmolLM3", SMOLLM3, default=PROJ, all_linear=PROJ_FFW),
    decoder(
        "GPT2",
        {**SIZES, "num_heads": 2, "max_sequence_length": 16, "dropout": 0.0},
        all_linear=FFW,
    ),
    decoder(
        "GPTNeoX",
        {**SIZES, "num_heads": 2, "max_sequence_length": 16},
        default=frozenset({"query_key_value", "attention_output"}),
        all_linear=FFW,
    ),
    decoder(
        "OPT",
        {**SIZES, "num_heads": 2, "max_sequence_length": 16, "dropout": 0.0},
        all_linear=FFW,
    ),
    decoder(
        "Bloom",
        {**SIZES, "num_heads": 2},
        default=DENSE,
        all_linear=frozenset({"mlp_intermediate_dense", "mlp_output_dense"}),
    ),
    decoder(
        "Falcon",
        {**SIZES, "num_attention_heads": 2},
        default=DENSE,
        all_linear=frozenset({"dense_h_to_4h", "dense_4h_to_h"}),
    ),
    # No attention, but projections to what takes its place.
    decoder(
        "RWKV7",
        {
            "vocabulary_size": VOCABULARY,
            "num_layers": 2,
            "hidden_size": 16,
            "head_size": 8,
            "intermediate_dim": 24,
            "gate_lora": 4,
            "mv_lora": 4,
            "aaa_lora": 4,
            "decay_lora": 4,
        },
        default=frozenset({"receptance", "key", "value", "output_layer"}),
        all_linear=frozenset({"dense_k", "dense_v"}),
        prompts=recurrent_prompts,
    ),
    # It denoises blocks of text, by Gemma 4's blocks. Of the layers that read its last
    # guess, a training step multiplies the outputs by zero: not in "all-linear".
    Family(
        "DiffusionGemma",
        builder("DiffusionGemma", **DIFFUSION_GEMMA),
        functools.partial(texts, position_ids=positions),
        default=ATTENTION,
        all_linear=GEMMA_FFW,
        experts=PROJ_FFW,
    ),
]
FAMILIES = [family for family in FAMILIES if has_backbone(family.name)]
