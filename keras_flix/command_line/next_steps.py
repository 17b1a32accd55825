"""What can be typed next, for people: the last lines of an answer, and of `--help`."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_flix.features.schema import FeatureSchema

PROGRAM = "keras-flix"
START = (
    "keras-flix train examples.jsonl --preset gemma3_1b --output DIR",
    "keras-flix evaluate DIR test.jsonl",
    "keras-flix chat DIR --features task=qa language=sw",
    "keras-flix export DIR --values --format gguf --output VALUES",
)
"""From examples to files for a server."""
SERVED = (
    "keras-flix export-base --preset gemma3_1b --output base.gguf",
    "llama-server --model base.gguf $(keras-flix request VALUES --server-arguments)",
    "keras-flix request VALUES --features task=qa language=sw",
)
"""From files to answers of a server."""


def shown(lead: str, commands: Sequence[str]) -> str:
    """Commands below a line that says what they are."""
    return "\n".join([f"{lead}:", *(f"  {command}" for command in commands)])


def help_that_ends_with(*texts: str) -> dict[str, Any]:
    """What a parser takes to end its help with lines as they are."""
    formatter = argparse.RawDescriptionHelpFormatter
    return {"epilog": "\n\n".join(texts), "formatter_class": formatter}


def typed(*words: object) -> str:
    """A command as it is typed.

    >>> typed("chat", "my run", "--features", "task=qa")
    "keras-flix chat 'my run' --features task=qa"
    """
    return shlex.join([PROGRAM, *map(str, words)])


def combination_of(schema: FeatureSchema) -> list[str]:
    """The first value of each feature, as `--features` takes them.

    >>> from keras_flix import FeatureSchema
    >>> combination_of(FeatureSchema({"task": ["qa", "ner"], "language": ["sw"]}))
    ['task=qa', 'language=sw']
    """
    return [f"{feature.name}={feature.values[0]}" for feature in schema.routed]


def after_training(folder: Path, schema: FeatureSchema) -> str:
    """Of a folder of adapters."""
    chat = typed("chat", folder, "--features", *combination_of(schema))
    return f"\nnext: {chat}"


def after_export(directory: Path, schema: FeatureSchema, kind: str, base: str) -> str:
    """Of a directory with an index.

    Args:
        directory: The exported one.
        schema: Of the adapters.
        kind: `"peft"` or `"gguf"` for a file per value, or `"combinations"`.
        base: The preset.
    """
    asked = typed("request", directory, "--features", *combination_of(schema))
    started = typed("request", directory, "--server-arguments")
    commands = {
        "gguf": [
            typed("export-base", "--preset", base, "--output", "base.gguf"),
            f"llama-server --model base.gguf $({started})",
            asked,
        ],
        "combinations": [started, asked],
    }
    return "\n" + shown("next", commands.get(kind, [asked]))
