"""`merge` and `export`: adapter files with their base models."""

from __future__ import annotations

import argparse
from typing import Any

import keras
import keras_hub

from keras_flix._utils.atomic_directories import check_new, new_directory
from keras_flix.command_line.output import Answer, progress
from keras_flix.exports.lora import export_lora, export_loras
from keras_flix.features.feature import Feature
from keras_flix.features.schema import FeatureSchema
from keras_flix.files.adapter_file import read_adapters
from keras_flix.files.saving import load_adapters
from keras_flix.models.merge import merge_features


def merge(arguments: argparse.Namespace) -> Answer:
    """One combination of values as a plain preset."""
    check_new(arguments.output)
    schema = read_adapters(arguments.file).schema
    combination = parse_features(schema, arguments.features)
    with progress(3) as begin:
        model = _adapted(arguments, begin)
        begin("merging")
        merged = merge_features(model, combination)
        with new_directory(arguments.output) as directory:
            merged.save_to_preset(str(directory))
    return _written(arguments, "merged", combination)


def export(arguments: argparse.Namespace) -> Answer:
    """One combination of values, or all, as PEFT LoRAs."""
    if arguments.all == (arguments.features is not None):
        raise ValueError(
            "`export` takes either --features or --all. Received: "
            f"{'both' if arguments.all else 'neither'}. Pass one of them."
        )
    check_new(arguments.output)
    schema = read_adapters(arguments.file).schema
    combination = None
    if not arguments.all:
        combination = parse_features(schema, arguments.features)
    options = {"base_model": arguments.base_model}
    with progress(3) as begin:
        model = _adapted(arguments, begin)
        begin("exporting")
        if combination is None:
            export_loras(model, None, arguments.output, **options)
        else:
            export_lora(model, combination, arguments.output, **options)
    return _written(arguments, "exported", combination)


def parse_features(schema: FeatureSchema, entries: list[str] | None) -> dict[str, Any]:
    """The combination that entries such as `task=qa` name.

    Args:
        schema: The features.
        entries: `feature=value`; `feature=one,two` where that has several;
            `feature=` where there is none. One that is always active has no entry.

    Example:

    >>> schema = FeatureSchema({"task": ["qa"], "language": ["en", "sw"]})
    >>> parse_features(schema, ["task=qa", "language="])
    {'task': 'qa', 'language': None}
    """
    combination: dict[str, Any] = {}
    for entry in entries or []:
        name, mark, text = entry.partition("=")
        if not mark or name in combination:
            raise ValueError(
                "--features must be entries 'feature=value', one of each feature. "
                f"Received: {entry!r}. Write such as task=qa, and task= where there is "
                "none."
            )
        feature = schema[name] if name in schema else None
        if feature is not None and feature.multiple:
            combination[name] = [_value(feature, x) for x in text.split(",") if x]
        else:
            combination[name] = _value(feature, text) if text else None
    schema.encode_one(combination)
    return combination


def _value(feature: Feature | None, text: str) -> str | int:
    is_number = feature is not None and isinstance(feature.values[0], int)
    return int(text) if is_number and text.lstrip("-").isdecimal() else text


def _adapted(arguments: argparse.Namespace, begin: Any) -> keras.Model:
    begin("loading the base")
    cls: Any = getattr(keras_hub.models, arguments.model_class, None)
    kinds = (keras_hub.models.Task, keras_hub.models.Backbone)
    fits = isinstance(cls, type) and issubclass(cls, kinds)
    if not fits:
        raise ValueError(
            "--class must be a task or backbone class of keras_hub.models. Received: "
            f"{arguments.model_class!r}. Write such as CausalLM or Backbone."
        )
    options = {} if arguments.dtype is None else {"dtype": arguments.dtype}
    model = cls.from_preset(arguments.preset, **options)
    begin("loading the adapters")
    return load_adapters(model, arguments.file, check_base=not arguments.any_base)


def _written(
    arguments: argparse.Namespace, what: str, combination: dict[str, Any] | None
) -> Answer:
    data = {"output": str(arguments.output), "features": combination}
    named = "all combinations"
    if combination is not None:
        named = " ".join(f"{name}={value}" for name, value in combination.items())
    return Answer(data, [f"{what} {named} into {arguments.output}"])
