"""`export_merged`: one combination of values as a Hugging Face transformers model."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import keras_hub
import numpy as np
from keras import ops

from keras_flix._utils.atomic_directories import check_new, new_directory
from keras_flix.exports.lora_names import family_of
from keras_flix.exports.transformers_weights import (
    LONGEST_QWEN3,
    WRITTEN,
    write_model,
)
from keras_flix.models.adapted.adaptation import Adaptation, adaptation_of
from keras_flix.models.merge import merge_features

NO_GEMMA_2 = {
    "final_logit_soft_cap": None,
    "attention_logit_soft_cap": None,
    "layer_norm_epsilon": 1e-6,
}

# What transformers computes of images with these was not compared.
TEXTS_ALONE = {"vision_encoder": None}

EXPORTED: dict[str, dict[str, Any]] = {
    "GemmaBackbone": {
        # It writes the first key and value head alone.
        "num_key_value_heads": 1,
        # Gemma 2's, which it writes as a Gemma of the first generation.
        "use_post_ffw_norm": False,
        "use_post_attention_norm": False,
        "use_sliding_window_attention": False,
        **NO_GEMMA_2,
    },
    "Gemma3Backbone": {
        "use_query_key_norm": True,
        "use_post_ffw_norm": True,
        "use_post_attention_norm": True,
        # KerasHub's model does not heed it, but its export does.
        "query_head_dim_normalize": True,
        **NO_GEMMA_2,
    },
    "Llama3Backbone": {},
    "MistralBackbone": {"rope_scaling_factor": 1.0},
    "QwenBackbone": {"rope_scaling_factor": 1.0},
    "Gemma4Backbone": TEXTS_ALONE | {"audio_encoder": None},
    "Qwen3_5Backbone": TEXTS_ALONE,
    "GPT2Backbone": {},
    **{name: dict(family.options) for name, family in WRITTEN.items()},
}
"""By backbone, the options with which its export is right: KerasHub's, or our own."""

WIDTH_OF_HEADS = ("GemmaBackbone", "MistralBackbone")
"""Where it takes `num_query_heads * head_dim` for `hidden_dim`."""

IMAGE_TOKENS = 256
"""Per image, as transformers has it for Gemma 3 where nothing else is written."""


def export_merged(
    model: keras.Model,
    combination: Mapping[str, Any],
    directory: str | os.PathLike[str],
    *,
    verify: bool | None = None,
) -> None:
    """Writes one combination of values as a plain Hugging Face transformers model.

    That is `merge_features(model, combination).export_to_transformers(directory)`,
    except where KerasHub's export is known to be wrong or where it has none (Llama,
    Qwen3), and checked: transformers loads what was written, and must compute what the
    merged model does.

    Args:
        model: A backbone or `CausalLM` of Gemma, Gemma 3, Gemma 4 (texts alone), Llama,
            Llama 3, Mistral, Qwen, Qwen3 or GPT-2, or a `CausalLM` of Qwen3.5 (texts
            alone), adapted by `enable_flix` and not quantized.
        combination: One entry per feature, as for `merge_features`.
        directory: Where the configuration, the weights and a task's tokenizer go: a
            new or empty directory in an existing folder.
        verify: Whether to load and compare, which takes the memory of the model once
            more. `None` does so if transformers and PyTorch are installed.

    Raises:
        ValueError: If the model is of another family or has options that KerasHub's
            export gets wrong, or the model written computes something else. Nothing
            is left in `directory` then.
        ImportError: If `verify=True` and transformers or PyTorch are not installed.

    Example:

    >>> import tempfile
    >>> backbone = keras_hub.models.GPT2Backbone(
    ...     vocabulary_size=30, num_layers=1, num_heads=2, hidden_dim=16,
    ...     intermediate_dim=24, max_sequence_length=32,
    ... )
    >>> gpt2 = enable_flix(backbone, {"task": ["qa", "ner"]}, rank=2)
    >>> directory = tempfile.mkdtemp()
    >>> export_merged(gpt2, {"task": "qa"}, directory, verify=False)
    >>> sorted(os.listdir(directory))
    ['config.json', 'model.safetensors']
    """
    adaptation = adaptation_of(model)
    _check_exported(model, adaptation)
    check_new(directory)
    installed = all(map(importlib.util.find_spec, ("transformers", "torch")))
    if verify and not installed:
        raise ImportError(
            "`export_merged(..., verify=True)` needs transformers and PyTorch, which "
            "are not both installed. Install them with: pip install "
            "'keras-flix[torch,evidence]'"
        )
    merged = merge_features(model, combination)
    with new_directory(directory) as temporary:
        if family_of(merged)[1] in WRITTEN:
            write_model(merged, temporary)
        else:
            merged.export_to_transformers(str(temporary))
        if installed if verify is None else verify:
            _verify(merged, temporary)


