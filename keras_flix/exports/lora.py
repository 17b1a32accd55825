"""`export_lora`, `export_loras`: combinations of values as Hugging Face LoRAs."""

from __future__ import annotations

import itertools
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_flix import _compat
from keras_flix._utils.atomic_directories import new_directory
from keras_flix._utils.file_names import file_names
from keras_flix.exports.adapter_index import LORAS, VERSION
from keras_flix.exports.lora_factors import Ids
from keras_flix.exports.lora_writer import LoraWriter, write_json
from keras_flix.exports.vllm_limits import why_not_vllm
from keras_flix.features.schema import FeatureSchema
from keras_flix.files.hub_handles import INDEX_FILE
from keras_flix.models.adapted.adaptation import adaptation_of

MAX_COMBINATIONS = 1000
"""How many combinations are exported without being listed."""


def export_lora(
    model: keras.Model,
    combination: Mapping[str, Any],
    directory: str | os.PathLike[str],
    *,
    base_model: str | None = None,
) -> None:
    """Writes one combination of values as a Hugging Face PEFT LoRA directory.

    A combination is a single LoRA: the adapter weights of its values side by side,
    their scales in `A`. It has one rank, which is the sum of its values' ranks, padded
    with zeros to the next one that vLLM has room for, and `lora_alpha` is that rank. (A
    single value of `scale="sqrt"` and of such a rank is an rsLoRA as it is: it is
    written with its alpha, and `use_rslora`.)
    (GPT-2's queries, keys and values are one module there, where their ranks add up.)

    It fits the transformers model that is the counterpart of `model`: for a
    `CausalLM` what `AutoModelForCausalLM` loads, which is also what servers such as
    vLLM read; for a backbone what `AutoModel` loads.

    Linear layers that train whole besides, such as a classifier's head, are written as
    PEFT's `modules_to_save`, with the update where they are adapted too, and the rows
    of `trainable_tokens` as `trainable_token_indices`. (vLLM reads neither: merge
    instead.) An adapted embedding is a LoRA of that module, and of `lm_head` where
    that shares its weights; untie them before PEFT merges such a LoRA.

    Adapted experts are written as PEFT's `target_parameters`, for transformers from
    version 5 on. PEFT has a LoRA for each expert there, so what experts share is
    written once for each; and where one parameter stands for two kernels, as that of
    Mixtral and Gemma 4 for the gate and the inputs, their ranks add up.

    Where layouts split a model across processes of JAX, all of them must call this, and
    the first one writes.

    Args:
        model: A model adapted by `enable_flix`: a backbone or task of Gemma (1
            to 4), Llama, Llama 3, Mistral, Mixtral, Qwen, QwenMoe, Qwen3, Qwen3Moe,
            Qwen3.5, Qwen3.5Moe, GPT-OSS, SmolLM3, GPT-2, BERT, RoBERTa, XLM-R,
            DistilBERT or BART. It may be quantized.
        combination: One entry per feature, as for `merge_features`.
        directory: Where `adapter_config.json` and `adapter_model.safetensors` go:
            a new or empty directory in an existing folder.
        base_model: What the configuration names as the base: a name on the Hugging
            Face hub or a path. PEFT needs it only to find the base by itself.

    Raises:
        ValueError: If the model is of another family, an adapted layer or one that
            trains whole has no counterpart there, or the combination is not of the
            model's features. Nothing is written then.

    Example:

    >>> import keras_hub, pathlib, tempfile
    >>> backbone = keras_hub.models.GPT2Backbone(
    ...     vocabulary_size=30, num_layers=1, num_heads=2, hidden_dim=16,
    ...     intermediate_dim=24, max_sequence_length=8,
    ... )
    >>> gpt2 = enable_flix(backbone, {"task": ["qa", "ner"], "language": ["en", "sw"]})
    >>> directory = pathlib.Path(tempfile.mkdtemp())
    >>> export_lora(gpt2, {"task": "qa", "language": "sw"}, directory)
    >>> sorted(path.name for path in directory.iterdir())
    ['adapter_config.json', 'adapter_model.safetensors']
    """
    writer = LoraWriter.of(model, base_model)
    ids = adaptation_of(model).schema.encode_one(combination)
    rank = writer.allowed_rank([ids])

    def write() -> None:
        with new_directory(directory) as temporary:
            writer.write(ids, rank, temporary)

    _compat.written_once(write, writer.split)


