"""What commands answer, as text, as tables of `rich` or as JSON; and their progress."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from keras_flix._utils.text_tables import aligned


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of texts under a title; the first row is the header."""

    title: str
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        return "\n".join([self.title, *aligned(self.rows).splitlines()])


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a command answers.

    Attributes:
        data: All of it, as JSON types.
        blocks: The same for people.
        code: The exit code: 0, or 1 for differences.
    """

    data: dict[str, Any]
    blocks: Sequence[str | Table]
    code: int = 0

    def show(self, as_json: bool) -> None:
        """Prints the answer: plain text unless to a terminal."""
        if as_json:
            print(json.dumps(self.data, indent=2, allow_nan=False))
            return
        rich = _rich(sys.stdout)
        for number, block in enumerate(self.blocks):
            if rich is None or isinstance(block, str):
                print(
                    ("\n" if number and isinstance(block, Table) else "") + str(block)
                )
            else:
                _print_table(rich, block)


def say(text: str) -> None:
    """Tells what a command is about to do."""
    print(text, file=sys.stderr, flush=True)


def on_stderr() -> contextlib.AbstractContextManager[Any]:
    """A block in which what Keras prints goes to stderr: stdout is for the answer."""
    return contextlib.redirect_stdout(sys.stderr)


def _rich(stream: Any) -> Any | None:
    """The package `rich` (extra `cli`), if the stream is a terminal and it is there."""
    if not stream.isatty():
        return None
    try:
        for name in ("console", "progress", "table", "text"):
            importlib.import_module(f"rich.{name}")
        return importlib.import_module("rich")
    except ImportError:
        return None


def _print_table(rich: Any, block: Table) -> None:
    header, *rows = block.rows
    table = rich.table.Table(title=block.title, title_justify="left")
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        # As text: a value may look like markup.
        table.add_row(*map(rich.text.Text, row))
    rich.console.Console().print(table)


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """Shows on a terminal how far a command is.

    Args:
        total: How many steps there are.

    Yields:
        What to call with a description when a step begins.
    """
    rich = _rich(sys.stderr)
    if rich is None:
        yield lambda description: None
        return
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(console=console, transient=True) as bar:
        task = bar.add_task("", total=total)
        begun = 0

        def begin(description: str) -> None:
            nonlocal begun
            bar.update(task, description=description, completed=begun)
            begun += 1

        yield begin
