"""`completion`, and what a shell is told when it completes a command.

The shell runs the command, which then answers without Keras.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from keras_flix._utils.optional_packages import needed
from keras_flix.command_line.output import Answer
from keras_flix.command_line.parser import PROGRAM, adapter_file
from keras_flix.files.adapter_file import read_adapters


def completion(arguments: argparse.Namespace) -> Answer:
    """What a shell runs to complete commands."""
    package = needed("argcomplete", "Completion", "cli")
    text = package.shellcode([PROGRAM], shell=arguments.shell)
    return Answer({"shell": arguments.shell, "script": text}, [text])


def complete(parser: argparse.ArgumentParser, **options: Any) -> None:
    """Answers a shell that completes a command, and ends the process."""
    needed("argcomplete", "Completion", "cli").autocomplete(parser, **options)


def entries_of_file(file: str | None) -> list[str]:
    """The entries `feature=value` of an adapter file, if it is on this machine."""
    path = Path(adapter_file(file or ""))
    if not path.is_file():
        return []
    return [
        f"{feature.name}={value}"
        for feature in read_adapters(path).schema.routed
        for value in feature.values
    ]
