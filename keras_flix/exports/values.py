"""`export_values`: one LoRA per value, which servers put together per request."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_flix import _compat
from keras_flix._utils.atomic_directories import new_directory
from keras_flix._utils.file_names import file_names
from keras_flix._utils.optional_packages import needed
from keras_flix.exports.adapter_index import VALUES, VERSION
from keras_flix.exports.gguf_families import MODULES, gguf_family, in_their_order
from keras_flix.exports.lora_factors import Ids
from keras_flix.exports.lora_writer import LoraWriter, write_json
from keras_flix.features.encoding import ABSENT
from keras_flix.features.feature import Feature
from keras_flix.features.schema import FeatureSchema
from keras_flix.files.hub_handles import INDEX_FILE

FORMATS = ("peft", "gguf")


def export_values(
    model: keras.Model,
    directory: str | os.PathLike[str],
    format: str = "peft",
    *,
    base_model: str | None = None,
) -> None:
    """Writes one LoRA per value, and an index by which servers combine them.

    So tasks and languages need as many files as there are tasks *and* languages, and a
    server makes every combination of them, those included that were never trained
    together. Each file has its value's own rank, its scale is in `A`, and `alpha` is
    the rank: a server that adds it with scale 1 adds the value's update. A feature that
    is always active has a file too, which every request names.

    `keras_flix.serving.read_index(directory)` turns features into requests.

    Args:
        model: As for `export_lora`; for `"gguf"` a `CausalLM` or backbone that
            `export_base` knows.
        directory: Where the index, `index.json`, and the files go: a new or empty
            directory in an existing folder.
        format: `"peft"` writes a PEFT directory for each value. `"gguf"` writes a file
            for each, which llama.cpp's server adds to what `export_base` wrote.
        base_model: As for `export_lora`.

    Raises:
        ValueError: As `export_lora` does, and if anything trained besides the
            adapters, which cannot be added up. Nothing is written then.
        ImportError: If `gguf` is asked for and not installed (extra `gguf`).

    Example:

    >>> import keras_hub, pathlib, tempfile
    >>> backbone = keras_hub.models.GPT2Backbone(
    ...     vocabulary_size=30, num_layers=1, num_heads=2, hidden_dim=16,
    ...     intermediate_dim=24, max_sequence_length=8,
    ... )
    >>> gpt2 = enable_flix(backbone, {"task": ["qa", "ner"], "language": ["en", "sw"]})
    >>> directory = pathlib.Path(tempfile.mkdtemp())
    >>> export_values(gpt2, directory)
    >>> sorted(path.name for path in directory.iterdir())
    ['index.json', 'language-en', 'language-sw', 'task-ner', 'task-qa']
    """
    if format not in FORMATS:
        raise ValueError(
            f"`format` must be one of {list(FORMATS)}. Received: format={format!r}. "
            "Choose by the server: llama.cpp's reads 'gguf', transformers 'peft'."
        )
    write_one = _gguf_writer(model) if format == "gguf" else _write_peft
    writer = LoraWriter.of(model, base_model)
    if format == "gguf" and writer.embeddings:
        raise ValueError(
            "A GGUF LoRA is of linear layers. Received: a model whose embedding "
            f"{next(iter(writer.embeddings.values()))!r} is adapted. Merge "
            "combinations by `merge_features` and `export_base`, or write PEFT's."
        )
    besides = [*writer.whole, *writer.tokens.rows]
    if besides:
        raise ValueError(
            "The LoRAs of values are added up, and hold updates only. Received: a "
            f"model in which {besides[:3]} (as transformers calls them) trained "
            "besides the adapters. Export combinations by `export_lora`, or "
            "`export_merged`."
        )
    values = [(f, value) for f in writer.schema for value in f.values]
    names = file_names(
        (f"{f.name}-{value}" for f, value in values), "value", [INDEX_FILE], dots=False
    )
    suffix = ".gguf" if format == "gguf" else ""
    index = {
        "format": VALUES,
        "version": VERSION,
        "files": format,
        "base_model": base_model,
        "features": [
            {"name": f.name, "values": list(f.values), "multiple": f.multiple}
            for f in writer.schema.routed
        ],
        "adapters": [
            {
                "feature": feature.name,
                "value": value,
                "always": feature.always,
                "file": f"{name}{suffix}",
                "rank": writer.rank(_ids_of_value(writer.schema, feature, value)),
                "scale": 1.0,
            }
            for (feature, value), name in zip(values, names)
        ],
    }

    def write() -> None:
        with new_directory(directory) as temporary:
            for (feature, value), name in zip(values, names):
                ids = _ids_of_value(writer.schema, feature, value)
                write_one(writer, ids, temporary / f"{name}{suffix}")
            write_json(temporary / INDEX_FILE, index)

    _compat.written_once(write, writer.split)


def _ids_of_value(schema: FeatureSchema, feature: Feature, value: Any) -> Ids:
    """The ids of one example that has this value and nothing else."""
    ids = {f.name: np.full((1,), ABSENT, "int32") for f in schema}
    ids[feature.name][:] = feature.id_of(value)
    return ids


def _write_peft(writer: LoraWriter, ids: Ids, path: Path) -> None:
    path.mkdir()
    # All with the scale in `A`, so that whoever adds them up needs no other.
    writer.write(ids, writer.rank(ids), path, as_rslora=False)


def _gguf_writer(model: keras.Model) -> Any:
    backbone, family = gguf_family(model)
    gguf = needed("gguf", "`export_values(..., format='gguf')`", "gguf")

    def write(writer: LoraWriter, ids: Ids, path: Path) -> None:
        rank = writer.rank(ids)
        file = gguf.GGUFWriter(path, family.architecture)
        file.add_type(gguf.GGUFType.ADAPTER)
        file.add_string(gguf.Keys.Adapter.TYPE, "lora")
        # Which llama.cpp divides by the rank.
        file.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))
        for name, tensor in tensors(writer, ids, rank):
            file.add_tensor(name, np.ascontiguousarray(tensor, "float32"))
        try:
            file.write_header_to_file()
            file.write_kv_data_to_file()
            file.write_tensors_to_file()
        finally:
            file.close()

    def tensors(
        writer: LoraWriter, ids: Ids, rank: int
    ) -> Iterator[tuple[str, np.ndarray]]:
        for module, (a, b) in writer.factors(ids, rank).items():
            index, short = writer.names.in_blocks[module]
            name = MODULES[short]
            yield f"blk.{index}.{name}.weight.lora_a", a
            b = in_their_order(family, backbone, name, b)
            yield f"blk.{index}.{name}.weight.lora_b", b

    return write
