"""Tables of every form as a dict of columns, which all entry points work on.

Pandas, polars, pyarrow and Hugging Face Datasets are looked up, never imported: who
passes a table of theirs has imported them.
"""

from __future__ import annotations

import numbers
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from keras_flix.features.missing import is_missing

FORMS = (
    "a dict of columns, a list of dicts, a DataFrame (pandas, polars), a pyarrow "
    "table or a Hugging Face dataset"
)
SHOWN = 60
"""How many characters of one text or number an error shows."""

UNREAD = {
    ("datasets", "IterableDataset"): (
        "a stream, which is as long as it likes",
        "Collect what fits into memory, such as `list(stream.take(10_000))`, or write "
        "a generator of batches",
    ),
    ("datasets", "DatasetDict"): (
        "a dict of whole datasets",
        "Choose one, such as data['train']",
    ),
    ("datasets", "IterableDatasetDict"): (
        "a dict of streams",
        "Choose one, such as `list(data['train'].take(10_000))`",
    ),
    ("polars", "LazyFrame"): ("a query", "Run it with `.collect()`"),
    ("pyarrow", "RecordBatchReader"): ("a stream", "Read it with `.read_all()`"),
}
"""Look like tables and are none yet: what they are, and what to do."""


def is_table(data: Any) -> bool:
    """Whether `as_columns` makes columns of something; a dict is its own.

    >>> is_table([{"task": "qa"}]), is_table({"task": ["qa"]}), is_table(["qa"])
    (True, True, False)
    """
    return form_of(data) is not None


def form_of(data: Any) -> str | None:
    """`"columns"`, `"records"`, `"frame"` or `"dataset"`; `None` for what is no table.

    >>> form_of([{"task": "qa"}]), form_of({"task": ["qa"]}), form_of(["qa"])
    ('records', 'columns', None)
    """
    if isinstance(data, Mapping):
        return "columns"
    if _is_records(data):
        return "records"
    if _is_frame(data):
        return "frame"
    return "dataset" if _is_a(data, "datasets", "Dataset") else None


def is_split_dict(data: Any) -> bool:
    """Whether something is a dict of the splits of a Hugging Face dataset."""
    return _is_a(data, "datasets", "DatasetDict", "IterableDatasetDict")


def column_names(table: Any) -> list[Any]:
    """The names of the columns of a table that is none of records."""
    check_read(table)
    return list(table) if isinstance(table, Mapping) else _names(table)


def selected(table: Any, names: Sequence[str]) -> Any:
    """A table of some of its columns; the others are not read."""
    if isinstance(table, Mapping):
        return {name: table[name] for name in names}
    if _is_a(table, "datasets", "Dataset"):
        return table.select_columns(list(names))
    if _is_a(table, "pyarrow", "Table", "RecordBatch"):
        return table.select(list(names))
    return table[list(names)]


def label_names(table: Any) -> dict[str, list[str]]:
    """The names of the classes, by column of class labels of a Hugging Face dataset."""
    types = table.features if _is_a(table, "datasets", "Dataset") else {}
    return {n: t.names for n, t in types.items() if _is_a(t, "datasets", "ClassLabel")}


def as_columns(data: Any, labels: Collection[str] | None = ()) -> Any:
    """A table of any form as a dict of columns.

    Numbers, and lists of numbers that are equally long, become arrays; all else becomes
    lists, with `None`, NaN or NA where an entry is missing. Nothing that is a list or
    an array already is copied.

    Args:
        data: A table in one of the `FORMS`, or what is none, such as arrays.
        labels: Names of columns whose class labels, of a Hugging Face dataset, are
            wanted by name, as those of features of strings: their numbers are no ids.
            `None` for all of them.

    Returns:
        A dict from name to a list or an array with one entry per row. What is no table
        is returned as it is, and so is a dict of lists, arrays and tensors.

    Raises:
        ValueError: If records differ in their keys, names of columns are repeated or no
            strings, or a table must be read first, such as a stream.

    Example:

    >>> as_columns([{"prompts": "a?", "id": 1}, {"prompts": "b?", "id": 2}])
    {'prompts': ['a?', 'b?'], 'id': array([1, 2])}
    """
    # First: a dict of datasets is a dict, too.
    check_read(data)
    if isinstance(data, Mapping):
        read, changed = {}, False
        for name, column in data.items():
            read[name] = as_column(column)
            if _is_a(column, "datasets", "Column") and _wanted(name, labels):
                read[name] = _named(read[name], column.features)
            changed = changed or read[name] is not column
        return read if changed else data
    if _is_records(data):
        return _columns_of_records(data)
    if _is_a(data, "datasets", "Dataset"):
        # All at once: each row that is asked for alone is decoded alone.
        read = {name: _stacked(c) for name, c in as_columns(data[:]).items()}
        for name in label_names(data):
            if _wanted(name, labels):
                read[name] = _named(read[name], data.features[name])
        return read
    if _is_frame(data):
        return _columns_of_frame(data)
    return data


