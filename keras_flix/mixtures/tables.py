"""One table with features among its columns, as the datasets of a mixture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_flix._utils.imported_late import imported_late
from keras_flix._utils.near_names import hint
from keras_flix.features.columns import as_columns
from keras_flix.features.missing import is_missing, whole_numbers
from keras_flix.mixtures.dataset import Dataset


def datasets_of(table: Any, features: Sequence[str] | None) -> list[Dataset]:
    """The rows of a table, parted by their combination of values.

    Args:
        table: In a form that `as_columns` takes.
        features: The names of the columns that are features.

    Returns:
        One `Dataset` per combination, in the order in which they first occur.
    """
    columns = as_columns(table, [features] if isinstance(features, str) else features)
    names = _checked_names(columns, features)
    own = {name: column for name, column in columns.items() if name not in names}
    count = _row_count(own, names)
    entries = [entries_of(name, columns[name], count) for name in names]
    rows: dict[tuple[Any, ...], list[int]] = {}
    for row, combination in enumerate(zip(*entries)):
        rows.setdefault(combination, []).append(row)
    return [
        Dataset(
            {n: list(v) if isinstance(v, tuple) else v for n, v in zip(names, found)},
            {name: _taken(column, chosen) for name, column in own.items()},
        )
        for found, chosen in rows.items()
    ]


def _checked_names(
    columns: Mapping[str, Any], features: Sequence[str] | None
) -> list[str]:
    names = [features] if isinstance(features, str) else list(features or ())
    if not names:
        raise ValueError(
            "A mixture of a table must know which columns are features. Received: the "
            f"columns {list(columns)}. Name them, such as Mixture(table, "
            'features=["task", "language"]).'
        )
    for name in names:
        if name not in columns:
            raise ValueError(
                f"`features` must name columns of the table {list(columns)}. "
                f"Received: {name!r}.{hint(name, columns)}"
            )
    return names


def _row_count(own: Mapping[str, Any], features: Sequence[str]) -> int:
    lengths = {name: len(column) for name, column in own.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            "The columns of a table must be equally long. Received: lengths "
            f"{lengths}. Give every row an entry in every column."
        )
    count = next(iter(lengths.values()), 0)
    if not count:
        raise ValueError(
            "A table must have rows, and columns besides its features. Received: "
            f"{count} rows of the columns {list(own)} besides {list(features)}. Look "
            "at how it was selected, and at `features`."
        )
    return count


def entries_of(name: str, column: Any, count: int) -> list[Any]:
    """One hashable entry per row, from a column or from what holds for all rows."""
    column = _on_host(column)
    if column is None or isinstance(column, str):
        return [column] * count
    values = column.tolist() if isinstance(column, np.ndarray) else list(column)
    if len(values) != count:
        raise ValueError(
            "The columns of a table must be equally long. Received: "
            f"{len(values)} entries of {name!r} in a table of {count} rows. Give "
            "every row an entry in every column."
        )
    return [_hashable(name, value) for value in whole_numbers(values)]


def _hashable(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        raise ValueError(
            "A feature of a mixture must be one value or a list of values per row. "
            f"Received: {name}={value!r}. Weights of values go to the model directly, "
            "such as `model.fit(table)`."
        )
    if isinstance(value, (list, tuple, np.ndarray)):
        return tuple(_hashable(name, one) for one in value)
    return None if is_missing(value) else value


def _on_host(column: Any) -> Any:
    """A column as numpy or Python data; only who has a tensor needs Keras for that."""
    if column is None or isinstance(column, (str, list, tuple, np.ndarray)):
        return column
    return imported_late("keras_flix.features.host_values:host_value")(column)


def _taken(column: Any, rows: list[int]) -> Any:
    if isinstance(column, (list, tuple)):
        return [column[row] for row in rows]
    column = _on_host(column)
    return column[rows] if isinstance(column, np.ndarray) and column.ndim else column
