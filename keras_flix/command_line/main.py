"""`keras-flix`: runs a command, and what it exits with.

0: done. 1: `diff` found differences. 2: the arguments, a file or the machine do not
allow it; one line on stderr says why.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from keras_flix._utils.imported_late import imported_late
from keras_flix.command_line.parser import PROGRAM, parser

if TYPE_CHECKING:
    from keras_flix.command_line.output import Answer


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: Those after the program's name; `None` takes `sys.argv`.

    Returns:
        The exit code.
    """
    if "_ARGCOMPLETE" in os.environ:
        # A shell asks how a command goes on; the process ends here.
        imported_late("keras_flix.command_line.completing:complete")(parser())
    parsed = parser().parse_args(arguments)
    try:
        # What a command needs is imported when it runs.
        command = imported_late(f"keras_flix.command_line.{parsed.run}")
        answer: Answer | int = command(parsed)
        if isinstance(answer, int):
            return answer
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
