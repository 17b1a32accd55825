"""The parser of `keras-flix`, and what it exits with.

0: done. 1: `diff` found differences. 2: the arguments, a file or the machine do not
allow it; one line on stderr says why.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from keras_flix.command_line.bench import add_bench_command
from keras_flix.command_line.files import add_file_commands
from keras_flix.command_line.models import add_model_commands
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
    add_file_commands(commands, common)
    add_model_commands(commands, common)
    add_bench_command(commands, common)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: Those after the program's name; `None` takes `sys.argv`.

    Returns:
        The exit code.
    """
    parsed = parser().parse_args(arguments)
    try:
        answer = parsed.run(parsed)
        answer.show(parsed.json)
        sys.stdout.flush()
    except BrokenPipeError:
        # Such as `| head`: nobody reads on, which is no error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        # Whatever Keras, KerasHub and the hubs' clients raise.
        if parsed.traceback:
            raise
        text = " ".join(str(error).split()) or type(error).__name__
        print(f"{PROGRAM}: {text}", file=sys.stderr)
        return 2
    return int(answer.code)
