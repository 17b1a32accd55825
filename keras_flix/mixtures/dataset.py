"""`Dataset`: examples that share their features."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_flix._utils.displayed import Displayed, Rows, count
from keras_flix.features.encoding import ABSENT, IntegerValue
from keras_flix.features.schema import check_feature
from keras_flix.features.values import Value, plain_value
from keras_flix.mixtures.not_an_array import NotAnArray


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Dataset(NotAnArray, Displayed):
    """Examples that have the same features.

    Args:
        features: By feature, the value of all these examples: a string or an
            integer, `None` where they have none, or a list of several. An integer is
            a value, as of a feature of integer values, and no id.
        columns: By name, one entry per example: lists (of strings) or numpy
            arrays with a leading axis of examples. All are equally long.

    Example:

    >>> dataset = Dataset(
    ...     {"task": "qa", "language": "sw"},
    ...     {"prompts": ["a?", "b?", "c?"], "responses": ["A", "B", "C"]},
    ... )
    >>> len(dataset)
    3
    >>> dataset.select([2, 0]).columns["responses"]
    ['C', 'A']
    """

    features: Mapping[str, Value | Sequence[Value] | None]
    columns: Mapping[str, Any]

    def __post_init__(self) -> None:
        features = {
            name: _checked_value(name, value) for name, value in self.features.items()
        }
        columns = {
            name: _checked_column(name, column) for name, column in self.columns.items()
        }
        object.__setattr__(self, "features", features)
        object.__setattr__(self, "columns", columns)
        if not features or not columns:
            raise ValueError(
                "A dataset must have at least one feature and one column. Received: "
                f"features {sorted(features)} and columns {sorted(columns)}. Write "
                'such as Dataset({"task": "qa"}, {"prompts": [...], '
                '"responses": [...]}).'
            )
        clash = sorted(set(features) & set(columns))
        if clash:
            raise ValueError(
                "Features and columns must have different names, since both are "
                f"entries of one input dict. Received: {clash[0]!r} as both. Rename "
                "one of them."
            )
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(
                "The columns of a dataset must be equally long. Received: lengths "
                f"{lengths}. Give every example an entry in every column."
            )
        if not len(self):
            raise ValueError(
                "A dataset must have at least one example. Received: none, with "
                f"features {features}. Leave the dataset out of the mixture."
            )

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def _line(self) -> str:
        return (
            f"Dataset({dict(self.features)}, {count(len(self), 'example')} of "
            f"{list(self.columns)})"
        )

    def _tables(self) -> Iterable[tuple[str, Rows]]:
        rows = [[name, _kind(column)] for name, column in self.columns.items()]
        return [("", [["column", "what"], *rows])]

    def select(self, rows: Any) -> Dataset:
        """The dataset of some of the examples.

        Args:
            rows: Whatever indexes a numpy array with one axis: positions, a
                boolean mask or a slice.

        Returns:
            A new `Dataset`, with the examples in the order of `rows`.
        """
        if isinstance(rows, Sequence):
            rows = np.asarray(rows, None if len(rows) else "int64")
        chosen = np.arange(len(self))[rows]
        return Dataset(
            self.features,
            {name: _taken(column, chosen) for name, column in self.columns.items()},
        )

    def has(self, combination: Mapping[str, Value | None]) -> bool:
        """Whether these examples have the values of a combination.

        >>> dataset = Dataset({"task": "qa", "language": "sw"}, {"prompts": ["a?"]})
        >>> dataset.has({"task": "qa"}), dataset.has({"language": "yo"})
        (True, False)
        """
        for name in combination:
            check_feature(name, self.features, "A combination")
        return all(
            plain_value(value) in map(plain_value, values_of(self.features[name]))
            if value is not None
            else not values_of(self.features[name])
            for name, value in combination.items()
        )


def values_of(entry: Any) -> tuple[Any, ...]:
    """The values of one feature of a dataset: none, one or several."""
    if entry is None:
        return ()
    several = isinstance(entry, (list, tuple, Mapping))
    return tuple(entry) if several else (entry,)


def _checked_value(name: str, value: Any) -> Any:
    several = isinstance(value, (list, tuple))
    values = list(value) if several else [] if value is None else [value]
    values = [_as_value(one) for one in values]
    if {type(one) for one in values} not in (set(), {str}, {IntegerValue}):
        raise ValueError(
            "A feature of a dataset must be a string or an integer, a list of several "
            f"of one kind, or None for absent. Received: {name}={value!r}. Convert "
            "values with str(value) or int(value)."
        )
    if "" in values or ABSENT in values or len(set(values)) != len(values):
        raise ValueError(
            "The values of a dataset's feature must be different, none of them empty "
            f"or {ABSENT}. Received: {name}={value!r}. Write None for absent."
        )
    return values if several else values[0] if values else None


def _as_value(value: Any) -> Any:
    if isinstance(value, str):
        return plain_value(value)
    is_int = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return IntegerValue(value) if is_int else value


def _checked_column(name: str, column: Any) -> Any:
    if isinstance(column, np.ndarray) and column.ndim:
        return column
    if isinstance(column, (list, tuple)):
        return list(column)
    raise ValueError(
        "A column must be a list or a numpy array with a leading axis of examples. "
        f"Received: {name} of type {type(column).__name__}. Convert it with "
        "list(...) or np.asarray(...)."
    )


def _taken(column: Any, rows: np.ndarray) -> Any:
    return [column[row] for row in rows] if isinstance(column, list) else column[rows]


def check_kinds(datasets: Sequence[Dataset]) -> None:
    """Raises unless the values of each feature are all strings or all integers."""
    for name in datasets[0].features:
        found = {
            type(value): value
            for dataset in datasets
            for value in values_of(dataset.features[name])
        }
        if len(found) > 1:
            one, other = found.values()
            raise ValueError(
                "The values of a mixture's feature must be all strings or all integers."
                f" Received: {name!r} with {one!r} and {other!r}. Convert some with "
                "str(value) or int(value)."
            )


def check_alike(first: Dataset, other: Dataset, position: int) -> None:
    """Raises unless two datasets fit into one batch."""
    for label, left, right, remedy in (
        ("features", first.features, other.features, "State absence as None."),
        ("columns", first.columns, other.columns, "Give every dataset all of them."),
    ):
        if set(left) != set(right):
            raise ValueError(
                f"The datasets of a mixture must have the same {label}. Received: "
                f"{sorted(left)} and, in dataset {position}, {sorted(right)}. {remedy}"
            )
    for name, column in first.columns.items():
        kinds = [_kind(column), _kind(other.columns[name])]
        if kinds[0] != kinds[1]:
            raise ValueError(
                "The columns of a mixture must be lists, or arrays of one shape, in "
                f"all datasets. Received: {name!r} as {kinds[0]} and, in dataset "
                f"{position}, as {kinds[1]}. Convert or pad one of them."
            )
        # Of numbers and text in one array, numpy would make text.
        if not isinstance(column, list):
            dtypes = column.dtype, other.columns[name].dtype
            if {"text", "numbers"} <= {_content(dtype) for dtype in dtypes}:
                raise ValueError(
                    "The arrays of a column must hold numbers or text, the same in "
                    f"all datasets. Received: {name!r} of dtype {dtypes[0]} and, in "
                    f"dataset {position}, of dtype {dtypes[1]}. Convert one of them."
                )


def _kind(column: Any) -> str:
    if isinstance(column, list):
        return "a list"
    return f"an array with examples of shape {column.shape[1:]}"


def _content(dtype: np.dtype) -> str:
    if dtype.kind in "biufc":
        return "numbers"
    return "text" if dtype.kind in "SU" else "objects"


def gathered(arrays: Sequence[np.ndarray], places: np.ndarray) -> np.ndarray:
    """Rows of several arrays, without joining these."""
    dtype = np.result_type(*arrays)
    rows = np.empty((len(places), *arrays[0].shape[1:]), dtype)
    for i in np.unique(places[:, 0]):
        chosen = places[:, 0] == i
        rows[chosen] = arrays[i][places[chosen, 1]]
    return rows
