"""The base of the evidence for transformers: a KerasHub Gemma as a PyTorch one.

PyTorch and transformers are imported on use.
"""

from __future__ import annotations

import importlib
import pathlib
from collections.abc import Mapping
from typing import Any

import keras_hub
import numpy as np
from keras import ops

GEMMA_1 = {
    "use_post_ffw_norm": False,
    "use_post_attention_norm": False,
    "use_sliding_window_attention": False,
    "final_logit_soft_cap": None,
    "attention_logit_soft_cap": None,
}
"""The options of KerasHub's backbone that make it a Gemma of the first generation."""


def export_base(
    model: keras_hub.models.GemmaCausalLM,
    directory: str | pathlib.Path,
    tolerance: float = 1e-4,
) -> pathlib.Path:
    """Writes a KerasHub Gemma as one of transformers, and checks its logits.

    KerasHub's own `export_to_transformers` is not used: it keeps the first key and
    value head only, and is right about queries only where `heads * head_dim` is the
    model's width.

    Args:
        model: A Gemma of the first generation, not adapted.
        directory: Where `config.json` and the weights go, in float32.
        tolerance: How far logits may differ.

    Returns:
        The directory.

    Raises:
        ValueError: If the model is another one, or its logits are not kept.
    """
    transformers = optional("transformers")
    backbone = model.backbone
    if not isinstance(backbone, keras_hub.models.GemmaBackbone):
        raise ValueError(
            "The base of the PEFT arms must be a KerasHub Gemma. Received: "
            f"model.backbone of type {type(backbone).__name__}. Pass a GemmaCausalLM."
        )
    options = backbone.get_config()
    others = {name: options[name] for name in GEMMA_1 if options[name] != GEMMA_1[name]}
    if others:
        raise ValueError(
            "The base of the PEFT arms must be a Gemma of the first generation. "
            f"Received: {', '.join(f'{k}={v!r}' for k, v in others.items())}. "
            "Leave these options at their defaults."
        )
    config = transformers.GemmaConfig(
        vocab_size=backbone.vocabulary_size,
        hidden_size=backbone.hidden_dim,
        # Both halves of the gated layer count in KerasHub.
        intermediate_size=backbone.intermediate_dim // 2,
        num_hidden_layers=backbone.num_layers,
        num_attention_heads=backbone.num_query_heads,
        num_key_value_heads=backbone.num_key_value_heads,
        head_dim=backbone.head_dim,
        rms_norm_eps=backbone.layer_norm_epsilon,
        hidden_act="gelu_pytorch_tanh",
        tie_word_embeddings=True,
    )
    exported = transformers.GemmaForCausalLM(config)
    exported.load_state_dict(_weights(backbone), strict=True)
    difference = logits_difference(model, exported)
    if not difference <= tolerance:
        raise ValueError(
            "The exported Gemma must compute the logits of the KerasHub one to "
            f"{tolerance:g}. Received: logits that differ by {difference:.2g}. Pass a "
            "model in float32 that is built by KerasHub alone."
        )
    exported.save_pretrained(directory)
    return pathlib.Path(directory)


def _weights(backbone: keras_hub.models.GemmaBackbone) -> dict[str, Any]:
    """The state of a `GemmaForCausalLM`: kernels are `(outputs, inputs)` there."""
    torch = optional("torch")
    width = backbone.hidden_dim

    def dense(kernel: Any) -> np.ndarray:
        return _numpy(kernel).T

    def heads(kernel: Any) -> np.ndarray:
        return _numpy(kernel).transpose(0, 2, 1).reshape(-1, width)

    embeddings = _numpy(backbone.token_embedding.embeddings)
    state = {
        "model.embed_tokens.weight": embeddings,
        "lm_head.weight": embeddings,
        "model.norm.weight": _numpy(backbone.layer_norm.scale),
    }
    for i, block in enumerate(backbone.transformer_layers):
        attention = block.attention
        layer = {
            "input_layernorm": _numpy(block.pre_attention_norm.scale),
            "self_attn.q_proj": heads(attention.query_dense.kernel),
            "self_attn.k_proj": heads(attention.key_dense.kernel),
            "self_attn.v_proj": heads(attention.value_dense.kernel),
            "self_attn.o_proj": _numpy(attention.output_dense.kernel)
            .reshape(-1, width)
            .T,
            "post_attention_layernorm": _numpy(block.pre_ffw_norm.scale),
            "mlp.gate_proj": dense(block.gating_ffw.kernel),
            "mlp.up_proj": dense(block.gating_ffw_2.kernel),
            "mlp.down_proj": dense(block.ffw_linear.kernel),
        }
        for name, value in layer.items():
            state[f"model.layers.{i}.{name}.weight"] = value
    # Copies: arrays of other backends may be read-only.
    return {name: torch.tensor(value) for name, value in state.items()}


def load_base(directory: str | pathlib.Path) -> Any:
    """The `GemmaForCausalLM` that `export_base` wrote, in float32."""
    transformers = optional("transformers")
    return transformers.GemmaForCausalLM.from_pretrained(directory).float().eval()


def logits_difference(
    model: keras_hub.models.GemmaCausalLM,
    torch_model: Any,
    x: Mapping[str, np.ndarray] | None = None,
) -> float:
    """How far the logits of two models are apart at most, padding left out.

    Args:
        model: A KerasHub Gemma.
        torch_model: One of transformers.
        x: `{"token_ids", "padding_mask"}`, both `(examples, length)`. `None` takes
            random tokens, some of the examples padded.
    """
    torch = optional("torch")
    if x is None:
        shape = (4, 12)
        random = np.random.default_rng(0)
        tokens = random.integers(model.backbone.vocabulary_size, size=shape)
        lengths = np.array([12, 12, 9, 3])
        mask = np.arange(shape[1]) < lengths[:, None]
        x = {"token_ids": tokens.astype("int32"), "padding_mask": mask.astype("int32")}
    with torch.no_grad():
        ours = _numpy(model(dict(x)))
        theirs = torch_model(**integers(x), use_cache=False).logits.numpy()
    return float(np.abs(ours - theirs)[np.asarray(x["padding_mask"], bool)].max())


def logits_agree(
    model: keras_hub.models.GemmaCausalLM,
    torch_model: Any,
    x: Mapping[str, np.ndarray] | None = None,
    tolerance: float = 1e-4,
) -> bool:
    """Whether `logits_difference` is within a tolerance."""
    return logits_difference(model, torch_model, x) <= tolerance


def optional(name: str) -> Any:
    """A package of the `evidence` extra.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            "The PEFT arms need torch, transformers and peft. Received: an environment "
            f"without {name!r} ({error}). Run: pip install '.[torch,evidence]'"
        ) from error


def integers(x: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Tokens and padding mask as the tensors that transformers takes."""
    torch = optional("torch")
    return {
        "input_ids": torch.tensor(np.asarray(x["token_ids"], "int64")),
        "attention_mask": torch.tensor(np.asarray(x["padding_mask"], "int64")),
    }


def _numpy(tensor: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(tensor), "float32")
