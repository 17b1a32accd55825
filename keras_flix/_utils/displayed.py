"""How objects show themselves: in a line, and in a notebook as tables."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

Rows = Sequence[Sequence[Any]]
"""The rows of a table, its header first."""

SHOWN_ROWS = 40
"""More rows of a table are counted, not shown."""
SHOWN_VALUES = 6
"""More values in a line are counted, not shown."""
SHOWN_CHARACTERS = 40
"""Longer names in a line are cut."""


class Displayed:
    """Shows what it holds in one line, and in a notebook as tables; never its data."""

    def _line(self) -> str:
        """What `repr` gives."""
        raise NotImplementedError

    def _tables(self) -> Iterable[tuple[str, Rows]]:
        """What a notebook shows below that line: tables with their titles."""
        return ()

    def __repr__(self) -> str:
        return self._line()

    def _repr_html_(self) -> str:
        return as_html(self._line(), self._tables())


def as_html(line: str, tables: Iterable[tuple[str, Rows]]) -> str:
    """A line and tables as HTML, in which every text is escaped.

    >>> as_html("Values", [("", [["task"], ["<qa>"]])])
    '<div><p><code>Values</code></p><table><thead><tr><th>task</th></tr></thead>...'
    """
    line = f"<p><code>{_escaped(line)}</code></p>"
    return "".join(["<div>", line, *_html(tables), "</div>"])


def _html(tables: Iterable[tuple[str, Rows]]) -> Iterator[str]:
    for title, (header, *rows) in tables:
        if title:
            yield f"<p>{_escaped(title)}</p>"
        yield f"<table><thead>{_row(header, 'th')}</thead><tbody>"
        yield from (_row(row, "td") for row in rows[:SHOWN_ROWS])
        yield "</tbody></table>"
        if len(rows) > SHOWN_ROWS:
            yield f"<p>and {len(rows) - SHOWN_ROWS} more</p>"


def _row(cells: Sequence[Any], tag: str) -> str:
    inside = "".join(f"<{tag}>{_escaped(cell)}</{tag}>" for cell in cells)
    return f"<tr>{inside}</tr>"


def _escaped(text: Any) -> str:
    return html.escape(str(text))


def some(values: Iterable[Any]) -> str:
    """The first values in brackets, each cut where it is long, and how many there are.

    >>> some(["en", "sw"]), some(range(100))
    ("['en', 'sw']", '[0, 1, 2, 3, 4, 5, ... 100 in all]')
    """
    values = list(values)
    shown = [cut(repr(value)) for value in islice(values, SHOWN_VALUES)]
    if len(values) > SHOWN_VALUES:
        shown.append(f"... {len(values)} in all")
    return f"[{', '.join(shown)}]"


def cut(text: str) -> str:
    """A text, cut where it is long.

    >>> cut("a" * 50)
    'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...'
    """
    if len(text) <= SHOWN_CHARACTERS:
        return text
    return f"{text[: SHOWN_CHARACTERS - 3]}..."


def shown(value: Any) -> str:
    """How a table names a value; `None` is absence."""
    return "(none)" if value is None else str(value)


def count(number: int, noun: str) -> str:
    """A number with its noun, which takes an "s" for more than one.

    >>> count(1, "layer"), count(1234, "parameter")
    ('1 layer', '1,234 parameters')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
