"""What KerasHub's families are in llama.cpp: names, options, and what has no match.

The names of the linear layers are those that `lora_families` has for transformers, in
llama.cpp's words. Rows of llama.cpp's `llama` queries and keys are in another order:
of each head, the numbers that turn together stand side by side there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import keras_hub
import numpy as np

from keras_flix.exports.lora_names import class_name, family_of

MODULES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
"""By transformers' name of a module in a block, llama.cpp's."""


@dataclasses.dataclass(frozen=True)
class GgufFamily:
    """One of llama.cpp's architectures, and what KerasHub calls its parts.

    Attributes:
        architecture: Its name.
        norms: By path in a block, the tensor's name; biases have the same one.
        last_norm: The path of the norm after all blocks.
        length: How many positions models of the family are made for, if they
            do not say.
        norm_offset: What llama.cpp has added to the scales of norms.
        interleaved: Whether rows of queries and keys are in llama.cpp's own order.
        options: The options of KerasHub's backbone that it needs.
        needed: Those that it needs set to any value but `None`.
        large: The number of blocks with which llama.cpp scales queries for heads of
            `hidden_dim / num_query_heads`; 0 if there is none.
    """

    architecture: str
    norms: Mapping[str, str]
    last_norm: str
    length: int
    norm_offset: float = 0.0
    interleaved: bool = False
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    needed: tuple[str, ...] = ()
    large: int = 0


NO_CAPS = {"attention_logit_soft_cap": None, "final_logit_soft_cap": None}
NORMS = {
    "self_attention_layernorm": "attn_norm",
    "feedforward_layernorm": "ffn_norm",
}
GEMMA_NORMS = {"pre_attention_norm": "attn_norm", "pre_ffw_norm": "ffn_norm"}
GEMMA_2_NORMS = {
    **GEMMA_NORMS,
    "post_attention_norm": "post_attention_norm",
    "post_ffw_norm": "post_ffw_norm",
}
LLAMA = GgufFamily(
    "llama",
    NORMS,
    "sequence_output_layernorm",
    length=4096,
    interleaved=True,
    # KerasHub's layers do not heed it.
    options={"rope_position_scaling_factor": 1.0},
)
QWEN = GgufFamily(
    "qwen2",
    NORMS,
    "sequence_output_layernorm",
    length=32768,
    options={"use_sliding_window_attention": False},
)
GEMMA = GgufFamily(
    "gemma",
    GEMMA_NORMS,
    "final_normalization",
    length=8192,
    norm_offset=1.0,
    options={
        "use_post_ffw_norm": False,
        "use_post_attention_norm": False,
        "use_sliding_window_attention": False,
        "layer_norm_epsilon": 1e-6,
        **NO_CAPS,
    },
)
GEMMA_2 = dataclasses.replace(
    GEMMA,
    architecture="gemma2",
    norms=GEMMA_2_NORMS,
    options={
        "use_post_ffw_norm": True,
        "use_post_attention_norm": True,
        "use_sliding_window_attention": True,
        "layer_norm_epsilon": 1e-6,
    },
    needed=tuple(NO_CAPS),
    large=46,
)
FAMILIES: dict[str, GgufFamily] = {
    "GemmaBackbone": GEMMA,
    "Gemma3Backbone": dataclasses.replace(
        GEMMA_2,
        architecture="gemma3",
        norms={
            **GEMMA_2_NORMS,
            "attention/query_norm": "attn_q_norm",
            "attention/key_norm": "attn_k_norm",
        },
        length=32768,
        options={
            "use_query_key_norm": True,
            "use_post_ffw_norm": True,
            "use_post_attention_norm": True,
            "use_sliding_window_attention": True,
            "use_bidirectional_attention": False,
            "local_rope_scaling_factor": 1.0,
            "layer_norm_epsilon": 1e-6,
            "is_embedding_model": False,
            "vision_encoder": None,
            **NO_CAPS,
        },
        needed=(),
        large=62,
    ),
    "LlamaBackbone": LLAMA,
    "Llama3Backbone": dataclasses.replace(LLAMA, length=8192),
    "MistralBackbone": dataclasses.replace(LLAMA, length=32768, options={}),
    "QwenBackbone": QWEN,
    "Qwen3Backbone": dataclasses.replace(
        QWEN,
        architecture="qwen3",
        norms={
            **NORMS,
            "self_attention/query_dense_layernorm": "attn_q_norm",
            "self_attention/key_dense_layernorm": "attn_k_norm",
        },
        options={},
    ),
    "GPT2Backbone": GgufFamily(
        "gpt2",
        {
            "self_attention_layer_norm": "attn_norm",
            "feedforward_layer_norm": "ffn_norm",
        },
        "layer_norm",
        length=1024,
    ),
}
"""By the class of KerasHub's backbone. Gemma 2 is a `GemmaBackbone`."""


