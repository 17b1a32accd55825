"""Maps a function over the batches of any data source that Keras takes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_flix import _compat
from keras_flix.features.host_values import host_value

BatchFunction = Callable[[tuple[Any, ...]], tuple[Any, ...]]
"""From one batch `(x,)`, `(x, y)` or `(x, y, sample_weight)` to another."""


def map_batches(source: Any, function: BatchFunction, ahead: bool = False) -> Any:
    """A data source of the same kind whose batches went through `function`.

    Args:
        source: A `tf.data.Dataset`, `keras.utils.PyDataset`, grain dataset or
            loader, torch `DataLoader`, or a generator.
        function: Applied to each batch as a tuple.
        ahead: Whether `tf.data` is to map several batches at a time, ahead of time.

    Returns:
        The new source. `source` itself is not changed.
    """
    kind = _compat.source_kind(source)
    if kind == "tf":
        auto = -1 if ahead else None  # `tf.data.AUTOTUNE`
        mapped = source.map(lambda *batch: function(batch), num_parallel_calls=auto)
        return mapped.prefetch(auto) if ahead else mapped
    if kind == "grain_dataset":
        return source.map(lambda batch: function(as_batch(batch)))
    if kind == "py_dataset":
        return _MappedPyDataset(source, function)
    if kind == "torch":
        return _mapped_data_loader(source, function)
    if kind == "grain_loader":
        return _mapped_grain_loader(source, function)
    if kind == "generator":
        return (to_numpy(function(as_batch(batch))) for batch in source)
    raise ValueError(
        "A data source must be one that Keras takes: arrays, tf.data, PyDataset, "
        f"grain, a torch DataLoader or a generator. Received: {type(source)}. "
        "Convert it to one of these."
    )


def as_batch(batch: Any) -> tuple[Any, ...]:
    """A batch as a tuple; inputs alone become `(x,)`."""
    return tuple(batch) if isinstance(batch, (tuple, list)) else (batch,)


def to_numpy(batch: Any) -> Any:
    """A batch with numpy leaves, which every backend and process can take."""

    def convert(x: Any) -> Any:
        return x if x is None else np.asarray(host_value(x))

    return tree.map_structure(convert, batch)


class _MappedPyDataset(keras.utils.PyDataset):
    """A `PyDataset` seen through a function."""

    def __init__(self, source: keras.utils.PyDataset, function: BatchFunction) -> None:
        super().__init__(
            workers=source.workers,
            use_multiprocessing=source.use_multiprocessing,
            max_queue_size=source.max_queue_size,
        )
        _compat.number_sources()
        self.source = source
        self.function = function

    def __getitem__(self, index: int) -> Any:
        return to_numpy(self.function(as_batch(self.source[index])))

    @property
    def num_batches(self) -> int | None:
        return self.source.num_batches

    def on_epoch_begin(self) -> None:
        self.source.on_epoch_begin()

    def on_epoch_end(self) -> None:
        self.source.on_epoch_end()


def _mapped_data_loader(loader: Any, function: BatchFunction) -> Any:
    import torch

    collate = loader.collate_fn

    def mapped_collate(samples: Any) -> Any:
        batch = to_numpy(function(as_batch(collate(samples))))
        return tree.map_structure(torch.as_tensor, batch)

    mapped = copy.copy(loader)
    # Persistent workers would go on with the loader's own function.
    mapped._iterator = None
    mapped.collate_fn = mapped_collate
    return mapped


def _mapped_grain_loader(loader: Any, function: BatchFunction) -> Any:
    import grain

    class MappedIterator(grain.DatasetIterator):
        def __init__(self) -> None:
            super().__init__()
            self._batches: Iterator[Any] = iter(loader)

        def __next__(self) -> Any:
            return to_numpy(function(as_batch(next(self._batches))))

        def get_state(self) -> Any:
            return self._batches.get_state()  # type: ignore[attr-defined]

        def set_state(self, state: Any) -> None:
            self._batches.set_state(state)  # type: ignore[attr-defined]

    class MappedLoader(grain.IterDataset):
        def __iter__(self) -> MappedIterator:
            return MappedIterator()

    return MappedLoader()
