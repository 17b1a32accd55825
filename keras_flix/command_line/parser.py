"""The arguments of `keras-flix`: all commands, none of what they need to run."""

from __future__ import annotations

import argparse
import os
from typing import Any

from keras_flix.command_line.next_steps import (
    PROGRAM,
    SERVED,
    START,
    help_that_ends_with,
    shown,
)
from keras_flix.command_line.options import ADAPTERS
from keras_flix.command_line.run_parser import add_features, add_run_commands
from keras_flix.version import __version__

FILE = "an adapter file, its handle on a hub, or a folder that `train` wrote"


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="answer in JSON")
    common.add_argument(
        "--traceback", action="store_true", help="show where an error comes from"
    )
    top = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Trains adapters of keras_flix, and does what is done with them.",
        **help_that_ends_with(
            shown("One after the other", [*START, *SERVED]),
            f"{PROGRAM} COMMAND --help lists the options of a command.",
        ),
    )
    top.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    # Help lists them in this order.
    add_run_commands(commands, common)
    _add_file_commands(commands, common)
    _add_model_commands(commands, common)
    return top


def adapter_file(place: str) -> str:
    """An adapter file; of a folder that `train` wrote, the one in it."""
    file = os.path.join(place, ADAPTERS)
    return file if os.path.isfile(file) else place


def _add_file_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the commands that need no model."""
    one = commands.add_parser(
        "inspect", parents=[common], help="what is in an adapter file"
    )
    one.add_argument("file", type=adapter_file, help=FILE)
    one.add_argument("--all-layers", action="store_true", help="list every layer")
    one.set_defaults(run="file_commands:inspect")
    two = commands.add_parser(
        "diff",
        parents=[common],
        help="what differs between two adapter files; exit code 1 if anything does",
    )
    two.add_argument("a", type=adapter_file, help=FILE)
    two.add_argument("b", type=adapter_file, help=FILE)
    two.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        help="relative differences of updates up to this do not count (default: 0)",
    )
    two.set_defaults(run="file_commands:diff")
    three = commands.add_parser(
        "request",
        parents=[common],
        help="what a server of exported adapters is asked for a combination",
        **help_that_ends_with(shown("For llama.cpp, with files per value", SERVED)),
    )
    three.add_argument("directory", help="what `export` wrote, with its index.json")
    add_features(three)
    three.add_argument(
        "--server-arguments",
        action="store_true",
        help="instead, with which arguments the server is started",
    )
    three.set_defaults(run="serving_commands:request")


def _add_model_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the commands that load a base."""
    preset = argparse.ArgumentParser(add_help=False)
    preset.add_argument(
        "--class",
        dest="model_class",
        default="CausalLM",
        metavar="NAME",
        help="the class of keras_hub.models to load (default: CausalLM)",
    )
    preset.add_argument("--dtype", help="of the base, such as bfloat16")
    base = argparse.ArgumentParser(add_help=False)
    base.add_argument("file", type=adapter_file, help=FILE)
    base.add_argument(
        "--preset",
        help="the base, as KerasHub names it (default: what `train` wrote beside FILE)",
    )
    base.add_argument("--output", required=True, help="a new or empty folder")
    add_features(base)
    base.add_argument(
        "--any-base", action="store_true", help="do not compare base fingerprints"
    )
    one = commands.add_parser(
        "merge",
        parents=[base, preset, common],
        help="one combination as a plain preset",
    )
    one.set_defaults(run="model_commands:merge")
    two = commands.add_parser(
        "export",
        parents=[base, preset, common],
        help="combinations as PEFT LoRA directories, or one LoRA per value",
        **help_that_ends_with(shown("For llama.cpp", [START[-1], *SERVED])),
    )
    two.add_argument("--all", action="store_true", help="every combination")
    two.add_argument("--values", action="store_true", help="one LoRA per value")
    two.add_argument(
        "--format",
        choices=("peft", "gguf"),
        default="peft",
        help="of --values: for PEFT, or for llama.cpp's server (default: peft)",
    )
    two.add_argument("--base-model", help="what PEFT's configuration names as base")
    two.set_defaults(run="model_commands:export")
    three = commands.add_parser(
        "export-base",
        parents=[preset, common],
        help="the base as GGUF, for llama.cpp's server",
        **help_that_ends_with(shown("For llama.cpp", [START[-1], *SERVED])),
    )
    three.add_argument("--preset", required=True, help="the base, as KerasHub names it")
    three.add_argument("--output", required=True, help="a file")
    three.add_argument(
        "--context-length", type=int, help="of a prompt with its answer, in tokens"
    )
    three.set_defaults(run="model_commands:export_base")
