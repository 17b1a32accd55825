"""Gradients of only some rows of a variable.

TensorFlow and PyTorch have tensors of this kind. JAX has none: see
`keras_flix.layers.row_scope`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import ops
from keras.src.utils.module_utils import tensorflow as tf

from keras_flix._compat import eager_ops

Tensor = Any


@dataclasses.dataclass(frozen=True)
class RowGradient:
    """The gradient of some rows of a variable; that of all others is zero.

    Attributes:
        rows: int32 `(n,)`. The gradient of a row that comes several times is the sum.
        values: `(n, ...)`.
        at_first: Whether the sum already stands where a row comes first.
        read: The tensor that the rows were looked up in, its version then, and what
            was found; `None` if that is not known. On PyTorch only.
    """

    rows: Tensor
    values: Tensor
    at_first: bool = False
    read: tuple[Tensor, int, Tensor] | None = None

    def found_in(self, value: Tensor, rows: Tensor) -> Tensor | None:
        """Rows of a variable's value, if they are these, and it is as it was then."""
        if self.read is None or len(rows) != len(self.rows):
            return None
        held, version, found = self.read
        # PyTorch counts every change, whoever makes it.
        return found if held is value and value._version == version else None

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
        if self.at_first:
            first = first_place(self.rows, self.rows)[0]
            return RowGradient(self.rows, ops.take(self.values, first, axis=0))
        (rows,), values = summed_together([self])
        shape = (-1, *_row_shape(self.values))
        return RowGradient(rows, eager_ops.reshape(values, shape))


def held_at(rows: Tensor) -> Any:
    """What is the same for tensors of the same rows, while all of them exist."""
    if keras.config.backend() == "torch":
        return rows.data_ptr(), len(rows), rows.stride()
    return id(rows)


def summed_together(gradients: Sequence[RowGradient]) -> tuple[list[Tensor], Tensor]:
    """Several gradients, each with the sum wherever a row comes several times.

    Their rows have as many numbers in all of them.

    Returns:
        The rows of each: once, where that is known at no cost; else as often as they
        come. And the values of all, each row flat, one after the other.
    """
    flat = eager_ops.concatenate(
        [
            eager_ops.reshape(one.values, (-1, math.prod(_row_shape(one.values))))
            for one in gradients
        ],
        0,
    )
    held = [held_at(one.rows) for one in gradients]
    by_key = {key: one.rows for key, one in zip(held, gradients)}
    known = {key: eager_ops.distinct(rows) for key, rows in by_key.items()}
    distinct = {key: one for key, one in known.items() if one is not None}
    once = len(distinct) == len(by_key)
    if not once:
        distinct = {k: (rows, first_place(rows, rows)[0]) for k, rows in by_key.items()}
    rows = [distinct[key][0] for key in held]
    if once and sum(map(len, rows)) == len(flat):
        return rows, flat
    places, count = [], 0
    for key in held:
        own, place = distinct[key]
        places.append(place + count)
        count = count + ops.shape(own)[0]
    at = eager_ops.concatenate(places, 0)
    sums = eager_ops.sums(flat, at, count)
    if keras.config.backend() == "tensorflow":
        # How many rows there are is known as the graph runs.
        return rows, tf.gather(sums, at)
    return rows, sums if once else take_rows(sums, at)


def _row_shape(values: Tensor) -> Sequence[Any]:
    """The shape of a row, of which replicas of TensorFlow know the rank alone."""
    if keras.config.backend() == "tensorflow":
        return ops.shape(values)[1:]
    return values.shape[1:]


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
        return same.byte().argmax(1), same.any(1)
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
    """`take_rows`, whose gradient is none of all rows, on TensorFlow and torch.

    Only code that knows such gradients may be given it.
    """
    if keras.config.backend() == "torch":
        return _sparse_take().apply(table.value, rows)
    # Of the variable itself: once it was updated in rows, reading it as a whole
    # copies it.
    found = tf.gather(table.value, rows)
    return ops.reshape(found, (*ops.shape(rows), math.prod(table.shape[1:])))


class Taken(NamedTuple):
    """What `take_apart` gave.

    Attributes:
        rows: int64 `(*n)`.
        found: `(*n, size)`.
        value: The tensor in which it was found.
        version: Its version then.
    """

    rows: Tensor
    found: Tensor
    value: Tensor
    version: int


def take_apart(table: keras.Variable, rows: Tensor) -> Taken | None:
    """`take_rows` on PyTorch, with a gradient of its own, not one of the table.

    `None` where `take_with_row_gradient` must do: where nothing is differentiated, or
    a compiler, which knows no tensors that begin to be differentiated, looks on.
    """
    import torch

    value = table.value
    if (
        not (value.is_leaf and value.requires_grad and torch.is_grad_enabled())
        or torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
    ):
        return None
    flat = value.detach().view(len(value), -1)
    return Taken(
        rows, torch.embedding(flat, rows).requires_grad_(), value, value._version
    )


def with_rows(gradient: Any, taken: Sequence[Taken], shape: Sequence[int]) -> Any:
    """The gradient of a table, and what `take_apart` gave of it, in one.

    Args:
        gradient: What there is besides; `None` for nothing.
        taken: What was looked up.
        shape: That of one row of the table.
    """
    apart = [one for one in taken if one.found.grad is not None]
    if not apart:
        return gradient
    parts = [
        (one.rows.reshape(-1), one.found.grad.reshape(-1, *shape)) for one in apart
    ]
    some = None if gradient is None else RowGradient.of(gradient)
    if some is not None:
        parts.append((some.rows, some.values))
    rows, values = parts[0]
    if len(parts) > 1:
        rows, values = (eager_ops.concatenate(one, 0) for one in zip(*parts))
    if len(parts) == 1 and gradient is None:
        one = apart[0]
        return RowGradient(
            rows, values, read=(one.value, one.version, one.found.detach())
        )
    if gradient is None or some is not None:
        return RowGradient(rows, values)
    return gradient.index_add(0, rows, values)


@functools.cache
def _sparse_take() -> Any:
    import torch

    class SparseTake(torch.autograd.Function):
        """`take_rows` with a sparse gradient."""

        @staticmethod
        def forward(context: Any, table: Any, rows: Any) -> Any:
            context.save_for_backward(rows)
            context.table_shape = table.shape
            return torch.nn.functional.embedding(rows, table.view(len(table), -1))

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


def without_gradient(value: Tensor, differentiated: Tensor, message: str) -> Tensor:
    """A value in the place of what a step is differentiated with respect to, on JAX.

    Raises:
        ValueError: With `message`, where something of it is differentiated.
    """
    import jax

    @jax.custom_vjp
    def replaced(value: Tensor, differentiated: Tensor) -> Tensor:
        return value

    def forward(value: Tensor, differentiated: Tensor) -> tuple[Tensor, None]:
        return value, None

    def backward(saved: None, gradient: Tensor) -> Any:
        raise ValueError(message)

    replaced.defvjp(forward, backward)
    return replaced(value, differentiated)
