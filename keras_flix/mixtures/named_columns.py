"""Which columns of a table are what; rows and cells that cannot be that are told."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_flix._utils.near_names import hint
from keras_flix.features.columns import (
    as_columns,
    check_read,
    column_names,
    described,
    form_of,
    selected,
    stacked_numbers,
)
from keras_flix.features.missing import is_missing

INT = re.compile(r"-?(0|[1-9]\d*)")
FLOAT = re.compile(INT.pattern + r"(\.\d+)?([eE][+-]?\d+)?")
"""Numbers as JSON writes them: `007` is a name."""
DELIMITERS = ",;\t|"
CONSTRUCTORS = {
    "columns": "from_dataframe",
    "frame": "from_dataframe",
    "records": "from_records",
    "dataset": "from_dataset",
}
"""By form of a table, the constructor of `Mixture` that reads it."""


PROMPTS, RESPONSES = "prompts", "responses"
"""What the columns of prompts and responses are called in a mixture."""
ARGUMENTS = "features=, prompt= and response="
"""What names columns, as errors say it."""


@dataclasses.dataclass(frozen=True)
class Names:
    """The names of a table's columns that go into a mixture.

    >>> Names("task", "question", None, ["id"]).stored
    {'task': 'task', 'question': 'prompts', 'id': 'id'}
    """

    features: Sequence[str]
    prompt: str | None
    response: str | None
    keep: Sequence[str]

    def __post_init__(self) -> None:
        for name in ("features", "keep"):
            given = getattr(self, name)
            given = [given] if isinstance(given, str) else list(given or ())
            object.__setattr__(self, name, given)
        named, stored = self._named, self.stored.values()
        if len(set(named)) < len(named) or len(set(stored)) < len(named):
            raise ValueError(
                "Each column must be one thing: a feature, the prompt, the response or "
                "one to keep, none of the last called 'prompts' or 'responses'. "
                f"Received: {dataclasses.asdict(self)}. Name each once, or rename it."
            )
        if not self.features or len(named) == len(self.features):
            raise ValueError(
                "A mixture must have a feature and a column besides. Received: "
                f'{dataclasses.asdict(self)}. Name them, such as features=["task"], '
                'prompt="question".'
            )

    @property
    def _named(self) -> list[str]:
        texts = [name for name in (self.prompt, self.response) if name is not None]
        return [*self.features, *texts, *self.keep]

    @functools.cached_property
    def stored(self) -> dict[str, str]:
        """By name in the table, the name in the mixture."""
        texts = {self.prompt: PROMPTS, self.response: RESPONSES}
        return {name: texts.get(name, name) for name in self._named}

    def check(self, found: Sequence[str], place: str = "", note: str = "") -> None:
        """Raises unless a table has all columns that are named."""
        missing = [name for name in self.stored if name not in found]
        if missing:
            raise ValueError(
                f"A table must have the columns {list(self.stored)}. Received: {place}"
                f"columns {list(found)}, without {missing[0]!r}."
                f"{hint(missing[0], found)}{note} Name those there are with "
                f"{ARGUMENTS}."
            )

    def text(self, name: str, text: Any, place: str) -> Any:
        """A text of a column; raises where it is none."""
        several = name == self.response and isinstance(text, (list, tuple)) and text
        texts = list(text) if several else [text]
        if not all(isinstance(one, str) and _encodes(one) for one in texts):
            value = None if is_missing(text) else text
            received = ascii(value) if isinstance(value, str) else described(value)
            raise ValueError(
                f"Every example must have a text in the column {name!r}. Received: "
                f"{place}{received}. Fill in the text (a number as `str(number)`), or "
                "leave the row out."
            )
        return texts if several else str(text)


def columns_of_table(table: Any, names: Names) -> dict[str, Any]:
    """The named columns of a table, under the names that they have in a mixture."""
    found = column_names(table)
    names.check(found)
    labels = set(names.stored).difference(names.keep)
    columns = dict(as_columns(selected(table, list(names.stored)), labels))
    for name in names.keep:
        columns[name] = stacked_numbers(columns[name])
    for name in filter(None, (names.prompt, names.response)):
        column = columns[name]
        texts = column.tolist() if isinstance(column, np.ndarray) else column
        columns[name] = [names.text(name, x, f"row {i}: ") for i, x in enumerate(texts)]
    return {stored: columns[name] for name, stored in names.stored.items()}


def columns_of_rows(rows: Iterable[tuple[str, Any]], names: Names) -> dict[str, Any]:
    """The named columns of dicts, each of which comes with its place."""
    columns: dict[str, list[Any]] = {name: [] for name in names.stored}
    texts = {names.prompt, names.response}
    for place, row in rows:
        if not isinstance(row, Mapping):
            raise ValueError(
                f"Every example must be a dict. Received: {place}{described(row)}. "
                "Correct or remove it."
            )
        missing = [name for name in columns if name not in row]
        if missing and not columns[missing[0]]:
            names.check(list(row), place)
        if missing:
            raise ValueError(
                f"Every example must have the entries {list(columns)}. Received: "
                f"{place}entries {list(row)}, without {missing[0]!r}. Write None (null "
                "in JSON) where it has no value of a feature."
            )
        for name, column in columns.items():
            value = row[name]
            column.append(names.text(name, value, place) if name in texts else value)
    if not next(iter(columns.values())):
        raise ValueError(
            "A table must have at least one row. Received: none. Look at how it was "
            "selected."
        )
    for name in names.keep:
        columns[name] = stacked_numbers(columns[name])
    return {stored: columns[name] for name, stored in names.stored.items()}


def columns_of_csv(path: Path, names: Names, delimiter: str) -> dict[str, Any]:
    """The named columns of a CSV file; empty cells are missing."""
    (place, header), *rows = _csv_rows(path, delimiter)
    other = [d for d in DELIMITERS if len(header) == 1 and d in header[0]]
    note = f" For this file, pass delimiter={other[0]!r}." if other else ""
    if len(set(header)) < len(header):
        raise ValueError(
            "The columns of a table must have different names. Received: "
            f"{place}{header}. Rename them."
        )
    names.check(header, place, note)
    if not rows:
        raise ValueError(
            f"A CSV file must have at least one row. Received: {place}no row besides "
            "the header. Look at how it was written."
        )
    columns = columns_of_rows(_csv_records(header, rows), names)
    return columns | {name: _numbers(columns[name]) for name in names.keep}


def rows_of_records(records: Any, constructor: str) -> Iterator[tuple[str, Any]]:
    """Dicts of any iterable, each with its place."""
    form = form_of(records)
    if form not in (None, "records") or not isinstance(records, Iterable):
        raise wrong_source(constructor, "dicts, one per example", records)
    if isinstance(records, (str, os.PathLike)):
        raise wrong_source(constructor, "dicts, one per example", records)
    return ((f"row {i}: ", record) for i, record in enumerate(records))


def checked_path(path: Any, constructor: str) -> Path:
    """A path; raises where the source is none."""
    if not isinstance(path, (str, os.PathLike)):
        raise wrong_source(constructor, "the path of a file", path)
    return Path(path).expanduser()


def wrong_source(constructor: str, required: str, source: Any) -> ValueError:
    """The error for a source that another constructor reads."""
    check_read(source)
    own = CONSTRUCTORS.get(form_of(source) or "")
    if isinstance(source, (str, os.PathLike)):
        own = "from_csv" if str(source).endswith((".csv", ".tsv")) else "from_jsonl"
    remedy = f" Use Mixture.{own}." if own not in (None, constructor) else ""
    return ValueError(
        f"`Mixture.{constructor}` must be given {required}. Received: "
        f"{described(source)}.{remedy}"
    )


def _csv_records(
    header: list[str], rows: Iterable[tuple[str, list[str]]]
) -> Iterator[tuple[str, dict[str, str | None]]]:
    for place, cells in rows:
        if len(cells) != len(header):
            raise ValueError(
                "Every row of a CSV file must have a cell per column. Received: "
                f"{place}{len(cells)} cells beside {len(header)} columns. Quote cells "
                "that hold the delimiter or a line break."
            )
        yield place, dict(zip(header, [x if x.strip() else None for x in cells]))


def _csv_rows(path: Path, delimiter: str) -> Iterator[tuple[str, list[str]]]:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"A CSV file must be text in UTF-8. Received: {path}, line {line}: "
            f"{error}. Save it as UTF-8."
        ) from None
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    empty = True
    while True:
        place = f"{path}, line {reader.line_num + 1}: "
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise ValueError(
                f"A CSV file must be well formed. Received: {place}{error}. Write "
                '`"` within a quoted cell as `""`; `csv.field_size_limit` admits '
                "longer cells."
            ) from None
        if cells is None:
            break
        if cells:
            empty = False
            yield place, cells
    if empty:
        raise ValueError(
            "A CSV file must begin with the names of its columns. Received: "
            f"{path}, line 1: an empty file. Look at how it was written."
        )


def _numbers(cells: Any) -> Any:
    """Cells that are all numbers, as an array."""
    if all(cell is not None and INT.fullmatch(cell) for cell in cells):
        return np.asarray([int(cell) for cell in cells])
    if all(cell is not None and FLOAT.fullmatch(cell) for cell in cells):
        return np.asarray([float(cell) for cell in cells])
    return cells


def _encodes(text: str) -> bool:
    """Whether a text has no lone surrogates, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
