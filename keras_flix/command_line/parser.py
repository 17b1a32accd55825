"""The arguments of `keras-flix`: all commands, none of what they need to run."""

from __future__ import annotations

import argparse
import os
from typing import Any

from keras_flix.version import __version__

PROGRAM = "keras-flix"


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="answer in JSON")
    common.add_argument(
        "--traceback", action="store_true", help="show where an error comes from"
    )
    top = argparse.ArgumentParser(
        prog=PROGRAM, description="Adapter files of keras_flix on the command line."
    )
    top.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_file_commands(commands, common)
    _add_model_commands(commands, common)
    return top


def _add_file_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds both commands to the parser."""
    one = commands.add_parser(
        "inspect", parents=[common], help="what is in an adapter file"
    )
    one.add_argument("file", type=os.fspath, help="a file, or its handle on a hub")
    one.add_argument("--all-layers", action="store_true", help="list every layer")
    one.set_defaults(run="file_commands:inspect")
    two = commands.add_parser(
        "diff",
        parents=[common],
        help="what differs between two adapter files; exit code 1 if anything does",
    )
    two.add_argument("a", type=os.fspath)
    two.add_argument("b", type=os.fspath)
    two.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        help="relative differences of updates up to this do not count (default: 0)",
    )
    two.set_defaults(run="file_commands:diff")


def _add_model_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds both commands to the parser."""
    base = argparse.ArgumentParser(add_help=False)
    base.add_argument("file", help="an adapter file, or its handle on a hub")
    base.add_argument("--preset", required=True, help="the base, as KerasHub names it")
    base.add_argument("--output", required=True, help="a new or empty folder")
    base.add_argument(
        "--features",
        nargs="*",
        metavar="FEATURE=VALUE",
        help="such as task=qa language=sw",
    )
    base.add_argument(
        "--class",
        dest="model_class",
        default="CausalLM",
        metavar="NAME",
        help="the class of keras_hub.models to load (default: CausalLM)",
    )
    base.add_argument("--dtype", help="of the base, such as bfloat16")
    base.add_argument(
        "--any-base", action="store_true", help="do not compare base fingerprints"
    )
    one = commands.add_parser(
        "merge", parents=[base, common], help="one combination as a plain preset"
    )
    one.set_defaults(run="model_commands:merge")
    two = commands.add_parser(
        "export", parents=[base, common], help="combinations as PEFT LoRA directories"
    )
    two.add_argument("--all", action="store_true", help="every combination")
    two.add_argument("--base-model", help="what PEFT's configuration names as base")
    two.set_defaults(run="model_commands:export")
