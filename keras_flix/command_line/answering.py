"""Which adapters are to answer, on which base; no Keras is needed to know."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from keras_flix.command_line.configuration import parsed, read_config
from keras_flix.command_line.options import ADAPTERS, OPTIONS
from keras_flix.command_line.run_folder import SETTINGS
from keras_flix.command_line.templates import TEMPLATES, Template
from keras_flix.features.schema import FeatureSchema
from keras_flix.files.adapter_file import read_adapters

TAKEN = ("preset", "dtype", "template", "prompt", "response", "sequence_length")
"""What a folder of `train` says about its adapters, unless the command line does."""
NO_BASE = (
    "Adapters need the base that they were trained on. Received: no --preset, and no "
    "folder that `train` wrote. Add one."
)


def trained_with(folder: Path) -> dict[str, Any]:
    """The settings of `TAKEN` in a folder that `train` wrote; none in another one."""
    if not (folder / SETTINGS).is_file():
        return {}
    given = read_config(str(folder / SETTINGS))
    return {n: parsed(n, *given[n]) for n in TAKEN if n in given}


@dataclasses.dataclass(frozen=True)
class Adapted:
    """Adapters that are to answer, before anything is loaded.

    Attributes:
        file: The adapter file, or its handle.
        settings: By name, those of `TAKEN`.
        schema: The features of the file.
        any_base: Whether base fingerprints are not compared.
    """

    file: str
    settings: dict[str, Any]
    schema: FeatureSchema
    any_base: bool

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Adapted:
        """What a command line asks for: a file, or a folder that `train` wrote."""
        file, settings = arguments.file, {n: OPTIONS[n].default for n in TAKEN}
        if (Path(file) / SETTINGS).is_file():
            settings |= trained_with(Path(file))
            file = str(Path(file) / ADAPTERS)
        for name in TAKEN:
            text = getattr(arguments, name, None)
            if text is not None:
                settings[name] = parsed(name, [text], OPTIONS[name].flag)
        if settings["preset"] is None:
            raise ValueError(NO_BASE)
        schema = read_adapters(file).schema
        return cls(file, settings, schema, arguments.any_base)

    @property
    def template(self) -> Template:
        """What prompts are put into."""
        return TEMPLATES[self.settings["template"]]
