"""Counts of each value's own updates, for optimizers that update only rows.

An optimizer of one value's alone would count the steps in which that value has a
gradient. Here a variable per feature does, which all tables of the feature share: so
it goes wherever the optimizer's state goes, and changes without compiling again.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops
from keras.src.utils.module_utils import tensorflow as tf

from keras_flix._compat import eager_ops
from keras_flix._compat.learning_rates import Rate
from keras_flix._compat.optimizer_state import COUNTS
from keras_flix._compat.sparse_rows import RowGradient, held_at

Tensor = Any

NO_LIMIT = 2**31 - 1
"""The limit of a value that may have any number of updates."""
PROBES = (0, 1, 2, 7, 50, 300, 2500, 100_000)
"""Steps at which a schedule is tried."""


class Steps(NamedTuple):
    """Of rows: which update of their value this step is, and whether it may be one.

    Attributes:
        numbers: int32 `(n, ...)`, from 1.
        allowed: bool `(n, ...)`: whether the value has not reached its limit.
    """

    numbers: Tensor
    allowed: Tensor

    def at(self, rows: Tensor) -> Steps:
        """Those of some rows."""
        if keras.config.backend() == "torch":
            return Steps(*(one.index_select(0, rows) for one in self))
        return Steps(*(ops.take(one, rows, axis=0) for one in self))

    def shaped(self, like: Tensor) -> Steps:
        """The same with axes of length 1, to meet rows of as many axes as `like`."""
        ones = [1] * (len(like.shape) - 1)
        return Steps(*(eager_ops.reshape(one, (-1, *ones)) for one in self))

    @staticmethod
    def joined(parts: Sequence[Steps | None]) -> Steps | None:
        """Those of several tables, one after the other, if they are counted."""
        known = [part for part in parts if part is not None]
        if not known:
            return None
        return Steps(*(eager_ops.concatenate(one, 0) for one in zip(*known)))


def steps_at(steps: Sequence[Any], rows: Sequence[Tensor]) -> Steps | None:
    """The steps of rows of tables, one after the other.

    Args:
        steps: Those of all rows of each table.
        rows: Which ones.
    """
    found: dict[Any, Steps] = {}
    keys = []
    for one, at in zip(steps, rows):
        # The same of all tables of a feature, in most models.
        keys.append((id(one), held_at(at)))
        if keys[-1] not in found:
            found[keys[-1]] = one.at(at)
    return Steps.joined([found[key] for key in keys])


def feature_of(table: keras.Variable) -> str:
    """What tables of one feature have in common in their names: `flix_<feature>`."""
    return str(table.name.rpartition("_")[0])


def check_counts(optimizer: Any, decays: bool = False) -> None:
    """Raises if an optimizer that counts by value moves what has no gradient.

    Args:
        optimizer: The optimizer.
        decays: Whether it is about to be given a weight decay.
    """
    if decays or optimizer.moves_rows_without_gradient:
        raise ValueError(
            "Where steps are counted by value, what has no gradient must stay as it "
            "is. Received: step_counts='value' with weight decay or averages of the "
            "weights. Leave these out, or take step_counts='all'."
        )


def add_counts(optimizer: Any, variables: Sequence[Any]) -> None:
    """Gives an optimizer the counts and limits of all values that it trains."""
    if keras.config.backend() == "tensorflow" and tf.distribute.has_strategy():
        raise ValueError(
            "Updates are counted by value where one device trains. Received: "
            "step_counts='value' under a strategy of tf.distribute. Use "
            "step_counts='all', or the backend JAX."
        )
    made: dict[str, tuple[Any, Any]] = {}
    found = []
    for variable in variables:
        if not getattr(variable, "has_rows_of_values", False):
            found.append((None, None))
            continue
        name = feature_of(variable)
        if name not in made:
            shape = variable.shape[:1]
            limit = keras.initializers.Constant(NO_LIMIT)
            made[name] = (
                optimizer.add_variable(shape, "zeros", "int32", name=f"{name}_count"),
                optimizer.add_variable(shape, limit, "int32", name=f"{name}_limit"),
            )
        found.append(made[name])
    for slot, held in zip(COUNTS, zip(*found)):
        setattr(optimizer, slot, list(held))


def counts_of(optimizer: Any) -> dict[str, tuple[keras.Variable, keras.Variable]]:
    """By name of a feature, an optimizer's counts and limits of its values."""
    return {
        feature_of(table).removeprefix("flix_"): (count, limit)
        for table, count, limit in zip(
            optimizer._trainable_variables, *(getattr(optimizer, s) for s in COUNTS)
        )
        if count is not None
    }


