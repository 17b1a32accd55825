"""What vLLM takes of a PEFT LoRA, by the sources of its version 0.32.

`config/lora.py` lists the ranks, `lora/peft_helper.py` and `lora/lora_model.py` what a
directory may hold, and `model_executor/models` the architectures that have LoRAs.
"""

from __future__ import annotations

from typing import Any

import keras
import keras_hub

from keras_flix.exports.lora_names import class_name, family_of

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM can make room for."""

FAMILIES = (
    "GemmaBackbone",
    "Gemma3Backbone",
    "Gemma4Backbone",
    "LlamaBackbone",
    "Llama3Backbone",
    "MistralBackbone",
    "QwenBackbone",
    "Qwen3Backbone",
    "Qwen3_5Backbone",
    "SmolLM3Backbone",
)
"""The backbones whose `CausalLM` has LoRAs there. GPT-2 has none."""

UNTRIED = (
    "MixtralBackbone",
    "QwenMoeBackbone",
    "Qwen3MoeBackbone",
    "Qwen3_5MoeBackbone",
    "GptOssBackbone",
)
"""Those whose LoRAs there were never compared with ours."""


def why_not_vllm(
    model: keras.Model, whole: Any, tokens: Any, embeddings: Any, experts: Any
) -> str | None:
    """Why vLLM cannot serve a model's LoRAs; `None` if it can.

    Args:
        model: An adapted model.
        whole: The names of modules that are written as a whole.
        tokens: The ids of tokens whose rows are written.
        embeddings: The names of modules of an embedding that is adapted.
        experts: The names of parameters of experts that are adapted.
    """
    kind = class_name(model)
    if list(experts):
        return "it names the LoRAs of experts otherwise than PEFT does"
    if family_of(model)[1] in UNTRIED:
        return f"its LoRAs for a {kind} were never tried with ours"
    if family_of(model)[1] not in FAMILIES:
        return f"it has no LoRAs for a {kind}"
    if not isinstance(model, keras_hub.models.CausalLM):
        return f"it generates, and a {kind} does not"
    if list(whole):
        return f"it reads no `modules_to_save`, such as {next(iter(whole))!r}"
    if list(tokens):
        return "it reads no rows of tokens that train"
    if list(embeddings):
        return "it has LoRAs of embeddings for some models only, none of them tried"
    return None
