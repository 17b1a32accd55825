"""The order in which a task's examples train, where they are lists or arrays.

KerasHub batches them as they come, whatever `shuffle` says, and lets TensorFlow
tokenize them where it has no other pipeline, which may differ from `generate`. So they
are batched here: only their order is drawn anew, the data is never copied.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_flix import _compat
from keras_flix.features.host_values import host_value
from keras_flix.models.adapted.cut_counts import CutTexts
from keras_flix.models.adapted.data_sources import BatchFunction, to_numpy

DEFAULT_BATCH_SIZE = 32
"""As in Keras and KerasHub."""


class Drawn(NamedTuple):
    """Passes that are drawn, instead of each example once.

    Attributes:
        rows: By the number of a pass, which examples it has.
        batches: How many batches a pass has, all of them full.
    """

    rows: Callable[[int], np.ndarray]
    batches: int


class Examples(keras.utils.PyDataset):
    """Examples in memory, as batches that went through a function.

    A batch depends on its number alone, so whoever reads ahead, on whatever thread,
    gets the same batches.

    Args:
        data: `(x, y, sample_weight)` or less of it: tuples and dicts of lists, arrays
            and tensors with one entry per example. A list is one column.
        batch_size: Examples per batch, 32 by default.
        function: Applied to each batch as a tuple.
        texts: Where cut texts are counted, by row.
        seed: Of the order. `None` keeps that of the data.
        first_batch: Tells how many batches came before number 0, as where training is
            resumed. If given, pass follows pass without an end, each in a new order.
        drawn: What passes consist of, if not of each example once.
    """

    def __init__(
        self,
        data: tuple[Any, ...],
        batch_size: int | None,
        function: BatchFunction,
        *,
        texts: CutTexts | None = None,
        seed: int | None = None,
        first_batch: Callable[[], int] | None = None,
        drawn: Drawn | None = None,
    ) -> None:
        super().__init__()
        _compat.number_sources()
        self.data = tuple(_map_columns(part, _on_host) for part in data)
        self.count = _count(self.data)
        self.batch_size = checked_batch_size(batch_size)
        self.drawn = drawn
        self.per_pass = (
            -(-self.count // self.batch_size) if drawn is None else drawn.batches
        )
        self.function = function
        self.texts = texts
        if texts is not None:
            texts.size = self.count
        self.seed = seed
        self.first_batch = first_batch
        self._order = functools.lru_cache(maxsize=2)(self._new_order)

    @property
    def num_batches(self) -> int | None:
        return self.per_pass if self.first_batch is None else None

    def rows(self, index: int) -> np.ndarray:
        """Which examples are in a batch."""
        index += self.first_batch() if self.first_batch is not None else 0
        number, place = divmod(index, self.per_pass)
        start = place * self.batch_size
        end = start + self.batch_size
        if self.seed is None and self.drawn is None:
            return np.arange(start, min(end, self.count))
        return self._order(number)[start:end]

    def _new_order(self, number: int) -> np.ndarray:
        if self.drawn is not None:
            return self.drawn.rows(number)
        seed = [self.seed or 0, number]
        return np.random.default_rng(seed).permutation(self.count)

    def __getitem__(self, index: int) -> Any:
        rows = self.rows(index)
        take = functools.partial(_take, rows=rows)
        batch = tuple(_map_columns(part, take) for part in self.data)
        if self.texts is None:
            return to_numpy(self.function(batch))
        with self.texts.of_rows(rows):
            return to_numpy(self.function(batch))


def new_seed() -> int:
    """A seed that follows `keras.utils.set_random_seed`."""
    return random.randrange(2**31)


def checked_batch_size(batch_size: Any) -> int:
    if batch_size is None:
        return DEFAULT_BATCH_SIZE
    if isinstance(batch_size, bool) or int(batch_size) != batch_size or batch_size < 1:
        raise ValueError(
            "A batch must have at least one example. Received: "
            f"batch_size={batch_size!r}. Pass a positive integer."
        )
    return int(batch_size)


def capped_steps(steps: int | None, examples: Examples) -> int:
    """Batches per epoch: as many as asked for, and there are."""
    return examples.per_pass if steps is None else min(steps, examples.per_pass)


def split_examples(
    data: tuple[Any, ...], share: float
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """All but the last examples, and these, as `validation_split` does it."""
    count = _count(data)
    at = int(count * (1.0 - share))
    if not 0 < at < count:
        raise ValueError(
            "`validation_split` must leave examples on both sides. Received: "
            f"validation_split={share!r} of {count} examples. Choose another share, "
            "or pass `validation_data`."
        )
    return (
        tuple(_map_columns(part, lambda x: x[:at]) for part in data),
        tuple(_map_columns(part, lambda x: x[at:]) for part in data),
    )


def _map_columns(part: Any, function: Callable[[Any], Any]) -> Any:
    """`function` of each column; tuples and dicts are structure, lists are columns."""
    if isinstance(part, tuple):
        return tuple(_map_columns(x, function) for x in part)
    if isinstance(part, Mapping):
        return {key: _map_columns(x, function) for key, x in part.items()}
    return part if part is None else function(part)


def _on_host(column: Any) -> Any:
    """A column from which rows can be taken, without a copy where it is on the host."""
    if isinstance(column, list):
        return column
    if hasattr(column, "to_list") and hasattr(column, "flat_values"):
        return column.to_list()  # a RaggedTensor of TensorFlow
    return host_value(column)


def _take(column: Any, rows: np.ndarray) -> Any:
    if isinstance(column, list):
        return _as_array([column[i] for i in rows])
    taken = column[rows]
    # Preprocessors take strings of Python.
    return _texts(taken.tolist()) if taken.dtype.kind in "OSU" else taken


def _as_array(values: list[Any]) -> Any:
    """Numbers as an array, of the types that backends compute in; texts as they are."""
    first: Any = values
    while isinstance(first, (list, tuple)) and first:
        first = first[0]
    if first is None or isinstance(first, (str, bytes)):
        return _texts(values)
    try:
        array = np.asarray([host_value(value) for value in values])
    except ValueError:  # of several lengths
        return values
    if hasattr(first, "dtype") or array.dtype.kind not in "if":
        return array if array.dtype.kind != "O" else values
    if array.dtype.kind == "f":
        return array.astype("float32")
    # 64 bits, as numpy reads them, where 32 do not hold them.
    narrow = array.astype("int32")
    return narrow if (narrow == array).all() else array


def _texts(values: Any) -> Any:
    if isinstance(values, bytes):
        return values.decode("utf-8")
    return [_texts(value) for value in values] if isinstance(values, list) else values


def _count(data: Any) -> int:
    """How many examples there are; raises unless all columns have as many."""
    counts: dict[str, int] = {}

    def add(part: Any, name: str) -> None:
        if isinstance(part, tuple):
            for i, x in enumerate(part):
                add(x, f"{name}[{i}]")
        elif isinstance(part, Mapping):
            for key, x in part.items():
                add(x, str(key))
        elif part is not None:
            shape = getattr(part, "shape", None)
            if isinstance(part, (str, bytes)) or (shape is not None and not len(shape)):
                raise ValueError(
                    "`fit`, `evaluate` and `predict` take a batch of examples. "
                    f"Received: a single value of {name!r}. Wrap it in a list."
                )
            counts[name] = len(part) if shape is None else int(shape[0])

    for part, name in zip(data, ("x", "y", "sample_weight")):
        add(part, name)
    if not counts or not max(counts.values()):
        raise ValueError(
            "There must be at least one example. Received: "
            f"{counts or 'no columns'}. Pass lists or arrays with one entry each."
        )
    if len(set(counts.values())) > 1:
        raise ValueError(
            "All columns must have one entry per example. Received: "
            + ", ".join(f"{n} of {name!r}" for name, n in counts.items())
            + ". Pass equally many."
        )
    return next(iter(counts.values()))