def counted(
    optimizer: Any,
    gradients: Sequence[Any],
    variables: Sequence[Any],
    rates: Mapping[int, Rate],
) -> dict[int, Steps]:
    """Counts the updates of a step.

    A value is updated where one of its tables has a gradient that is not zero, and a
    rate that is not.

    Returns:
        By id of a table, the steps of all its rows.
    """
    by_count: dict[int, list[tuple[Any, keras.Variable]]] = {}
    held: dict[int, tuple[Any, Any]] = {}
    for gradient, variable in zip(gradients, variables):
        index = optimizer._get_variable_index(variable)
        count, limit = (getattr(optimizer, slot)[index] for slot in COUNTS)
        if gradient is not None and count is not None:
            held[id(count)] = (count, limit)
            table = optimizer._trainable_variables[index]
            by_count.setdefault(id(count), []).append((gradient, table))
    found: dict[int, Any] = {}
    with eager_ops.no_gradient():
        for key, parts in by_count.items():
            count, limit = held[key]
            size = int(count.shape[0])
            before = ops.convert_to_tensor(count)
            allowed = ops.less(before, ops.convert_to_tensor(limit))
            hit = ops.logical_and(_updated(parts, size), allowed)
            moves = np.zeros(size, bool)
            for _, table in parts:
                own = rates.get(id(table))
                moves |= np.True_ if own is None else own.rows(size) != 0
            if not moves.all():
                hit = ops.logical_and(hit, ops.convert_to_tensor(moves))
            after = ops.add(before, ops.cast(hit, "int32"))
            count.assign(after)
            # Where it is not updated, what it would be.
            steps = Steps(ops.maximum(after, 1), allowed)
            found |= {id(table): steps for _, table in parts}
    return found


def _updated(parts: Sequence[tuple[Any, keras.Variable]], size: int) -> Tensor:
    """Which values have a gradient in one of their tables: bool `(values,)`."""
    dense, rows, sums = [], [], []
    for flat in _by_size(parts):
        some = [one for one in flat if isinstance(one, RowGradient)]
        dense += [eager_ops.any_nonzero(x) for x in flat if not _is_in(x, some)]
        if some:
            values = [
                eager_ops.reshape(x.values, (-1, _row_size(x.values))) for x in some
            ]
            rows += [x.rows for x in some]
            sums.append(eager_ops.any_nonzero(eager_ops.concatenate(values, 0)))
    hits = [ops.cast(eager_ops.reshape(x, (size,)), "int32") for x in dense]
    if rows:
        nonzero = eager_ops.reshape(eager_ops.concatenate(sums, 0), (-1,))
        at = ops.cast(eager_ops.concatenate(rows, 0), "int32")
        hits.append(ops.segment_sum(ops.cast(nonzero, "int32"), at, size))
    return ops.greater(functools.reduce(ops.add, hits), 0)


def _is_in(one: Any, others: Sequence[Any]) -> bool:
    return any(one is other for other in others)


def _row_size(values: Tensor) -> int:
    return int(np.prod(values.shape[1:]))


def _by_size(parts: Sequence[tuple[Any, keras.Variable]]) -> Iterator[list[Any]]:
    """Gradients, together where their rows have as many numbers."""
    groups: dict[int, list[Any]] = {}
    for gradient, table in parts:
        size = int(np.prod(table.shape[1:]))
        groups.setdefault(size, []).append(RowGradient.of(gradient) or gradient)
    yield from groups.values()


def rates_at(schedule: Any, numbers: Tensor) -> Tensor:
    """A schedule's rates of rows, at which step each of them is, from 1.

    Some of Keras' schedules take one step only, since they choose by `ops.cond`.
    """
    shape = numbers.shape
    steps = eager_ops.reshape(numbers, (-1,)) - 1
    if keras.config.backend() != "torch":
        rates = ops.vectorized_map(schedule, steps)
    elif _takes_several(schedule):
        rates = schedule(steps)
    else:
        import torch

        distinct, places = torch.unique(steps, return_inverse=True)
        found = [ops.cast(schedule(step), "float32") for step in distinct]
        rates = torch.stack(found)[places]
    return eager_ops.reshape(rates, (-1, *shape[1:]))


@functools.lru_cache(maxsize=16)
def _takes_several(schedule: Any) -> bool:
    """Whether a schedule of many steps at once is that of each alone."""
    alone = [float(schedule(ops.convert_to_tensor(n, "int32"))) for n in PROBES]
    try:
        together = ops.convert_to_numpy(schedule(ops.convert_to_tensor(PROBES)))
    except Exception:
        # Whatever a function of a user's own makes of several steps.
        return False
    return together.shape == (len(PROBES),) and np.allclose(together, alone, 1e-6, 0)
