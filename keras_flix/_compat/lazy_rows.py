"""Optimizers that update only rows of a variable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops
from keras.src.utils.module_utils import tensorflow as tf

from keras_flix._compat import eager_ops
from keras_flix._compat.layers import Mixin
from keras_flix._compat.learning_rates import Rate
from keras_flix._compat.sparse_rows import RowGradient, summed_together
from keras_flix._compat.value_counts import (
    Steps,
    add_counts,
    check_counts,
    counted,
    rates_at,
    steps_at,
)

Tensor = Any
LearningRateSchedule = keras.optimizers.schedules.LearningRateSchedule

USERS_OF_GRADIENTS = ("apply", "apply_gradients", "stateless_apply", "update_step")
"""The methods of an optimizer that are given gradients."""


def _native(variable: Any) -> Any:
    """The backend's own; TensorFlow's optimizers are given that."""
    return variable.value if isinstance(variable, keras.Variable) else variable


def _read(variable: Any, rows: Tensor) -> Tensor:
    value = _native(variable)
    if keras.config.backend() == "tensorflow":
        return tf.gather(value, rows)
    if keras.config.backend() == "torch":
        return value.detach().index_select(0, rows)
    return ops.take(value, rows, axis=0)


def _write(variable: Any, rows: Tensor, values: Tensor) -> None:
    value, backend = _native(variable), keras.config.backend()
    if backend == "tensorflow":
        value.scatter_update(tf.IndexedSlices(values, rows))
    elif backend == "torch":
        value.index_copy_(0, rows, values)
    else:
        variable.assign(value.at[rows].set(values))


SMALL = 2**18
"""Elements of a table that is updated together with others as a whole."""

ONE_BY_ONE = False
"""Whether no tables are updated together; for tests."""


def _groups_tables() -> bool:
    """Whether tables are better updated together than one after the other."""
    backend = keras.config.backend()
    # JAX compiles many small updates to as much as one large one, less the copies.
    # Replicas assign to variables of a strategy one by one, in its own way.
    return not ONE_BY_ONE and (
        backend == "torch"
        or (backend == "tensorflow" and not tf.distribute.has_strategy())
    )


def _dense(gradient: Any) -> Tensor | None:
    """A gradient of a small table as a tensor; `None` if that is of no use."""
    if RowGradient.of(gradient) is None:
        return gradient
    if keras.config.backend() == "tensorflow":
        return tf.convert_to_tensor(gradient)
    return None


class _Part(NamedTuple):
    """A table that is updated together with others.

    Attributes:
        gradient: A dense one, or one of rows.
        changed: The table and its slots.
        own: How it learns, if not as all others do.
        steps: Those of all its rows, if each value's are counted.
    """

    gradient: Any
    changed: list[Any]
    own: Rate | None
    steps: Steps | None


def _alike(given: Any, table: keras.Variable) -> tuple[Any, Any]:
    """What a table has in common with those it is updated together with.

    Returns:
        That, and the gradient: as a tensor, or as that of rows. `None` and `None`
        where the table is better updated alone.
    """
    if math.prod(table.shape) <= SMALL:
        dense = _dense(given)
        if dense is not None:
            return (*dense.shape[1:], dense.dtype), dense
    some = RowGradient.of(given)
    if some is None:
        return None, None
    return (math.prod(table.shape[1:]), some.values.dtype), some


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

    rates: Mapping[int, Rate] = {}
    """By id of a table, how it learns: see `set_rates`."""

    counts_values: bool = False
    """Whether steps are counted by value: for the learning rate and in `new_rows`."""

    _steps: Mapping[int, Steps] = {}
    """By id of a table, the steps of its rows, while they are updated."""

    def build(self, variables: Sequence[Any]) -> None:
        was_built = self.built
        super().build(variables)
        if self.counts_values and not was_built:
            add_counts(self, variables)

    def row_slots(self) -> list[list[keras.Variable]]:
        """That state."""
        found = [getattr(self, name, None) for name in self.slot_names]
        return [slots for slots in found if slots]

    def new_rows(
        self,
        gradient: Tensor,
        learning_rate: Tensor,
        rows: Tensor,
        *slots: Tensor,
        step: Tensor,
    ) -> list[Tensor]:
        """What rows of a table and of its slots become in a step, from 1 on."""
        raise NotImplementedError

    @property
    def takes_row_gradients(self) -> bool:
        """Whether nothing that the optimizer does needs the dense gradient.

        What a class of the user's own does with gradients is not known.
        """
        for name in USERS_OF_GRADIENTS:
            wrapped = vars(self).get(name)
            # That which keeps frozen rows passes gradients on as they are.
            if wrapped is not None and not hasattr(wrapped, "guards"):
                return False
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
        return moves_all_rows(self) or any(rate.decay for rate in self.rates.values())

    def _backend_update_step(
        self, grads: Sequence[Any], trainable_variables: Sequence[Any], rate: Tensor
    ) -> None:
        is_own = type(self).update_step is LazyRows.update_step
        if self.counts_values:
            check_counts(self)
            steps = counted(self, grads, trainable_variables, self.rates)
            object.__setattr__(self, "_steps", steps)
        try:
            if is_own and _groups_tables():
                grads, trainable_variables = self._update_together(
                    grads, trainable_variables, rate
                )
            super()._backend_update_step(grads, trainable_variables, rate)
        finally:
            object.__setattr__(self, "_steps", {})

    def _update_together(
        self, grads: Sequence[Any], variables: Sequence[Any], rate: Tensor
    ) -> tuple[list[Any], list[Any]]:
        """Updates tables whose gradients are alike at once.

        Hundreds of tables, one after the other, would take longer than the rest of a
        step, which costs by the operation where gradients are small.

        Returns:
            The gradients and variables that are left.
        """
        groups: dict[Any, list[tuple[_Part, Any, Any]]] = {}
        left = []
        for given, variable in zip(grads, variables):
            index = self._get_variable_index(variable)
            table = self._trainable_variables[index]
            has_rows = given is not None and getattr(table, "has_rows_of_values", False)
            key, gradient = _alike(given, table) if has_rows else (None, None)
            if key is None:
                left.append((given, variable))
                continue
            changed = [table, *(slots[index] for slots in self.row_slots())]
            own, steps = self.rates.get(id(table)), self._steps.get(id(table))
            part = _Part(gradient, changed, own, steps)
            groups.setdefault(key, []).append((part, given, variable))
        for group in groups.values():
            if len(group) == 1 and isinstance(group[0][0].gradient, RowGradient):
                left += [(given, variable) for _, given, variable in group]
                continue
            for part, _, variable in group:
                if part.own is not None:
                    part.own.decayed(self, variable, rate)
            with eager_ops.no_gradient():
                parts = [part for part, *_ in group]
                by_rows = isinstance(parts[0].gradient, RowGradient)
                (self._update_rows if by_rows else self._update_whole)(parts, rate)
        return [g for g, _ in left], [v for _, v in left]

    def _update_whole(self, parts: Sequence[_Part], rate: Tensor) -> None:
        """Updates small tables with dense gradients, all of one shape."""
        gradient = eager_ops.concatenate([one.gradient for one in parts], 0)
        lists = list(zip(*(one.changed for one in parts)))
        old = [eager_ops.concatenate([one.value for one in held], 0) for held in lists]
        lengths = [int(one.gradient.shape[0]) for one in parts]
        factors: Any = 1.0
        if any(one.own is not None for one in parts):
            # Those of all rows, one table after the other.
            rows = [(one.own or Rate()).rows(n) for n, one in zip(lengths, parts)]
            ones = (1,) * (len(gradient.shape) - 1)
            factors = np.concatenate(rows).reshape(-1, *ones)
        own_rate = ops.cast(rate, gradient.dtype)
        steps = Steps.joined([part.steps for part in parts])
        new = self._where_active(gradient, own_rate, old, factors, steps)
        for held, one in zip(lists, new):
            eager_ops.assign_parts(held, one, lengths)

    def _update_rows(self, parts: Sequence[_Part], rate: Tensor) -> None:
        """Updates rows of tables, all of as many numbers in a row."""
        summed = summed_together([one.gradient for one in parts])
        rows, gradient, active = eager_ops.without_zeros(*summed)
        if gradient.shape[0] == 0:
            return
        # Keras' `value` costs more than the look-up of a row.
        lists = [[v.value for v in held] for held in zip(*(p.changed for p in parts))]
        # What the forward pass looked up is not looked up again.
        known = [p.gradient.found_in(*one) for p, *one in zip(parts, lists[0], rows)]
        old = [
            eager_ops.rows_together(held, rows, gradient.shape[1], () if i else known)
            for i, held in enumerate(lists)
        ]
        factors: Any = 1.0
        if any(one.own is not None for one in parts):
            own = [(one.own or Rate()).of_rows(at) for one, at in zip(parts, rows)]
            factors = eager_ops.concatenate(own, 0)
        own_rate = ops.cast(rate, gradient.dtype)
        steps = steps_at([p.steps for p in parts], rows) if self._steps else None
        new = self._where_active(gradient, own_rate, old, factors, steps, active)
        for held, together in zip(lists, new):
            eager_ops.write_rows_together(held, rows, together)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Tensor) -> None:
        index = self._get_variable_index(variable)
        table = self._trainable_variables[index]
        if not getattr(table, "has_rows_of_values", False):
            super().update_step(gradient, variable, learning_rate)
            return
        rate = ops.cast(learning_rate, table.dtype)
        own = self.rates.get(id(table))
        factors: Any = 1.0
        if own is not None:
            own.decayed(self, variable, rate)
            factors = own.factor
        changed = [variable, *(slots[index] for slots in self.row_slots())]
        some, steps = RowGradient.of(gradient), self._steps.get(id(table))
        if some is None:
            new = self._where_active(gradient, rate, changed, factors, steps)
            for one, value in zip(changed, new):
                self.assign(one, value)
            return
        some = some.summed()
        old = [_read(one, some.rows) for one in changed]
        if isinstance(factors, np.ndarray):
            factors = eager_ops.take(factors, some.rows)
        steps = steps and steps.at(some.rows)
        new = self._where_active(some.values, rate, old, factors, steps)
        for one, value in zip(changed, new):
            _write(one, some.rows, value)

    def _where_active(
        self,
        gradient: Tensor,
        rate: Tensor,
        old: Sequence[Any],
        factors: float | Tensor = 1.0,
        steps: Steps | None = None,
        active: Tensor | None = None,
    ) -> list[Tensor]:
        """New rows; the old ones where the gradient is zero, or the rate's factor."""
        if keras.config.backend() == "torch":
            old = [getattr(one, "value", one) for one in old]
        else:
            old = [ops.convert_to_tensor(one) for one in old]
        active = eager_ops.any_nonzero(gradient) if active is None else active
        step: Tensor = self.iterations + 1
        if steps is not None:
            step, allowed = steps.shaped(gradient)
            active = active & allowed
            if isinstance(self._learning_rate, LearningRateSchedule):
                rate = rates_at(self._learning_rate, step)
                rate = eager_ops.cast(rate, gradient.dtype)
        if not isinstance(factors, float):
            factors = ops.convert_to_tensor(factors, gradient.dtype)
            active = active & (factors != 0)
            rate = rate * factors
        elif factors == 0:
            return list(old)
        elif factors != 1:
            rate = rate * factors
        new = self.new_rows(gradient, rate, *old, step=step)
        if eager_ops.known_to_be_all(active):
            return new
        return [eager_ops.where_rows(active, n, o) for n, o in zip(new, old)]
