"""Optimizers: their state when the model's variables grow or get company.

Relies on what all of Keras' optimizers do: state that belongs to variables is in
lists that run along with `_trainable_variables`, and the rest is in attributes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_flix._compat.processes import to_host

AVERAGES = "_model_variables_moving_average"
COUNTS = ("_value_counts", "_value_limits")
"""Where an optimizer that counts the steps of each value holds them: lists along with
its variables, in which all tables of a feature have the same one, and others `None`."""


def trained_by(optimizer: Any) -> list[keras.Variable]:
    """The variables that a built optimizer updates."""
    return optimizer._trainable_variables


def resize_variable(variable: keras.Variable, value: np.ndarray) -> None:
    """Gives a variable a value of another shape; it stays the same object.

    Its layout stays too. TensorFlow and torch get a new tensor of their own, so
    what holds the old one (`Layer._torch_params`, keys of optimizers) must be
    brought up to date.
    """
    tensor = variable._convert_to_tensor(value, dtype=variable._dtype)
    # First: from Keras 3.16 on, TensorFlow's new tensor must have this shape.
    variable._shape = variable._validate_shape(value.shape)
    variable._initialize(tensor)


def carried_rows(
    old: np.ndarray, initial: np.ndarray, rows: Sequence[int]
) -> np.ndarray:
    """`initial` with the given rows of `old` first, as far as both reach.

    >>> carried_rows(np.array([[1], [2], [3]]), np.zeros((3, 2), int), [0, 2])
    array([[1, 0],
           [3, 0],
           [0, 0]])
    """
    inner = tuple(slice(min(m, n)) for m, n in zip(old.shape[1:], initial.shape[1:]))
    result = np.array(initial)
    result[(slice(len(rows)), *inner)] = old[list(rows)][(slice(None), *inner)]
    return result


@dataclasses.dataclass(frozen=True)
class _State:
    """An optimizer's variables.

    Attributes:
        slots: By attribute, a variable (or None) per trained variable.
        single: By attribute, those that belong to no variable.
    """

    slots: dict[str, list[Any]]
    single: dict[str, keras.Variable]


def innermost(optimizer: Any) -> Any:
    """What a `LossScaleOptimizer` wraps, or the optimizer itself."""
    return getattr(optimizer, "inner_optimizer", None) or optimizer


def _state(optimizer: Any) -> _State:
    """The variables of an innermost optimizer; raises if some cannot be placed."""
    count = len(optimizer._trainable_variables)
    slots: dict[str, list[Any]] = {}
    single: dict[str, keras.Variable] = {}
    for name, value in vars(optimizer).items():
        if isinstance(value, keras.Variable):
            single[name] = value
        elif (
            isinstance(value, list)
            and name not in ("_variables", "_trainable_variables")
            and len(value) == count
            and all(v is None or isinstance(v, keras.Variable) for v in value)
        ):
            slots[name] = list(value)
    placed = {id(v) for v in single.values()}
    placed |= {id(v) for vs in slots.values() for v in vs}
    if any(id(v) not in placed for v in optimizer.variables):
        raise ValueError(
            "To keep an optimizer's state, it must hold it as Keras' own do: in one "
            f"list per kind, along with the trained variables. Received: a "
            f"{type(optimizer).__name__}, which holds some elsewhere. Compile the "
            "model with a fresh optimizer first, which has no state to keep."
        )
    return _State(slots, single)


def _fresh(optimizer: Any) -> Any:
    """An optimizer of the same class and options without state."""
    config = optimizer.get_config()
    rate = optimizer._learning_rate
    if not isinstance(rate, keras.Variable):
        # Schedules and functions as they are: not all can be serialized.
        config["learning_rate"] = rate
    return type(optimizer).from_config(config)


def check_growable(optimizer: Any, tables: Sequence[keras.Variable]) -> None:
    """Raises if an optimizer's state cannot follow tables that change their rows."""
    optimizer = innermost(optimizer)
    _fresh(optimizer)
    state = _state(optimizer)
    changed = {id(table): table for table in tables}
    for name, slots in state.slots.items():
        for variable, slot in zip(optimizer._trainable_variables, slots):
            if id(variable) not in changed or slot is None or slot.shape == ():
                continue
            if slot.shape[0] != variable.shape[0]:
                raise ValueError(
                    "To keep an optimizer's state, what it holds of adapter weights "
                    "must have one row per value. Received: a "
                    f"{type(optimizer).__name__} whose {name!r} has the shape "
                    f"{tuple(slot.shape)} for weights of {tuple(variable.shape)}. "
                    "Compile the model with a fresh optimizer first."
                )


