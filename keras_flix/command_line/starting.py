"""`train`: what is wrong with its settings and examples is told without Keras."""

from __future__ import annotations

import argparse
from pathlib import Path

from keras_flix._utils.imported_late import imported_late
from keras_flix.command_line.configuration import configuration
from keras_flix.command_line.data_files import digest
from keras_flix.command_line.output import Answer, on_stderr
from keras_flix.command_line.parts import read_parts
from keras_flix.command_line.run_folder import RunFolder


def train(arguments: argparse.Namespace) -> Answer:
    """Trains adapters, scores them, and writes them with a card."""
    settings = configuration(arguments)
    folder = RunFolder(Path(settings["output"]), arguments.overwrite)
    begun = {n: v for n, v in settings.items() if n not in ("data", "output")}
    folder.check(begun)
    parts, schema = read_parts(settings)
    begun["examples"] = digest(parts.train, parts.validation, parts.held_out)
    folder.check(begun)
    with on_stderr():
        # Keras is imported now.
        carry_out = imported_late("keras_flix.command_line.training:carry_out")
        answer: Answer = carry_out(settings, folder, begun, parts, schema)
    return answer
