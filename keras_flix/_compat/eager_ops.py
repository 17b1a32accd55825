"""The operations of a layer's update and of a lazy step, without Keras around each.

On PyTorch, which runs eagerly, that is most of what they cost: each looks through its
arguments for symbolic tensors and converts them. Within a layer's `call` there are
only tensors, of one dtype where two meet.
"""

from __future__ import annotations

import contextlib
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
        return (x.reshape(len(x), -1) != 0).any(1).reshape(-1, *[1] * (x.ndim - 1))

    def assign_parts(
        held: Sequence[keras.Variable], rows: Tensor, lengths: Sequence[int]
    ) -> None:
        values = [one.value for one in held]
        torch._foreach_copy_(values, list(rows.split(list(lengths))))

    def split_like(rows: Tensor, parts: Sequence[Tensor]) -> Sequence[Tensor]:
        return rows.split([len(part) for part in parts])

    length = len

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

    def split_like(rows: Tensor, parts: Sequence[Tensor]) -> Sequence[Tensor]:
        """A tensor in parts, one after the other, as long as some others."""
        lengths = [length(part) for part in parts]
        if all(isinstance(one, int) for one in lengths):
            ends = np.cumsum(lengths).tolist()
            return [rows[start:end] for start, end in zip([0, *ends], ends)]
        return tf.split(rows, lengths)

    def length(x: Tensor) -> Any:
        """How many rows there are: a tensor where it is not known yet."""
        return ops.shape(x)[0]

    def take(values: np.ndarray, rows: Tensor) -> Tensor:
        """Rows of what is known ahead."""
        return ops.take(ops.convert_to_tensor(values), rows, axis=0)

    def any_nonzero(x: Tensor) -> Tensor:
        """Whether each row has a number other than zero: `(rows, 1, ...)`."""
        axes = list(range(1, len(x.shape)))
        return ops.any(ops.not_equal(x, 0), axis=axes, keepdims=True)
