"""`merge`, `export` and `export-base`: adapter files and their base models."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_flix._utils.atomic_directories import check_new, new_directory
from keras_flix._utils.imported_late import imported_late
from keras_flix._utils.optional_packages import needed
from keras_flix.command_line.answering import NO_BASE, trained_with
from keras_flix.command_line.combinations import parse_features
from keras_flix.command_line.next_steps import after_export
from keras_flix.command_line.output import Answer, progress
from keras_flix.files.adapter_file import read_adapters

if TYPE_CHECKING:
    import keras


def merge(arguments: argparse.Namespace) -> Answer:
    """One combination of values as a plain preset."""
    check_new(arguments.output)
    _find_base(arguments)
    schema = read_adapters(arguments.file).schema
    combination = parse_features(schema, arguments.features)
    with progress(3) as begin:
        model = _adapted(arguments, begin)
        begin("merging")
        merge_features = imported_late("keras_flix.models.merge:merge_features")
        merged = merge_features(model, combination)
        with new_directory(arguments.output) as directory:
            merged.save_to_preset(str(directory))
    return _written(arguments, "merged", combination)


def export(arguments: argparse.Namespace) -> Answer:
    """One combination of values, or all, as PEFT LoRAs; or one file per value."""
    asked = {
        "--features": arguments.features is not None,
        "--all": arguments.all,
        "--values": arguments.values,
    }
    chosen = [option for option, given in asked.items() if given]
    if len(chosen) != 1:
        raise ValueError(
            "`export` takes one of --features, --all and --values. Received: "
            f"{' and '.join(chosen) or 'none'}. Pass one of them."
        )
    if arguments.format != "peft" and not arguments.values:
        raise ValueError(
            "--format is of --values: combinations are written for PEFT. Received: "
            f"--format {arguments.format} with {chosen[0]}. Pass --values."
        )
    if arguments.format == "gguf":
        # Not after the base was loaded.
        needed("gguf", "`export --format gguf`", "gguf")
    check_new(arguments.output)
    _find_base(arguments)
    schema = read_adapters(arguments.file).schema
    combination = None
    if chosen == ["--features"]:
        combination = parse_features(schema, arguments.features)
    options = {"base_model": arguments.base_model}
    with progress(3) as begin:
        model = _adapted(arguments, begin)
        begin("exporting")
        if arguments.values:
            write = imported_late("keras_flix.exports.values:export_values")
            write(model, arguments.output, arguments.format, **options)
        elif combination is None:
            write = imported_late("keras_flix.exports.lora:export_loras")
            write(model, None, arguments.output, **options)
        else:
            write = imported_late("keras_flix.exports.lora:export_lora")
            write(model, combination, arguments.output, **options)
    what = "all values" if arguments.values else "all combinations"
    answer = _written(arguments, "exported", combination, what)
    if combination is not None:
        return answer
    kind = arguments.format if arguments.values else "combinations"
    step = after_export(arguments.output, schema, kind, arguments.preset)
    return Answer(answer.data, [*answer.blocks, step])


def export_base(arguments: argparse.Namespace) -> Answer:
    """A base model as GGUF, for what `export --values --format gguf` writes."""
    needed("gguf", "`export-base`", "gguf")
    with progress(2) as begin:
        model = _base(arguments, begin)
        begin("exporting")
        write = imported_late("keras_flix.exports.gguf_base:export_base")
        write(model, arguments.output, context_length=arguments.context_length)
    return _written(arguments, "exported", None, "the base")


def _find_base(arguments: argparse.Namespace) -> None:
    """Takes the base from the folder that `train` wrote, unless it is typed."""
    if arguments.preset is None:
        found = trained_with(Path(arguments.file).parent)
        if found.get("preset") is None:
            raise ValueError(NO_BASE)
        arguments.preset = found["preset"]
        arguments.dtype = arguments.dtype or found.get("dtype")


def _adapted(arguments: argparse.Namespace, begin: Any) -> keras.Model:
    model = _base(arguments, begin)
    begin("loading the adapters")
    load_adapters = imported_late("keras_flix.files.saving:load_adapters")
    adapted: keras.Model = load_adapters(
        model, arguments.file, check_base=not arguments.any_base
    )
    return adapted


def _base(arguments: argparse.Namespace, begin: Any) -> keras.Model:
    begin("loading the base")
    load_base = imported_late("keras_flix.command_line.bases:load_base")
    base: keras.Model = load_base(
        arguments.preset, arguments.model_class, arguments.dtype
    )
    return base


def _written(
    arguments: argparse.Namespace,
    what: str,
    combination: dict[str, Any] | None,
    named: str = "",
) -> Answer:
    data = {"output": str(arguments.output), "features": combination}
    if combination is not None:
        named = " ".join(f"{name}={value}" for name, value in combination.items())
    return Answer(data, [f"{what} {named} into {arguments.output}"])
