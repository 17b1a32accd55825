"""Rows of variables that an optimizer must leave as they are.

A gradient of zero is not enough: momentum, weight decay and averages of the weights
move what has none. So the optimizer's own methods are wrapped, on the object, as a
class of its own would not be found again by Keras' files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops
from keras.src.utils.module_utils import tensorflow as tf

from keras_flix._compat.optimizer_state import AVERAGES, COUNTS

METHODS = ("apply", "finalize_variable_values")
"""What changes variables: a step, and the end of `fit` with averaged weights."""

ACCUMULATORS = "_accumulated_gradients"
"""These go back to zero by themselves, and must: they hold no past of a row."""


def guard_rows(
    optimizer: Any,
    variables: Sequence[keras.Variable],
    frozen: Mapping[int, np.ndarray],
) -> None:
    """Makes an optimizer leave rows of variables, and its state of them, alone.

    Args:
        optimizer: It is built if it was not. What it was told before is forgotten.
        variables: The variables it trains.
        frozen: By id of a variable, a bool for each of its rows; empty to let it
            train everything.
    """
    if frozen and not optimizer.built:
        optimizer.build(list(variables))
    for inner in workers(optimizer):
        for name in METHODS:
            if hasattr(vars(inner).get(name), "guards"):
                del vars(inner)[name]
        if frozen:
            if hasattr(inner, AVERAGES):
                # Callbacks put them in the place of the weights, also before a step.
                _restore([row for row in _rows(inner, frozen) if row.is_average])
            for name in METHODS:
                guarded = _guarded(inner, getattr(inner, name), frozen)
                object.__setattr__(inner, name, guarded)


def workers(optimizer: Any) -> list[Any]:
    """The optimizers that do the work: those inside of one around others."""
    inner = getattr(optimizer, "inner_optimizer", None)
    wrapped = getattr(optimizer, "optimizers", None) if inner is None else [inner]
    if wrapped is None:
        return [optimizer]
    return [worker for one in wrapped for worker in workers(one)]


def _guarded(
    optimizer: Any, method: Callable[..., Any], frozen: Mapping[int, np.ndarray]
) -> Callable[..., Any]:
    def guarded(*args: Any, **kwargs: Any) -> Any:
        rows = _rows(optimizer, frozen)
        result = method(*args, **kwargs)
        _restore(rows)
        return result

    guarded.guards = True  # type: ignore[attr-defined]
    return guarded


class _Rows(NamedTuple):
    """Frozen rows of a variable, and what they are to be.

    Attributes:
        variable: A weight, or what an optimizer holds along with one.
        mask: A bool for each row.
        value: Of all rows; a copy.
        is_average: Whether the variable is the average of a weight.
    """

    variable: keras.Variable
    mask: np.ndarray
    value: Any
    is_average: bool


def _rows(optimizer: Any, frozen: Mapping[int, np.ndarray]) -> list[_Rows]:
    """Variables with frozen rows, and what the optimizer holds along with them."""
    trained = optimizer._trainable_variables
    found: list[tuple[keras.Variable, np.ndarray, keras.Variable]] = []
    found += [(v, frozen[id(v)], v) for v in trained if id(v) in frozen]
    for name, slots in vars(optimizer).items():
        if (
            name in (ACCUMULATORS, "_variables", "_trainable_variables", *COUNTS)
            or not isinstance(slots, list)
            or len(slots) != len(trained)
        ):
            continue
        for variable, slot in zip(trained, slots):
            mask = frozen.get(id(variable))
            if (
                mask is not None
                and isinstance(slot, keras.Variable)
                and tuple(slot.shape[:1]) == mask.shape
            ):
                # Keras' averages start at zero, and follow weights that are set anew,
                # as by a file, only slowly.
                found.append((slot, mask, variable if name == AVERAGES else slot))
    return [
        _Rows(v, mask, ops.stop_gradient(ops.copy(source.value)), source is not v)
        for v, mask, source in found
    ]


def _restore(rows: Sequence[_Rows]) -> None:
    """Gives the masked rows of variables the values they are to have."""
    if not rows:
        return

    def kept(mask: np.ndarray, old: Any, new: Any) -> Any:
        # Not `where` with a constant that is true all over: TensorFlow's graph
        # optimizer folds it, and with it the order of updates (in 2.21).
        if mask.all():
            return old
        mask = mask.reshape(-1, *(1 for _ in old.shape[1:]))
        return ops.stop_gradient(ops.where(mask, old, new))

    if keras.config.backend() != "tensorflow":
        for variable, mask, old, _ in rows:
            variable.assign(kept(mask, old, variable.value))
        return

    def update(strategy: Any, old_values: Sequence[Any]) -> None:
        for (variable, mask, *_), old in zip(rows, old_values):

            def assign(one: Any, old: Any, mask: np.ndarray = mask) -> Any:
                return one.assign(kept(mask, old, tf.convert_to_tensor(one)))

            strategy.extended.update(variable.value, assign, args=(old,), group=False)

    # As Keras' own updates: replicas may not assign to mirrored variables.
    old = [row.value for row in rows]
    mirrored = getattr(rows[0].variable.value, "distribute_strategy", None)
    if mirrored is not None and not tf.distribute.has_strategy():
        # Keras ends `fit` outside of the scope.
        with mirrored.scope():
            update(mirrored, old)
        return
    strategy = tf.distribute.get_strategy()
    if tf.distribute.in_cross_replica_context():
        update(strategy, old)
    else:
        merge = tf.__internal__.distribute.interim.maybe_merge_call
        merge(update, strategy, old)