def _wanted(name: str, labels: Collection[str] | None) -> bool:
    return labels is None or name in labels


def _named(ids: Any, kind: Any) -> Any:
    """The names of class labels, `None` where one is missing; other columns as is."""
    if not _is_a(kind, "datasets", "ClassLabel"):
        return ids
    known = (None if is_missing(i) or i < 0 else int(i) for i in ids)
    return [None if i is None else kind.names[i] for i in known]


def as_column(values: Any) -> Any:
    """One column as a list or an array; what another library did not make, as it is.

    >>> column = ["qa", None]
    >>> as_column(column) is column
    True
    """
    if type(values) in (list, np.ndarray):
        return values
    if _is_a(values, "datasets", "Column"):
        return as_column(_stacked(values[:]))
    if _is_a(values, "pandas", "Series", "Index"):
        if isinstance(values.dtype, np.dtype) and values.dtype.kind in "biuf":
            return values.to_numpy()
        return _stacked(values.tolist())
    if _is_a(values, "polars", "Series"):
        if values.dtype.is_numeric() and not values.null_count():
            return values.to_numpy()
        return _stacked(values.to_list())
    if _is_a(values, "pyarrow", "Array", "ChunkedArray"):
        if _is_numeric(values.type) and not values.null_count:
            return _to_numpy(values)
        return _stacked(values.to_pylist())
    return values


def described(data: Any) -> str:
    """What kind of data something is, without the data.

    >>> described({"task": ["qa"], "prompts": ["a?"]})
    "a dict with the entries ['task', 'prompts']"
    >>> described([1, 2])
    'a list of 2'
    >>> described("qa")
    "'qa'"
    """
    if data is None or isinstance(data, (str, bytes, numbers.Number)):
        return repr(data) if len(repr(data)) <= SHOWN else f"{repr(data)[:SHOWN]}..."
    kind = type(data).__name__
    if isinstance(data, Mapping):
        return f"a {kind} with the entries {list(data)}"
    if _is_records(data):
        return f"a {kind} of {len(data)} dicts with the entries {list(data[0])}"
    if _is_frame(data) or _is_a(data, "datasets", "Dataset"):
        return f"a {kind} with the columns {_names(data)}"
    if isinstance(data, (list, tuple)):
        return f"a {kind} of {len(data)}"
    return f"a {kind}"


def _is_a(data: Any, package: str, *names: str) -> bool:
    module = sys.modules.get(package)
    if module is None:
        return False
    classes = (getattr(module, name, None) for name in names)
    return any(isinstance(cls, type) and isinstance(data, cls) for cls in classes)


def _is_records(data: Any) -> bool:
    """Not a list of several inputs, or of inputs and targets, that are dicts each."""
    if not isinstance(data, list) or not data:
        return False
    first, last = data[0], data[-1]
    both = isinstance(first, Mapping) and isinstance(last, Mapping)
    return both and (first is last or not first.keys().isdisjoint(last))


def _is_frame(data: Any) -> bool:
    return (
        _is_a(data, "pandas", "DataFrame")
        or _is_a(data, "polars", "DataFrame")
        or _is_a(data, "pyarrow", "Table", "RecordBatch")
    )