def _check_exported(model: Any, adaptation: Adaptation) -> None:
    backbone = getattr(model, "backbone", model)
    kinds = (keras_hub.models.CausalLM, keras_hub.models.Backbone)
    name = ""
    if isinstance(model, kinds) and backbone in adaptation.parts:
        name = adaptation_of(backbone).base_class.__name__
    # Of texts alone, KerasHub writes the configuration of a model with images.
    needs_head = name == "Qwen3_5Backbone" and model is backbone
    if name not in EXPORTED or needs_head:
        raise ValueError(
            "The model must be a CausalLM or backbone that KerasHub exports rightly: "
            f"one of {list(EXPORTED)}, of which Qwen3_5 only as a CausalLM. Received: "
            f"a {adaptation.base_class.__name__}. "
            "Use `merge_features(model, ...).save_to_preset(...)`, or `export_lora`."
        )
    wrong = {
        option: getattr(backbone, option)
        for option, value in EXPORTED[name].items()
        if getattr(backbone, option) != value
    }
    if name in WIDTH_OF_HEADS and backbone.head_dim is not None:
        width = backbone.num_query_heads * backbone.head_dim
        if width != backbone.hidden_dim:
            wrong["num_query_heads * head_dim"] = width
    window = getattr(backbone, "sliding_window_size", None)
    if name == "Qwen3Backbone" and window is not None and window < LONGEST_QWEN3:
        wrong["sliding_window_size"] = window
    if getattr(backbone, "vision_encoder", None) is not None:
        tokens = backbone.num_vision_tokens_per_image
        if tokens != IMAGE_TOKENS:
            wrong["num_vision_tokens_per_image"] = tokens
    if wrong:
        right = {
            **EXPORTED[name],
            "num_query_heads * head_dim": backbone.hidden_dim,
            "num_vision_tokens_per_image": IMAGE_TOKENS,
            "sliding_window_size": None,
        }
        raise ValueError(
            f"A {name} is exported rightly only with "
            f"{', '.join(f'{k}={right[k]!r}' for k in wrong)}. Received: "
            f"{', '.join(f'{k}={v!r}' for k, v in wrong.items())}. Use `export_lora`, "
            "which does not need the base, or `merge_features(model, ...)."
            "save_to_preset(...)`."
        )


def _verify(merged: Any, directory: Path) -> None:
    """Raises unless transformers computes what `merged` does."""
    transformers = importlib.import_module("transformers")
    backbone = getattr(merged, "backbone", merged)
    has_head = merged is not backbone
    reads_images = getattr(backbone, "vision_encoder", None) is not None
    name = "AutoModelForCausalLM" if has_head else "AutoModel"
    if has_head and reads_images:
        name = "AutoModelForImageTextToText"
    loaded, report = getattr(transformers, name).from_pretrained(
        directory, output_loading_info=True
    )
    lost = {kind: sorted(map(str, keys)) for kind, keys in report.items() if keys}
    length = min(12, getattr(backbone, "max_sequence_length", 12))
    ids = np.random.default_rng(0).integers(backbone.vocabulary_size, size=(2, length))
    # Made by transformers, as this package imports PyTorch only where it must.
    inputs = transformers.BatchFeature({"input_ids": ids}, tensor_type="pt")
    outputs = loaded.float().eval()(**inputs)
    theirs = (outputs.logits if has_head else outputs.last_hidden_state).detach()
    x = {"token_ids": ids.astype("int32"), "padding_mask": np.ones_like(ids)}
    if "position_ids" in backbone.input:
        x["position_ids"] = np.tile(np.arange(length), (2, 1))
    if reads_images:
        size = backbone.image_size
        x["images"] = np.zeros((2, 0, size, size, 3), "float32")
        x["vision_indices"] = np.zeros((2, 0), "int32")
        x["vision_mask"] = np.zeros_like(ids)
    ours = ops.convert_to_numpy(ops.cast(merged(x), "float32"))
    largest = np.abs(ours - theirs.numpy()).max() / np.abs(ours).max()
    # Accelerators multiply float32 with fewer digits, and half precision rounds.
    allowed = 0.01 if backbone.compute_dtype == "float32" else 0.1
    if lost or not largest <= allowed:
        raise ValueError(
            f"What was exported must compute what the merged model does, to {allowed} "
            f"of the largest {'logit' if has_head else 'hidden state'}. Received: a "
            f"difference of {largest:.2g}"
            + (f", and on loading {lost}" if lost else "")
            + ". This is an error of the export for these options. Use "
            "`export_lora`, or `merge_features(model, ...).save_to_preset(...)`."
        )