def regrow_optimizer(
    optimizer: Any,
    variables: Sequence[keras.Variable] | None,
    rows: Mapping[int, Sequence[int]],
) -> None:
    """Fits an optimizer's state to variables that were resized or added.

    The optimizer and its variables stay the same objects. What is new gets the
    state that a fresh optimizer would give it; averages of the weights begin at
    the weights.

    Args:
        optimizer: A built optimizer, or a `LossScaleOptimizer` around one.
        variables: The variables it is to train from now on; `None` for the same.
        rows: By id of a resized variable, the old rows that come first in it.
    """
    inner = innermost(optimizer)
    given = {id(v) for v in variables or ()}
    # Those that were frozen since the optimizer was built stay, with their state.
    others = [v for v in inner._trainable_variables if id(v) not in given]
    variables = [*(variables or ()), *others]
    old = _state(inner)
    fresh = _fresh(inner)
    fresh.build(variables)
    new = _state(fresh)
    index = {id(v): i for i, v in enumerate(inner._trainable_variables)}
    keep = {id(new.single[name]): v for name, v in old.single.items()}
    for name, slots in new.slots.items():
        for at, (variable, slot) in enumerate(zip(variables, slots)):
            if slot is not None and name == AVERAGES:
                # A copy: JAX would share the buffer, and training donates buffers.
                slot.assign(ops.copy(variable.value))
            if slot is None or id(variable) not in index:
                continue
            kept = old.slots[name][index[id(variable)]]
            if id(variable) in rows and kept.shape != slot.shape:
                value = carried_rows(
                    to_host(kept),
                    to_host(slot),
                    rows[id(variable)],
                )
                resize_variable(kept, value)
            keep[id(slot)] = kept
            slots[at] = kept
        object.__setattr__(inner, name, slots)
    order = [keep.get(id(v), v) for v in fresh._variables]
    object.__setattr__(inner, "_variables", order)
    is_variable, _ = inner._tracker.config["variables"]
    inner._tracker.config["variables"] = (is_variable, order)
    for one in (inner, optimizer):
        _set_trained(one, variables)


def _set_trained(optimizer: Any, variables: list[keras.Variable]) -> None:
    # TensorFlow's keys are those of its own variables, which were replaced.
    by_index = {i: key for key, i in optimizer._trainable_variables_indices.items()}
    old = optimizer._trainable_variables
    excluded = getattr(optimizer, "_exclude_from_weight_decay", None)
    if excluded:
        positions = {id(v): i for i, v in enumerate(old)}
        known = [v for v in variables if id(v) in positions]
        keys = {optimizer._var_key(v): by_index[positions[id(v)]] for v in known}
        fresh = {key for key, former in keys.items() if former in excluded}
        object.__setattr__(optimizer, "_exclude_from_weight_decay", fresh)
    object.__setattr__(optimizer, "_exclude_from_weight_decay_cache", {})
    object.__setattr__(optimizer, "_trainable_variables", variables)
    indices = {optimizer._var_key(v): i for i, v in enumerate(variables)}
    object.__setattr__(optimizer, "_trainable_variables_indices", indices)
    if hasattr(optimizer, "_weight_decay_by_var_key"):
        # From Keras 3.16 on, worked out once, when the optimizer is built.
        decayed = {
            optimizer._var_key(v): not optimizer._is_excluded_from_weight_decay(v)
            for v in variables
        }
        object.__setattr__(optimizer, "_weight_decay_by_var_key", decayed)