def export_loras(
    model: keras.Model,
    combinations: Sequence[Mapping[str, Any]] | None,
    directory: str | os.PathLike[str],
    *,
    base_model: str | None = None,
) -> None:
    """Writes many combinations of values as PEFT LoRA directories, with an index.

    All have the same rank, so that a server of many LoRAs can hold any of them. The
    index, `index.json`, lets it choose one by features:
    `{"max_lora_rank": 8, "features": [...], "adapters": [{"features": {"task": "qa",
    "language": "sw"}, "directory": "qa-sw"}, ...], ...}`.

    Args:
        model: As for `export_lora`.
        combinations: A list of combinations. `None` takes all of them: each value of
            a feature with each of the others, one of each feature and none absent.
        directory: Where the index and one directory per combination go: a new or
            empty directory in an existing folder.
        base_model: As for `export_lora`.

    Raises:
        ValueError: As `export_lora` does; if a combination is listed twice; or if
            `None` would stand for more than 1000 of them. Nothing is written then.

    Warns:
        UserWarning: If vLLM cannot serve them: it has LoRAs for no such model, or
            they hold modules or rows of tokens that train whole. The index says so
            too, under `"not_for_vllm"`.
    """
    writer = LoraWriter.of(model, base_model)
    schema = adaptation_of(model).schema
    chosen = _all_combinations(schema) if combinations is None else list(combinations)
    encoded = [schema.encode_one(combination) for combination in chosen]
    _check_distinct(schema, encoded)
    rank = writer.allowed_rank(encoded)
    described = [_described(schema, ids) for ids in encoded]
    adapters = [
        {"features": features, "directory": name}
        for features, name in zip(described, _directory_names(described))
    ]
    index = {
        "format": LORAS,
        "version": VERSION,
        "base_model": base_model,
        "max_lora_rank": rank,
        "features": [
            {"name": f.name, "values": list(f.values), "multiple": f.multiple}
            for f in schema.routed
        ],
        "adapters": adapters,
    }
    reason = why_not_vllm(
        model, writer.whole, writer.tokens.ids, writer.embeddings, writer.experts.paths
    )
    if reason is not None:
        index["not_for_vllm"] = reason
        warnings.warn(
            f"vLLM will not serve these LoRAs: {reason}. PEFT loads them; for vLLM, "
            "use `merge_features` or `export_merged`.",
            stacklevel=2,
        )

    def write() -> None:
        with new_directory(directory) as temporary:
            for ids, adapter in zip(encoded, adapters):
                target = temporary / str(adapter["directory"])
                target.mkdir()
                writer.write(ids, rank, target)
            write_json(temporary / INDEX_FILE, index)

    _compat.written_once(write, writer.split)


def _all_combinations(schema: FeatureSchema) -> list[dict[str, Any]]:
    count = math.prod(len(feature.values) for feature in schema.routed)
    if count > MAX_COMBINATIONS:
        raise ValueError(
            f"`combinations=None` stands for at most {MAX_COMBINATIONS} combinations. "
            f"Received: a model with {count}, each of which would be a directory. "
            "List those that you need."
        )
    names = [feature.name for feature in schema.routed]
    values = [feature.values for feature in schema.routed]
    return [dict(zip(names, values)) for values in itertools.product(*values)]


def _check_distinct(schema: FeatureSchema, encoded: Sequence[Ids]) -> None:
    if not encoded:
        raise ValueError(
            "`combinations` must hold at least one. Received: combinations=[]. List "
            "some, or pass None for all of them."
        )
    seen: set[tuple[Any, ...]] = set()
    for ids in encoded:
        key = tuple(
            # The order of several values makes no other combination.
            tuple(sorted(map(str, np.atleast_1d(ids[feature.name][0]).tolist())))
            for feature in schema.routed
        )
        if key in seen:
            raise ValueError(
                "`combinations` must hold each of them once. Received: "
                f"{_described(schema, ids)} twice. Remove one."
            )
        seen.add(key)


def _described(schema: FeatureSchema, ids: Ids) -> dict[str, Any]:
    """A combination in JSON's types."""
    described = {f.name: f.decode(ids[f.name])[0] for f in schema.routed}
    for name, entry in described.items():
        if isinstance(entry, dict):
            described[name] = {str(value): round(w, 6) for value, w in entry.items()}
    return described


def _directory_names(described: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each combination, unique where case does not count."""
    texts = []
    for features in described:
        words = []
        for value in features.values():
            if isinstance(value, dict):
                value = [f"{weight:g}-{name}" for name, weight in value.items()]
            parts = value if isinstance(value, list) else [value]
            present = [str(part) for part in parts if part is not None]
            words.append("+".join(present) or "none")
        texts.append("-".join(words))
    return file_names(texts, "shared", [INDEX_FILE])