def gguf_family(model: keras.Model) -> tuple[Any, GgufFamily]:
    """A model's backbone, and what it is in llama.cpp.

    Raises:
        ValueError: If llama.cpp, or this package, does not know the family, or computes
            something else with the model's options.
    """
    backbone, name = family_of(model)
    kinds = (keras_hub.models.CausalLM, keras_hub.models.Backbone)
    if name not in FAMILIES or not isinstance(model, kinds):
        raise ValueError(
            "For GGUF, the model must be a CausalLM or backbone of one of "
            f"{list(FAMILIES)}. Received: a {class_name(model)}. Use `export_lora`, or "
            "`merge_features` for a plain model."
        )
    family = FAMILIES[name]
    if name == "GemmaBackbone" and backbone.use_post_ffw_norm:
        family = GEMMA_2
    wrong = {
        option: f"{option}={value!r}"
        for option, value in family.options.items()
        if getattr(backbone, option) != value
    }
    for option in family.needed:
        if getattr(backbone, option) is None:
            wrong[option] = f"a number as {option}"
    if family.norm_offset:
        # Not the backbone's own option, which its blocks do not heed.
        by_head = backbone.transformer_layers[0].attention.query_head_dim_normalize
        width = backbone.hidden_dim // backbone.num_query_heads
        theirs = width if backbone.num_layers == family.large else backbone.head_dim
        if theirs != (backbone.head_dim if by_head else width):
            wrong["head_dim"] = f"head_dim={theirs}"
    if wrong:
        received = ", ".join(f"{k}={getattr(backbone, k)!r}" for k in wrong)
        raise ValueError(
            f"llama.cpp computes what a {name} does only with "
            f"{', '.join(wrong.values())}. Received: {received}. Use `export_lora` or "
            "`export_merged` with a server that runs transformers' models."
        )
    return backbone, family


def head_sizes(backbone: Any) -> tuple[int, int, int]:
    """The numbers of query heads and of key and value heads, and the size of a head."""
    if isinstance(backbone, keras_hub.models.GPT2Backbone):
        heads = backbone.num_heads
        return heads, heads, backbone.hidden_dim // heads
    heads = backbone.num_query_heads
    size = getattr(backbone, "head_dim", None) or backbone.hidden_dim // heads
    return heads, backbone.num_key_value_heads, size


def in_their_order(
    family: GgufFamily, backbone: Any, tensor: str, rows: np.ndarray
) -> np.ndarray:
    """The rows of a weight, or of a LoRA's `B`, as llama.cpp has them.

    Args:
        family: The model's.
        backbone: Its backbone.
        tensor: The tensor's name in a block.
        rows: Of shape `(d_out, ...)`.

    >>> class Two:
    ...     num_query_heads, num_key_value_heads, hidden_dim = 1, 1, 4
    >>> in_their_order(LLAMA, Two, "attn_q", np.arange(4))
    array([0, 2, 1, 3])
    """
    if not family.interleaved or tensor not in ("attn_q", "attn_k"):
        return rows
    heads = head_sizes(backbone)[0 if tensor == "attn_q" else 1]
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)
