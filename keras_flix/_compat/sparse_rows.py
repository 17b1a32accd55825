"""Gradients of only some rows of a variable, and updates of only those.

TensorFlow and PyTorch have tensors of this kind. JAX has none: see
`keras_flix.row_gradients`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops
from keras.src.utils.module_utils import tensorflow as tf

from keras_flix._compat import eager_ops
from keras_flix._compat.layers import Mixin

Tensor = Any

USERS_OF_GRADIENTS = ("apply", "apply_gradients", "stateless_apply", "update_step")
"""The methods of an optimizer that are given gradients."""


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


def _native(variable: Any) -> Any:
    """TensorFlow's variable: its optimizers are given that, and have Keras' own."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def _read(variable: Any, rows: Tensor) -> Tensor:
    if keras.config.backend() == "tensorflow":
        return tf.gather(_native(variable), rows)
    if keras.config.backend() == "torch":
        return variable.value.detach()[rows]
    return ops.take(variable.value, rows, axis=0)


def _write(variable: Any, rows: Tensor, values: Tensor) -> None:
    backend = keras.config.backend()
    if backend == "tensorflow":
        _native(variable).scatter_update(tf.IndexedSlices(values, rows))
    elif backend == "torch":
        variable.value.index_copy_(0, rows, values)
    else:
        variable.assign(variable.value.at[rows].set(values))


SMALL = 2**18
"""Elements of a table that is updated together with others."""


def moves_all_rows(optimizer: Any) -> bool:
    """Whether what an optimizer does besides its steps moves all rows of a table."""
    return bool(optimizer.weight_decay or optimizer.use_ema)


class LazyRows(Mixin):
    """Mixin of optimizers that update only rows of tables with a gradient.

    The Keras optimizer comes after it in the order of bases.
    """

    slot_names: tuple[str, ...] = ()
    """Where the optimizer holds state that has rows: lists along with its variables.
    What its options leave out is empty or missing."""

    def row_slots(self) -> list[list[keras.Variable]]:
        """That state."""
        found = [getattr(self, name, None) for name in self.slot_names]
        return [slots for slots in found if slots]

    def new_rows(
        self, gradient: Tensor, learning_rate: Tensor, rows: Tensor, *slots: Tensor
    ) -> list[Tensor]:
        """What rows of a table and of its slots become."""
        raise NotImplementedError

    @property
    def takes_row_gradients(self) -> bool:
        """Whether nothing that the optimizer does needs the dense gradient.

        What a class of the user's own does with gradients is not known.
        """
        for name in USERS_OF_GRADIENTS:
            module = getattr(type(self), name).__module__
            if module.partition(".")[0] not in ("keras", __package__.partition(".")[0]):
                return False
        return not (
            self.clipnorm
            or self.clipvalue
            or self.global_clipnorm
            or self.gradient_accumulation_steps
            or self.loss_scale_factor
        )

    @property
    def moves_rows_without_gradient(self) -> bool:
        """Whether a step changes more than the rows with a gradient."""
        return moves_all_rows(self)

    def _backend_update_step(
        self, grads: Sequence[Any], trainable_variables: Sequence[Any], rate: Tensor
    ) -> None:
        is_own = type(self).update_step is LazyRows.update_step
        if keras.config.backend() == "torch" and is_own:
            grads, trainable_variables = self._update_small(
                grads, trainable_variables, rate
            )
        super()._backend_update_step(grads, trainable_variables, rate)

    def _update_small(
        self, grads: Sequence[Any], variables: Sequence[Any], rate: Tensor
    ) -> tuple[list[Any], list[Any]]:
        """Updates small tables with dense gradients, all of one shape at once.

        Used on PyTorch. What runs eagerly costs by the operation: hundreds of tables,
        one after the other, would take longer than the rest of a step.

        Returns:
            The gradients and variables that are left.
        """
        import torch

        groups: dict[Any, list[tuple[Any, list[Any]]]] = {}
        left = []
        for gradient, variable in zip(grads, variables):
            index = self._get_variable_index(variable)
            table = self._trainable_variables[index]
            small = gradient is not None and gradient.numel() <= SMALL
            if (
                not (small and getattr(table, "has_rows_of_values", False))
                or RowGradient.of(gradient) is not None
            ):
                left.append((gradient, variable))
                continue
            changed = [variable, *(slots[index] for slots in self.row_slots())]
            shape = (*gradient.shape[1:], gradient.dtype)
            values = [one.value for one in changed]
            groups.setdefault(shape, []).append((gradient, values))
        with torch.no_grad():
            for group in groups.values():
                gradient = torch.cat([one for one, _ in group])
                lists = list(zip(*(values for _, values in group)))
                old = [torch.cat(list(values)) for values in lists]
                lengths = [len(one) for one, _ in group]
                rate = ops.cast(rate, gradient.dtype)
                new = self._where_active(gradient, rate, old)
                for held, one in zip(lists, new):
                    torch._foreach_copy_(list(held), list(one.split(lengths)))
        return [g for g, _ in left], [v for _, v in left]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Tensor) -> None:
        index = self._get_variable_index(variable)
        table = self._trainable_variables[index]
        if not getattr(table, "has_rows_of_values", False):
            super().update_step(gradient, variable, learning_rate)
            return
        rate = ops.cast(learning_rate, table.dtype)
        changed = [variable, *(slots[index] for slots in self.row_slots())]
        some = RowGradient.of(gradient)
        if some is None:
            for one, new in zip(changed, self._where_active(gradient, rate, changed)):
                self.assign(one, new)
            return
        some = some.summed()
        old = [_read(one, some.rows) for one in changed]
        for one, new in zip(changed, self._where_active(some.values, rate, old)):
            _write(one, some.rows, new)

    def _where_active(
        self, gradient: Tensor, rate: Tensor, old: Sequence[Any]
    ) -> list[Tensor]:
        """New rows; the old ones where the gradient is zero."""
        if keras.config.backend() == "torch":
            old = [getattr(one, "value", one) for one in old]
        else:
            old = [ops.convert_to_tensor(one) for one in old]
        active = eager_ops.any_nonzero(gradient)
        new = self.new_rows(gradient, rate, *old)
        return [eager_ops.where(active, n, o) for n, o in zip(new, old)]
