"""The arguments of `train`, `evaluate`, `chat` and `completion`."""

from __future__ import annotations

import argparse
import importlib
import os
from typing import Any

from keras_flix.command_line.next_steps import START, help_that_ends_with, shown
from keras_flix.command_line.options import OPTIONS, Option

EXAMPLE = '{"prompt": "...", "response": "...", "task": "qa", "language": "sw"}'
SHELLS = ("bash", "zsh", "fish")
SAMPLERS = ("greedy", "top_k", "top_p", "random")


def add_run_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the commands that train adapters and let them answer."""
    _add_train(commands, common)
    _add_evaluate(commands, common)
    _add_chat(commands, common)
    four = commands.add_parser(
        "completion",
        parents=[common],
        help="what a shell runs to complete commands (extra `cli`)",
    )
    four.add_argument("shell", choices=SHELLS)
    four.set_defaults(run="completing:completion")


def add_features(command: argparse.ArgumentParser) -> None:
    """Adds a combination of values."""
    action: Any = command.add_argument(
        "--features",
        nargs="*",
        metavar="FEATURE=VALUE",
        help="such as task=qa language=sw, also with a comma between them; "
        "language=sw:0.5,yo:0.5 is a blend, task= none",
    )
    # Where argcomplete looks for it.
    action.completer = _entries_of_file


def _entries_of_file(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> Any:
    """What may follow, for a shell that completes a command."""
    completing = importlib.import_module("keras_flix.command_line.completing")
    return completing.entries_of_file(getattr(parsed_args, "file", None))


def _add_train(commands: Any, common: argparse.ArgumentParser) -> None:
    command = commands.add_parser(
        "train",
        parents=[common],
        help="adapters, their scores and a model card, from a file of examples",
        description="Trains adapters. All options but --config and --overwrite may\n"
        "stand in a YAML file, with _ for -; those on the command line win. A\n"
        "training that was stopped goes on when it is started again.",
        **help_that_ends_with(
            shown("A line of examples.jsonl", [EXAMPLE]),
            shown("For example, and then", START),
        ),
    )
    data = OPTIONS["data"]
    command.add_argument("data", nargs="?", type=os.fspath, help=data.help)
    command.add_argument("--config", metavar="FILE", help="a YAML file of options")
    command.add_argument(
        "--overwrite",
        action="store_true",
        help="replace what an earlier training left in the folder",
    )
    for option in OPTIONS.values():
        if option is not data:
            _add(command, option)
    command.set_defaults(run="starting:train")


def _add_evaluate(commands: Any, common: argparse.ArgumentParser) -> None:
    command = commands.add_parser(
        "evaluate",
        parents=[common],
        help="scores of adapters on a file of examples, by feature value",
        **help_that_ends_with(shown("For example, and then", START[1:])),
    )
    _add_adapted(command)
    command.add_argument("data", type=os.fspath, help=OPTIONS["data"].help)
    command.add_argument(
        "--features",
        nargs="+",
        metavar="COLUMN",
        help="columns to score by (default: the features of the adapters)",
    )
    for name in ("prompt", "response", "sequence_length"):
        _add(command, OPTIONS[name])
    command.add_argument(
        "--metrics",
        nargs="+",
        default=["exact_match"],
        metavar="METRIC",
        help="of exact_match, token_f1, span_f1, chrf (default: exact_match)",
    )
    command.add_argument(
        "--limit", type=_positive, help="at most so many examples of each combination"
    )
    command.add_argument(
        "--batch-size", type=_positive, default=32, help="prompts at once (default: 32)"
    )
    command.add_argument(
        "--examples", action="store_true", help="with --json: every answer, too"
    )
    command.set_defaults(run="scoring:score")


def _add_chat(commands: Any, common: argparse.ArgumentParser) -> None:
    command = commands.add_parser(
        "chat",
        parents=[common],
        help="answers lines, with features that can be switched",
        description="Each line of stdin is a prompt of its own. /features language=sw\n"
        "switches features, /quit ends.",
        **help_that_ends_with(shown("For example, and then", START[2:])),
    )
    _add_adapted(command)
    add_features(command)
    _add(command, OPTIONS["sequence_length"])
    command.add_argument(
        "--sampler",
        choices=SAMPLERS,
        default="greedy",
        help="how tokens are chosen (default: greedy)",
    )
    command.set_defaults(run="chatting:chat")


def _add_adapted(command: argparse.ArgumentParser) -> None:
    """Adds adapters and their base."""
    command.add_argument(
        "file", help="an adapter file, its handle on a hub, or a folder of `train`"
    )
    for name in ("preset", "dtype", "template"):
        _add(command, OPTIONS[name])
    command.add_argument(
        "--any-base", action="store_true", help="do not compare base fingerprints"
    )


def _add(command: argparse.ArgumentParser, option: Option) -> None:
    """Adds an option, whose texts are read later: they may stand in a file, too."""
    text = option.help
    if option.default not in (None, []) and "default:" not in text:
        text += f" (default: {str(option.default).lower()})"
    command.add_argument(
        option.flag,
        nargs="+" if option.many else None,
        metavar=option.metavar,
        help=text.replace("%", "%%"),
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a positive number, not {text!r}")
    return int(text)
