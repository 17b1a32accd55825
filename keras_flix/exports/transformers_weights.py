"""Plain models as transformers' files, where KerasHub itself exports none."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import safetensors.numpy

from keras_flix import _compat
from keras_flix.exports.lora_names import family_of, peft_names
from keras_flix.exports.lora_whole import as_float32, kernel_matrix
from keras_flix.exports.lora_writer import write_json
from keras_flix.exports.transformers_tokenizer import write_tokenizer

NORMS = {
    "self_attention_layernorm": "input_layernorm",
    "feedforward_layernorm": "post_attention_layernorm",
}


LONGEST_QWEN3 = 32768
"""Windows of so many positions are none. Smaller ones KerasHub heeds or not, by how it
computes attention."""


@dataclasses.dataclass(frozen=True)
class WrittenFamily:
    """A family whose weights and configuration are written here.

    Attributes:
        model_type: Transformers' word for it.
        model: How transformers' classes of it begin.
        norms: By path in a block, the module's name.
        options: The options of KerasHub's backbone that transformers does not have,
            with the value that leaves them out.
        length: How many positions models of the family are made for.
    """

    model_type: str
    model: str
    norms: Mapping[str, str]
    options: Mapping[str, Any]
    length: int


WRITTEN: dict[str, WrittenFamily] = {
    # KerasHub's blocks do not heed that option.
    "LlamaBackbone": WrittenFamily(
        "llama", "Llama", NORMS, {"rope_position_scaling_factor": 1.0}, 4096
    ),
    "Qwen3Backbone": WrittenFamily(
        "qwen3",
        "Qwen3",
        {
            **NORMS,
            "self_attention/query_dense_layernorm": "self_attn.q_norm",
            "self_attention/key_dense_layernorm": "self_attn.k_norm",
        },
        {"rope_scaling_factor": 1.0},
        LONGEST_QWEN3,
    ),
}
"""By the class of KerasHub's backbone."""


def write_model(model: keras.Model, directory: Path) -> None:
    """Writes the configuration, the weights and a task's tokenizer.

    Args:
        model: A plain backbone or `CausalLM` of one of `WRITTEN`.
        directory: An existing one.

    Raises:
        ValueError: If its tokenizer is none that can be written.
    """
    backbone, name = family_of(model)
    family = WRITTEN[name]
    config = _config(model, backbone, family)
    preprocessor = getattr(model, "preprocessor", None)
    if preprocessor is not None:
        config |= write_tokenizer(preprocessor.tokenizer, directory)
    write_json(directory / "config.json", config)
    safetensors.numpy.save_file(
        _weights(model, backbone, family),
        directory / "model.safetensors",
        {"format": "pt"},
    )


def _config(model: Any, backbone: Any, family: WrittenFamily) -> dict[str, Any]:
    head_dim = getattr(backbone, "head_dim", None)
    config = {
        "model_type": family.model_type,
        "architectures": [
            f"{family.model}{'Model' if model is backbone else 'ForCausalLM'}"
        ],
        "vocab_size": backbone.vocabulary_size,
        "hidden_size": backbone.hidden_dim,
        "intermediate_size": backbone.intermediate_dim,
        "num_hidden_layers": backbone.num_layers,
        "num_attention_heads": backbone.num_query_heads,
        "num_key_value_heads": backbone.num_key_value_heads,
        "head_dim": head_dim or backbone.hidden_dim // backbone.num_query_heads,
        "rms_norm_eps": backbone.layer_norm_epsilon,
        "rope_theta": float(backbone.rope_max_wavelength),
        "max_position_embeddings": family.length,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": backbone.dropout,
        "tie_word_embeddings": backbone.tie_word_embeddings,
        "torch_dtype": backbone.variable_dtype,
        # As the defaults of transformers would name tokens of other vocabularies.
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
    }
    if getattr(backbone, "rope_frequency_adjustment_factor", None) is not None:
        length = backbone.rope_pretraining_sequence_length
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": backbone.rope_frequency_adjustment_factor,
            "low_freq_factor": backbone.rope_low_freq_factor,
            "high_freq_factor": backbone.rope_high_freq_factor,
            "original_max_position_embeddings": length,
        }
        # Those that slow down are made for longer texts.
        config["max_position_embeddings"] = 131072
    return config


def _weights(model: Any, backbone: Any, family: WrittenFamily) -> dict[str, np.ndarray]:
    layers = {layer.path: layer for layer in _compat.flatten_layers(backbone)}
    names = peft_names(model)
    weights = {}
    for path, module in names.modules.items():
        # The linear layers of these families have no biases.
        weights[f"{module}.weight"] = kernel_matrix(layers[path]).T
    embedding = layers["token_embedding"]
    weights[f"{names.embedding}.weight"] = as_float32(embedding.embeddings)
    if names.logits is not None and not embedding.tie_weights:
        weights[f"{names.logits}.weight"] = as_float32(embedding.reverse_embeddings).T
    prefix = "" if model is backbone else "model."
    blocks = {
        f"transformer_layer_{i}/{path}": f"layers.{i}.{name}"
        for i in range(backbone.num_layers)
        for path, name in family.norms.items()
    }
    for path, name in {**blocks, "sequence_output_layernorm": "norm"}.items():
        weights[f"{prefix}{name}.weight"] = as_float32(layers[path].scale)
    # As it was; numpy's own float32 in between.
    dtype = _compat.to_host(embedding.embeddings).dtype
    return {k: np.ascontiguousarray(w.astype(dtype)) for k, w in weights.items()}
