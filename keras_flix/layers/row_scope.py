"""The scope of a training step that makes no dense gradients of the tables.

A dense gradient of a table has a row for every value there is. Under an optimizer that
updates only some (`LazyAdam`), it is not made: TensorFlow has sparse tensors for it.
PyTorch's cost more than the rest of a small table's look-up, so there a step is
differentiated with respect to the rows that were looked up. On JAX it is with respect
to zeros that are added to the batch's rows, instead of the tables.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_flix import _compat
from keras_flix.features.tensor_ids import Tensor

READ_BY_A_LOSS = (
    "With a lazy optimizer on JAX, a loss must read adapter weights by calling the "
    "model alone, as it is differentiated with respect to the batch's rows. Received: "
    "a loss that reads a whole table. Use an optimizer of Keras such as "
    "`keras.optimizers.Adam`, or let `keras_flix.set_learning_rates` decay weights."
)


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
        indices: By id of rows, these and their copy in int64. On PyTorch only.
        taken: By id of a table's variable, what was looked up in it. The step is
            differentiated with respect to it. On PyTorch only.
    """

    used: Mapping[int, UsedRows] = dataclasses.field(default_factory=dict)
    indices: dict[int, tuple[Tensor, Tensor]] = dataclasses.field(default_factory=dict)
    taken: dict[int, list[_compat.Taken]] = dataclasses.field(default_factory=dict)

    def take(self, table: keras.Variable, rows: Tensor) -> Tensor | None:
        """Entries as of `take_rows`; `None` where the gradient is to be dense."""
        backend = keras.config.backend()
        if backend == "torch" and rows.numel() >= table.shape[0]:
            # As small as the sparse one, and all tables can be updated at once.
            return None
        if backend == "torch":
            rows = self._indices_of(rows)
            taken = _compat.take_apart(table, rows)
            if taken is not None:
                self.taken.setdefault(id(table), []).append(taken)
                return taken.found
        if backend != "jax":
            return _compat.take_with_row_gradient(table, rows)
        used = self.used.get(id(table))
        if used is None:
            return None
        places = _compat.first_place(ops.reshape(rows, (-1,)), used.rows)
        first, known = (ops.reshape(one, rows.shape) for one in places)
        found = _compat.take_rows(used.table, rows)
        found = found + _compat.take_rows(used.zeros, first)
        # A row that is not of this batch would silently get no gradient.
        return ops.where(known[..., None], found, float("nan"))

    def _indices_of(self, rows: Tensor) -> Tensor:
        """Rows in the dtype that PyTorch's sparse tensors have: the same for all
        tables, whose gradients can then be told to be of the same rows."""
        # With the rows themselves, so that no others can have their id.
        if id(rows) not in self.indices:
            self.indices[id(rows)] = (rows, rows.long())
        return self.indices[id(rows)][1]

    def taken_gradients(
        self, gradients: Sequence[Any], variables: Sequence[keras.Variable]
    ) -> list[Any]:
        """Gradients with those of what was looked up as what they are of the tables.

        Args:
            gradients: What there is besides, such as of a loss of a table's own.
            variables: Whose they are.
        """
        return [
            _compat.with_rows(
                gradient, self.taken.get(id(variable), ()), variable.shape[1:]
            )
            for gradient, variable in zip(gradients, variables)
        ]

    def with_tables(self, trained: Sequence[Any]) -> list[Any]:
        """Values of the trained variables, the tables' own among them."""
        return self._exchanged(trained, "table")

    def differentiable(self, trained: Sequence[Any]) -> list[Any]:
        """The same for a step's loss, which gets what it looks up by `take`.

        One that reads a table itself would have no gradient of it, so it raises.
        """
        values = self.with_tables(trained)
        for one in self.used.values():
            values[one.position] = _compat.without_gradient(
                one.table, trained[one.position], READ_BY_A_LOSS
            )
        return values

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
            # The zeros were looked up where each row comes first.
            _compat.RowGradient(rows[i], gradient, True) if i in rows else gradient
            for i, gradient in enumerate(gradients)
        ]


_scope: contextvars.ContextVar[RowScope | None] = contextvars.ContextVar(
    "keras_flix_row_scope", default=None
)


current_row_scope = _scope.get
"""The scope of the training step that runs, if it is of this kind; else `None`."""


@contextlib.contextmanager
def row_scope(scope: RowScope) -> Iterator[None]:
    """Makes `scope` current within the block, also when it raises."""
    token = _scope.set(scope)
    try:
        yield
    finally:
        _scope.reset(token)
