"""`export_base`: the base model as a file for llama.cpp."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import keras
import keras_hub
import numpy as np

from keras_flix import _compat
from keras_flix._utils.atomic_files import check_folder, whole_file
from keras_flix._utils.optional_packages import needed
from keras_flix.exports.gguf_families import GgufFamily, gguf_family, head_sizes
from keras_flix.exports.gguf_tensors import Tensor, base_tensors
from keras_flix.exports.gguf_tokenizer import write_tokenizer
from keras_flix.exports.lora_names import class_name
from keras_flix.models.adapted.trained_base import token_variables, trained_base

KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""GGUF's words for dtypes; float32 for others."""


def export_base(
    model: keras.Model,
    path: str | os.PathLike[str],
    format: str = "gguf",
    *,
    context_length: int | None = None,
) -> None:
    """Writes the base of an adapted model, without its adapters, for llama.cpp.

    It is what `export_values(..., format="gguf")` goes with: llama.cpp's server loads
    it once, and adds the files of the values that a request names. The file holds the
    weights in the model's dtype (norms and biases in float32) and the tokenizer;
    `llama-quantize` makes smaller ones of it.

    Args:
        model: A `CausalLM` with its preprocessor: Gemma, Gemma 2, Gemma 3 (text),
            Llama, Llama 3, Mistral, Qwen, Qwen3 or GPT-2, adapted by `enable_flix` or
            not. It must not be quantized.
        path: The file, in an existing folder. One that is there is replaced.
        format: `"gguf"`.
        context_length: How many tokens the server lets a prompt and its answer
            have. `None` takes what the family's models are made for. It is no more
            than the window of Mistral's and Qwen3's attention, as llama.cpp has none
            for them, or the positions of GPT-2.

    Raises:
        ValueError: If the model is of another family, has options that llama.cpp does
            not know or a tokenizer that it does not have, is quantized, or trained
            besides its adapters. Nothing is written then.
        ImportError: If `gguf` is not installed (extra `gguf`).

    Warns:
        UserWarning: If llama.cpp reads some texts as other tokens than the model's
            tokenizer does. Prompts sent as token ids are always read alike.
    """
    if format != "gguf":
        raise ValueError(
            f"`format` must be 'gguf'. Received: format={format!r}. For transformers, "
            "use `export_merged`, or KerasHub's `export_to_transformers`."
        )
    if isinstance(model, keras_hub.models.Backbone):
        raise ValueError(
            "`export_base` writes a model with its head and its tokenizer, so the "
            f"model must be a CausalLM. Received: a {class_name(model)}. Pass the "
            "task that the backbone is of."
        )
    backbone, family = gguf_family(model)
    length = _context_length(backbone, family, context_length)
    path = Path(path)
    check_folder(path)
    gguf = needed("gguf", "`export_base`", "gguf")
    if _compat.is_split(model.variables):
        raise ValueError(
            "`export_base` reads a whole model in one process. Received: a model whose "
            "weights are split across processes. Load it in one process."
        )
    besides = [*trained_base(model), *token_variables(model)]
    if besides:
        raise ValueError(
            "`export_base` writes the base alone. Received: a model in which "
            f"{besides[:3]} trained besides the adapters. Pass "
            "`merge_features(model, ...)`, which holds what trained."
        )
    dtype = keras.backend.standardize_dtype(backbone.variable_dtype)
    tensors = list(base_tensors(model, backbone, family, length))
    with whole_file(path) as temporary:
        writer = gguf.GGUFWriter(temporary, family.architecture)
        try:
            writer.add_type("model")
            writer.add_context_length(length)
            _write_options(writer, backbone)
            # Of Gemma, not what KerasHub calls it, which counts both halves.
            shapes = {tensor.name: tensor.shape for tensor in tensors}
            writer.add_feed_forward_length(shapes["blk.0.ffn_up.weight"][0])
            write_tokenizer(writer, model.preprocessor, backbone.vocabulary_size)
            _write(gguf, writer, tensors, KINDS.get(dtype, "F32"))
        finally:
            writer.close()


def _context_length(backbone: Any, family: GgufFamily, asked: int | None) -> int:
    if asked is not None and not (isinstance(asked, int) and asked > 0):
        raise ValueError(
            "`context_length` must be a positive number of tokens. Received: "
            f"context_length={asked!r}. Pass such as 4096."
        )
    limits = [family.length if asked is None else asked]
    if family.architecture == "gpt2":
        limits.append(backbone.max_sequence_length)
    # Within one window, attention with a window is attention without.
    for name in ("sliding_window", "sliding_window_size"):
        window = getattr(backbone, name, None)
        if family.architecture in ("llama", "qwen3") and window:
            limits.append(window)
    return min(limits)


def _write_options(writer: Any, backbone: Any) -> None:
    """All that llama.cpp asks of the architecture."""
    heads, heads_kv, size = head_sizes(backbone)
    writer.add_vocab_size(backbone.vocabulary_size)
    writer.add_embedding_length(backbone.hidden_dim)
    writer.add_block_count(backbone.num_layers)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads_kv)
    if isinstance(backbone, keras_hub.models.GPT2Backbone):
        writer.add_layer_norm_eps(backbone.layer_norm.epsilon)
        return
    writer.add_layer_norm_rms_eps(backbone.layer_norm_epsilon)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    is_gemma_3 = isinstance(backbone, keras_hub.models.Gemma3Backbone)
    # Gemma's own are constants of KerasHub, too.
    default = 1e6 if is_gemma_3 else 1e4
    writer.add_rope_freq_base(float(getattr(backbone, "rope_max_wavelength", default)))
    for name in ("rope_scaling_factor", "global_rope_scaling_factor"):
        factor = float(getattr(backbone, name, 1.0))
        if factor != 1.0:
            writer.add_rope_scaling_type(_linear())
            writer.add_rope_scaling_factor(factor)
    if getattr(backbone, "use_sliding_window_attention", False):
        writer.add_sliding_window(backbone.sliding_window_size)
    if getattr(backbone, "attention_logit_soft_cap", None) is not None:
        writer.add_attn_logit_softcapping(float(backbone.attention_logit_soft_cap))
    if getattr(backbone, "final_logit_soft_cap", None) is not None:
        writer.add_final_logit_softcapping(float(backbone.final_logit_soft_cap))


def _linear() -> Any:
    return needed("gguf", "`export_base`", "gguf").RopeScalingType.LINEAR


def _write(gguf: Any, writer: Any, tensors: list[Tensor], kind: str) -> None:
    kinds = [
        # What llama.cpp adds or multiplies by is float32.
        gguf.GGMLQuantizationType[kind if len(tensor.shape) > 1 else "F32"]
        for tensor in tensors
    ]
    for tensor, own in zip(tensors, kinds):
        width = 4 if own == gguf.GGMLQuantizationType.F32 else 2
        size = width * int(np.prod(tensor.shape))
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype("float32"), size, raw_dtype=own
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, own in zip(tensors, kinds):
        # One at a time is on the host.
        value = np.ascontiguousarray(tensor.read(), "float32")
        writer.write_tensor_data(gguf.quants.quantize(value, own))