def check_read(data: Any) -> None:
    """Raises where something looks like a table and must be read first."""
    if type(data) in (dict, list, np.ndarray):
        return
    for (package, name), (kind, remedy) in UNREAD.items():
        if _is_a(data, package, name):
            raise ValueError(
                f"A table must be {FORMS}. Received: a {package}.{name}, {kind}. "
                f"{remedy}."
            )


def _names(frame: Any) -> list[Any]:
    arrow = _is_a(frame, "pyarrow", "Table", "RecordBatch")
    if arrow or _is_a(frame, "datasets", "Dataset"):
        return list(frame.column_names)
    return list(frame.columns)


def _columns_of_frame(frame: Any) -> dict[str, Any]:
    names = _names(frame)
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong or len(set(names)) < len(names):
        raise ValueError(
            "The columns of a table must have different names, all of them strings. "
            f"Received: {names}. Rename them."
        )
    arrow = _is_a(frame, "pyarrow", "Table", "RecordBatch")
    return {n: as_column(frame.column(n) if arrow else frame[n]) for n in names}


def _columns_of_records(records: Sequence[Any]) -> dict[str, Any]:
    names = records[0].keys()
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for i, record in enumerate(records):
        if not isinstance(record, Mapping) or record.keys() != names:
            found = list(record) if isinstance(record, Mapping) else type(record)
            raise ValueError(
                "The dicts of a list must all have the same entries. Received: "
                f"{list(names)} and, at row {i}, {found}. Write None where a row has "
                "no value of a feature."
            )
        for name, column in columns.items():
            column.append(record[name])
    return {name: _stacked(column) for name, column in columns.items()}


def stacked_numbers(values: Any) -> Any:
    """A list of numbers, or of equally long lists of them, as an array.

    >>> stacked_numbers([[1, 2], [3, 4]]).shape, stacked_numbers(["a?"])
    ((2, 2), ['a?'])
    """
    first = values
    while isinstance(first, (list, tuple)) and first:
        first = first[0]
    return _stacked(values) if isinstance(first, numbers.Number) else values


def _stacked(entries: Any) -> Any:
    """Numbers as an array, if each row has as many; otherwise the entries as they are.

    >>> _stacked([[1, 2], [3, 4]]).shape
    (2, 2)
    >>> _stacked([[1, 2], [3]]), _stacked([1, None]), _stacked([[], []])
    ([[1, 2], [3]], [1, None], [[], []])
    """
    if not isinstance(entries, list) or not entries:
        return entries
    first = entries[0]
    try:
        if _is_array(first):
            array = np.stack([np.asarray(entry) for entry in entries])
        else:
            while isinstance(first, (list, tuple)) and first:
                first = first[0]
            if not isinstance(first, numbers.Number) and not _is_array(first):
                return entries
            array = np.asarray(entries)
    except (ValueError, TypeError, RuntimeError, OverflowError):
        # Rows of several lengths, or what is missing among numbers.
        return entries
    if array.dtype.kind == "f" and not _is_exact(entries, array):
        return entries
    return array if array.dtype.kind in "biuf" and array.size else entries


def _is_exact(entries: Any, array: np.ndarray) -> bool:
    """Whether floats hold the integers of a list: beside a NaN, large ones do not."""
    if array.ndim != 1:
        return True
    integers = [isinstance(entry, numbers.Integral) for entry in entries]
    if not any(integers) or np.max(np.abs(array[integers])) <= 2**53:
        return True
    return all([int(x) == e for x, e, i in zip(array, entries, integers) if i])


def _is_array(entry: Any) -> bool:
    """Whether one row is an array, a tensor, or an image of PIL."""
    arrays = ("__array__", "__array_interface__")
    return not isinstance(entry, str) and any(hasattr(entry, name) for name in arrays)


def _is_numeric(dtype: Any) -> bool:
    types = sys.modules["pyarrow"].types
    return bool(types.is_integer(dtype) or types.is_floating(dtype))


def _to_numpy(values: Any) -> np.ndarray:
    chunked = _is_a(values, "pyarrow", "ChunkedArray")
    return values.to_numpy() if chunked else values.to_numpy(zero_copy_only=False)
