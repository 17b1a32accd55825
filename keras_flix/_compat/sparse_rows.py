"""Gradients of only some rows of a variable.

TensorFlow and PyTorch have tensors of this kind. JAX has none: see
`keras_flix.layers.row_scope`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import keras
from keras import ops
from keras.src.utils.module_utils import tensorflow as tf

Tensor = Any


@dataclasses.dataclass(frozen=True)
class RowGradient:
    """The gradient of some rows of a variable; that of all others is zero.

    Attributes:
        rows: int32 `(n,)`. The gradient of a row that comes several times is the sum.
        values: `(n, ...)`.
    """

    rows: Tensor
    values: Tensor

    @classmethod
    def of(cls, gradient: Any) -> RowGradient | None:
        """A gradient as this class; `None` if it is a dense one."""
        if isinstance(gradient, cls):
            return gradient
        backend = keras.config.backend()
        if backend == "tensorflow" and isinstance(gradient, tf.IndexedSlices):
            return cls(gradient.indices, gradient.values)
        if backend == "torch" and gradient.is_sparse:
            return cls(gradient._indices()[0], gradient._values())
        return None

    def summed(self) -> RowGradient:
        """The same with the sum wherever a row comes several times."""
        first, _ = first_place(self.rows, self.rows)
        if keras.config.backend() == "torch":
            # Each operation of Keras would cost more than the sum does.
            sums = self.values.new_zeros(self.values.shape)
            sums.index_add_(0, first, self.values)
            return RowGradient(self.rows, sums[first])
        count = ops.shape(self.rows)[0]
        sums = ops.segment_sum(self.values, first, num_segments=count)
        return RowGradient(self.rows, ops.take(sums, first, axis=0))


def first_place(rows: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """Where each row stands first among others, and whether it does at all.

    Args:
        rows: Integers of shape `(m,)`.
        among: Integers of shape `(n,)`.

    Returns:
        Places and bools, of shape `(m,)`; a row that is missing has the place 0.
    """
    if keras.config.backend() == "torch":
        same = rows[:, None] == among[None]
        return same.int().argmax(1), same.any(1)
    same = ops.equal(rows[:, None], among[None])
    return ops.argmax(ops.cast(same, "int32"), axis=1), ops.any(same, axis=1)


def take_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Rows of a table, which are in its range, each flat: `(*rows.shape, size)`.

    `ops.take` also counts negative rows from the end, in five operations on
    TensorFlow, and on JAX passes over the output for rows out of range.
    """
    backend = keras.config.backend()
    if backend == "tensorflow" and isinstance(table, keras.Variable):
        return _take_of_variable(table, rows)
    if backend == "torch":
        import torch

        value = table.value if isinstance(table, keras.Variable) else table
        return torch.nn.functional.embedding(rows, value.reshape(len(value), -1))
    # The gradient of `reshape` is dense, too.
    table = ops.reshape(table, (table.shape[0], -1))
    if backend == "tensorflow":
        return tf.gather(table, rows)
    import jax.numpy as jnp

    return jnp.take(table, rows, axis=0, mode="clip")


def _take_of_variable(table: keras.Variable, rows: Tensor) -> Tensor:
    """`take_rows` on TensorFlow: without a gradient, it reads no more than the rows.

    A variable that was updated in rows is copied when it is read as a whole. But the
    gradient of a look-up in a variable is sparse: optimizers would clip and square
    that of each example, not their sum.
    """
    from tensorflow.python.eager import record

    shape = tf.concat([tf.shape(rows), [math.prod(table.shape[1:])]], 0)
    if record.could_possibly_record():
        found = tf.gather(tf.reshape(table.value, (table.shape[0], -1)), rows)
    elif tf.executing_eagerly():
        found = tf.reshape(tf.gather(table.value, rows), shape)
    else:
        # Whoever differentiates the finished graph gets a dense gradient, too.
        _register_dense_gradient()
        graph = tf.compat.v1.get_default_graph()
        with graph.gradient_override_map({"ResourceGather": DENSE}):
            found = tf.reshape(tf.gather(table.value, rows), shape)
    found.set_shape((*rows.shape, math.prod(table.shape[1:])))
    return found


DENSE = "KerasFlixDenseRows"


@functools.cache
def _register_dense_gradient() -> None:
    @tf.RegisterGradient(DENSE)
    def gradient(op: Any, *upstreams: Tensor) -> Any:
        if op is None:
            # Traced by `tf.saved_model.save`, which knows gradients of its own kind
            # only: in what is loaded, tables have no gradient.
            return None, None
        (upstream,) = upstreams
        handle, rows = op.inputs[:2]
        table = tf.raw_ops.ReadVariableOp(resource=handle, dtype=upstream.dtype)
        flat = tf.reshape(upstream, tf.concat([[-1], tf.shape(table)[1:]], 0))
        rows = tf.reshape(rows, (-1,))
        return tf.math.unsorted_segment_sum(flat, rows, tf.shape(table)[0]), None


def take_with_row_gradient(table: keras.Variable, rows: Tensor) -> Tensor:
    """Rows of a variable, whose gradient is none of all rows, on TensorFlow and torch.

    Only code that knows such gradients may be given it.
    """
    if keras.config.backend() == "tensorflow":
        # Of the variable itself: once it was updated in rows, reading it as a
        # whole copies it.
        return tf.gather(table.value, rows)
    return _sparse_take().apply(table.value, rows)


@functools.cache
def _sparse_take() -> Any:
    import torch

    class SparseTake(torch.autograd.Function):
        """`take` along the first axis with a sparse gradient."""

        @staticmethod
        def forward(context: Any, table: Any, rows: Any) -> Any:
            context.save_for_backward(rows)
            context.table_shape = table.shape
            return table[rows]

        @staticmethod
        def backward(context: Any, gradient: Any) -> Any:
            (rows,) = context.saved_tensors
            shape = context.table_shape
            sparse = torch.sparse_coo_tensor(
                rows.reshape(1, -1),
                gradient.reshape(-1, *shape[1:]),
                shape,
                check_invariants=False,
            )
            return sparse, None

    return SparseTake
