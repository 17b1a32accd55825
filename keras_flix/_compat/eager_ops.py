"""The operations of a layer's update and of a lazy step, without Keras around each.

On PyTorch, which runs eagerly, that is most of what they cost: each looks through its
arguments for symbolic tensors and converts them. Within a layer's `call` there are
only tensors, of one dtype where two meet.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.src.utils.module_utils import tensorflow as tf

Tensor = Any

if keras.config.backend() == "torch":
    import torch

    where, matmul = torch.where, torch.matmul
    reshape, concatenate = torch.reshape, torch.cat
    sqrt, square, maximum = torch.sqrt, torch.square, torch.maximum

    def lerp(start: Tensor, end: Tensor, weight: float) -> Tensor:
        return torch.lerp(start, end, weight)

    def cast(x: Tensor, dtype: Any) -> Tensor:
        # By the name: where Keras keeps its own table changes with its versions.
        return x.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)

    def any_nonzero(x: Tensor) -> Tensor:
        flat = x.reshape(len(x), -1)
        if x.device.type == "cpu":
            # `any` takes seven times as long there: half of what a step computes of
            # rows that were looked up.
            found = flat.abs().sum(1) != 0
        else:
            found = (flat != 0).any(1)
        return found.reshape(-1, *[1] * (x.ndim - 1))

    def where_rows(rows: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return torch.where(rows, x, y)

    def assign_parts(
        held: Sequence[keras.Variable], rows: Tensor, lengths: Sequence[int]
    ) -> None:
        values = [one.value for one in held]
        torch._foreach_copy_(values, list(rows.split(list(lengths))))

    def rows_together(
        tables: Sequence[Tensor],
        rows: Sequence[Tensor],
        size: int,
        known: Sequence[Tensor | None] = (),
    ) -> Tensor:
        lengths = [len(at) for at in rows]
        together = tables[0].new_empty(sum(lengths), size)
        parts = together.split(lengths)
        for one, at, part, there in itertools.zip_longest(tables, rows, parts, known):
            if there is None:
                torch.index_select(one.view(-1, size), 0, at, out=part)
            else:
                part.copy_(there.view(-1, size))
        return together

    def write_rows_together(
        tables: Sequence[Tensor], rows: Sequence[Tensor], values: Tensor
    ) -> None:
        parts = values.split([len(at) for at in rows])
        size = values.shape[1]
        # CPUs copy number by number: of as many bytes as go at once.
        wide, at_once = torch.complex128, 16 // values.itemsize
        is_wide = values.device.type == "cpu" and size % at_once == 0
        for table, at, value in zip(tables, rows, parts):
            flat = table.view(-1, size)
            if is_wide and table.storage_offset() % at_once == 0:
                flat, value = flat.view(wide), value.view(wide)
            flat.index_copy_(0, at, value)

    def numbers_are_known(x: Tensor) -> bool:
        # An accelerator would have to be waited for, a trace would be of these alone.
        return x.device.type == "cpu" and not torch.compiler.is_compiling()

    def known_to_be_all(x: Tensor) -> bool:
        return numbers_are_known(x) and bool(x.all())

    def distinct(rows: Tensor) -> tuple[Tensor, Tensor] | None:
        if not numbers_are_known(rows):
            return None
        first: dict[int, int] = {}
        places = [first.setdefault(row, len(first)) for row in rows.tolist()]
        once = rows if len(first) == len(rows) else rows.new_tensor(list(first))
        return once, rows.new_tensor(places, dtype=torch.int64)

    def without_zeros(
        rows: Sequence[Tensor], values: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        active = any_nonzero(values)
        if not numbers_are_known(values) or bool(active.all()):
            return list(rows), values, active
        keep = active.reshape(-1)
        parts = keep.split([len(at) for at in rows])
        kept = [at[part] for at, part in zip(rows, parts)]
        return kept, values[keep], active[keep]

    def sums(values: Tensor, places: Tensor, count: Any) -> Tensor:
        # Keras' operation would cost more than the sum does.
        return values.new_zeros(count, values.shape[1]).index_add_(0, places, values)

    def no_gradient() -> Any:
        return torch.no_grad()

    def take(values: np.ndarray, rows: Tensor) -> Tensor:
        return torch.from_numpy(values).to(rows.device)[rows]
else:
    where, matmul, cast = ops.where, ops.matmul, ops.cast
    reshape, concatenate = ops.reshape, ops.concatenate
    sqrt, square, maximum = ops.sqrt, ops.square, ops.maximum

    def lerp(start: Tensor, end: Tensor, weight: float) -> Tensor:
        """What lies between two tensors, by how far towards the second."""
        return start + (end - start) * weight

    def no_gradient() -> Any:
        """A block in which nothing is differentiated."""
        return contextlib.nullcontext()

    def assign_parts(
        held: Sequence[keras.Variable], rows: Tensor, lengths: Sequence[int]
    ) -> None:
        """Gives variables the rows of a tensor, one after the other."""
        ends = np.cumsum(lengths).tolist()
        for one, start, end in zip(held, [0, *ends], ends):
            one.assign(rows[start:end])

    def rows_together(
        tables: Sequence[Tensor],
        rows: Sequence[Tensor],
        size: int,
        known: Sequence[Tensor | None] = (),
    ) -> Tensor:
        """Some rows of each table, flat, one table after the other; TensorFlow's."""
        found = [
            tf.reshape(tf.gather(one, at), (-1, size)) for one, at in zip(tables, rows)
        ]
        return tf.concat(found, 0)

    def write_rows_together(
        tables: Sequence[Tensor], rows: Sequence[Tensor], values: Tensor
    ) -> None:
        """Gives back what `rows_together` read, changed."""
        parts = tf.split(values, [ops.shape(at)[0] for at in rows])
        for table, at, value in zip(tables, rows, parts):
            value = tf.reshape(value, (-1, *table.shape[1:]))
            table.scatter_update(tf.IndexedSlices(value, at))

    def known_to_be_all(x: Tensor) -> bool:
        """Whether all are true, where that is known at no cost."""
        return False

    def distinct(rows: Tensor) -> tuple[Tensor, Tensor] | None:
        """Rows, each once, and where each stands there, if that costs nothing."""
        return None

    def without_zeros(
        rows: Sequence[Tensor], values: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Rows of several tables, less those whose values are all zero.

        As far as that costs nothing to know.

        Returns:
            Rows; values, one table after the other; which of them are not zero.
        """
        return list(rows), values, any_nonzero(values)

    def sums(values: Tensor, places: Tensor, count: Any) -> Tensor:
        """The sum of all rows of a matrix that have the same place."""
        return ops.segment_sum(values, places, num_segments=count)

    def take(values: np.ndarray, rows: Tensor) -> Tensor:
        """Rows of what is known ahead."""
        return ops.take(ops.convert_to_tensor(values), rows, axis=0)

    def any_nonzero(x: Tensor) -> Tensor:
        """Whether each row has a number other than zero: `(rows, 1, ...)`."""
        axes = list(range(1, len(x.shape)))
        return ops.any(ops.not_equal(x, 0), axis=axes, keepdims=True)

    def where_rows(rows: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """`where` of whole rows, by bools of shape `(rows, 1, ...)`."""
        if keras.config.backend() != "tensorflow":
            return ops.where(rows, x, y)
        # Copies rows, where `tf.where` broadcasts the condition to all numbers.
        return tf.raw_ops.Select(condition=tf.reshape(rows, [-1]), x=x, y=y)
