"""Training steps whose gradients of tables are of the batch's values only.

A dense gradient of a table has a row for every value there is. Under an optimizer that
updates only some (`LazyAdam`), it is not made: TensorFlow and PyTorch have sparse
tensors for it. On JAX a step is differentiated with respect to zeros that are added to
the batch's rows, instead of the tables.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_flix import _compat
from keras_flix.features.input_entries import batch_length, layer_ids, split_entries
from keras_flix.features.tensor_ids import Tensor
from keras_flix.low_rank import ActiveValues, look_up


@dataclasses.dataclass(frozen=True)
class UsedRows:
    """A table of which one training step may use some rows.

    Attributes:
        position: Where the table is among the trained variables.
        table: Its values.
        rows: int32 `(n,)`.
        zeros: `(n, ...)`: what is added to those rows. The step is differentiated
            with respect to it.
    """

    position: int
    table: Tensor
    rows: Tensor
    zeros: Tensor


@dataclasses.dataclass(frozen=True)
class RowScope:
    """One training step without dense gradients of the tables.

    Attributes:
        used: By id of a table's variable, its used rows. On JAX only.
    """

    used: Mapping[int, UsedRows] = dataclasses.field(default_factory=dict)

    def take(self, table: keras.Variable, rows: Tensor) -> Tensor | None:
        """Entries as of `look_up`; `None` where the gradient is to be dense."""
        if keras.config.backend() != "jax":
            found = _compat.take_with_row_gradient(table, rows)
            return ops.reshape(found, (*ops.shape(rows), math.prod(table.shape[1:])))
        used = self.used.get(id(table))
        if used is None:
            return None
        places = _compat.first_place(ops.reshape(rows, (-1,)), used.rows)
        first, known = (ops.reshape(one, rows.shape) for one in places)
        found = look_up(table, rows) + look_up(used.zeros, first)
        # A row that is not of this batch would silently get no gradient.
        return ops.where(known[..., None], found, float("nan"))

    def with_tables(self, trained: Sequence[Any]) -> list[Any]:
        """Values of the trained variables, the tables' own among them."""
        return self._exchanged(trained, "table")

    def with_zeros(self, trained: Sequence[Any]) -> list[Any]:
        """The same with the zeros in the places of tables."""
        return self._exchanged(trained, "zeros")

    def _exchanged(self, trained: Sequence[Any], part: str) -> list[Any]:
        parts = {one.position: getattr(one, part) for one in self.used.values()}
        return [parts.get(i, value) for i, value in enumerate(trained)]

    def differentiated(self, trained: Sequence[Any]) -> RowScope:
        """This scope with the zeros that `trained` has in the places of tables."""
        return RowScope(
            {
                key: dataclasses.replace(one, zeros=trained[one.position])
                for key, one in self.used.items()
            }
        )

    def gradients(self, gradients: Sequence[Any]) -> list[Any]:
        """Gradients with those of the zeros as what they are of the tables."""
        rows = {one.position: one.rows for one in self.used.values()}
        return [
            _compat.RowGradient(rows[i], gradient) if i in rows else gradient
            for i, gradient in enumerate(gradients)
        ]


_scope: contextvars.ContextVar[RowScope | None] = contextvars.ContextVar(
    "keras_flix_row_scope", default=None
)


def current_row_scope() -> RowScope | None:
    """The scope of the training step that runs, if it is of this kind."""
    return _scope.get()


@contextlib.contextmanager
def row_scope(scope: RowScope) -> Iterator[None]:
    """Makes `scope` current within the block, also when it raises."""
    token = _scope.set(scope)
    try:
        yield
    finally:
        _scope.reset(token)


def takes_rows(model: Any) -> bool:
    """Whether a model's optimizer updates only rows, and needs no others."""
    if not getattr(model.optimizer, "takes_row_gradients", False):
        return False
    distributed = keras.distribution.distribution() is not None
    return not (keras.config.backend() == "jax" and distributed)


def scope_of_batch(model: Any, values: Sequence[Tensor], inputs: Any) -> RowScope:
    """The scope of a step on JAX.

    Args:
        model: The adapted model.
        values: Those of its trained variables.
        inputs: The model's inputs with ids.
    """
    schema = model._flix.schema
    own, entries = split_entries(inputs, schema)
    ids = layer_ids(schema, entries, batch_length(own, entries))
    rows_of = {
        name: ops.reshape(
            ActiveValues.from_ids(one, len(schema[name].values)).rows, (-1,)
        )
        for name, one in ids.items()
        if not schema[name].always
    }
    at = {id(v): i for i, v in enumerate(model.trainable_variables)}
    used = {}
    for layer in model._flix.layers.values():
        for name, pair in layer._adapter.variables.items():
            for table in pair:
                rows, position = rows_of.get(name), at.get(id(table))
                if rows is None or position is None:
                    continue
                # Of as many rows as the table has, a dense gradient is smaller.
                if rows.shape[0] < table.shape[0]:
                    zeros = ops.zeros((*rows.shape, *table.shape[1:]), table.dtype)
                    used[id(table)] = UsedRows(position, values[position], rows, zeros)
    return RowScope(used)


class LazyOptimizer(_compat.LazyRows):
    """Mixin of optimizers that know the scope; the Keras optimizer comes after it."""

    def stateless_apply(
        self, optimizer_variables: Any, grads: Any, trainable_variables: Any
    ) -> Any:
        scope = current_row_scope()
        if scope is not None and scope.used:
            grads = scope.gradients(grads)
            trainable_variables = scope.with_tables(trainable_variables)
        return super().stateless_apply(optimizer_variables, grads, trainable_variables)


class RowGradients(_compat.Mixin):
    """The part of an adapted model that trains without dense gradients of tables."""

    def train_step(self, *args: Any) -> Any:
        if self._flix.disabled or not takes_rows(self):
            return super().train_step(*args)
        if keras.config.backend() != "jax":
            with row_scope(RowScope()):
                return super().train_step(*args)
        state, data = args
        trained, *rest = state
        inputs, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        scope = scope_of_batch(self, trained, inputs)
        with row_scope(scope):
            return super().train_step((scope.with_zeros(trained), *rest), data)

    def compute_loss_and_updates(self, trained: Any, *args: Any, **kwargs: Any) -> Any:
        scope = current_row_scope()
        if scope is None or not scope.used:
            return super().compute_loss_and_updates(trained, *args, **kwargs)
        with row_scope(scope.differentiated(trained)):
            return super().compute_loss_and_updates(
                scope.with_tables(trained), *args, **kwargs
            )
