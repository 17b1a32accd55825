"""`step_counts` and `limit_steps`: how often values were updated, and may be."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_flix import _compat
from keras_flix.features.feature import Feature, Value
from keras_flix.features.values import OTHERS
from keras_flix.models.adapted.adaptation import Model, adaptation_of
from keras_flix.models.adapted.devices import creation_scope
from keras_flix.models.growing.resize import between_steps
from keras_flix.models.growing.schema_changes import check_stated, checked_feature

Limit = int | None


def step_counts(model: keras.Model, feature: str) -> dict[Value, int]:
    """How many updates each value of a feature has had.

    An update of a value is a step in which it had a gradient. A schedule of the
    learning rate and the bias correction of `LazyAdam` go by this count, see
    `LazyAdam(step_counts="value")`.

    Args:
        model: A model adapted by `enable_flix`, and compiled with an optimizer that
            counts by value. May be called while `fit` runs, from callbacks.
        feature: Name of the feature.

    Returns:
        The counts, by value in the order of the feature.

    Raises:
        ValueError: If the optimizer does not count by value, or trains no adapter
            weights of the feature.

    Example:

    >>> x = keras.Input((8,), name="x")
    >>> model = keras.Model({"x": x}, keras.layers.Dense(4, name="head")(x))
    >>> model = enable_flix(model, {"user": ["ann", "bob"]}, targets=["head"])
    >>> model.compile(LazyAdam(1e-3, step_counts="value"), loss="mse")
    >>> batch = {"x": np.ones((2, 8)), "user": "ann"}
    >>> history = model.fit(batch, np.zeros((2, 4)), epochs=3, verbose=0)
    >>> step_counts(model, "user")
    {'ann': 3, 'bob': 0}
    """
    known, count, _ = _counted(model, feature)
    return dict(zip(known.values, _compat.to_host(count).tolist(), strict=True))


def limit_steps(
    model: Model, limits: Mapping[str, Limit | Mapping[Value, Limit]]
) -> Model:
    """Lets values train up to so many updates of their own, and no further.

    A value that has had as many stays bit-identical from then on, with what the
    optimizer holds of it, while all others train: among them an always-on feature or
    a head, which change what it computes. Limits are part of the optimizer's
    state, as the counts are: they are saved with it, a change compiles nothing
    again, and compiling the model with another optimizer forgets them.

    Args:
        model: A model adapted by `enable_flix`, and compiled with an optimizer that
            counts by value, such as `LazyAdam(step_counts="value")`. It is changed in
            place, also while `fit` runs, from callbacks.
        limits: By feature, a number of updates since the optimizer was made, or a dict
            by value in which `"*"` stands for all others. 0 stops a value where it is,
            as does every number that it has reached; `None` is no limit. Values that
            are not named keep theirs; those that are added later have none.

    Returns:
        `model`.

    Raises:
        ValueError: If the optimizer does not count by value, a feature or a value is
            not the model's, or a limit is no such number. Nothing has changed then.

    Example:

    >>> x = keras.Input((8,), name="x")
    >>> model = keras.Model({"x": x}, keras.layers.Dense(4, name="head")(x))
    >>> model = enable_flix(model, {"user": ["ann", "bob"]}, targets=["head"])
    >>> model.compile(LazyAdam(1e-3, step_counts="value"), loss="mse")
    >>> model = limit_steps(model, {"user": {"ann": 2, "*": 50}})
    >>> batch = {"x": np.ones((2, 8)), "user": ["ann", "bob"]}
    >>> history = model.fit(batch, np.zeros((2, 4)), epochs=3, verbose=0)
    >>> step_counts(model, "user")
    {'ann': 2, 'bob': 3}
    """
    if not isinstance(limits, Mapping):
        raise ValueError(
            "Limits must be a dict by feature. Received: "
            f"limits={limits!r}. Write such as {{'user': 100}}."
        )
    changes = []
    for name, own in limits.items():
        feature, _, variable = _counted(model, name)
        by_value = own if isinstance(own, Mapping) else {OTHERS: own}
        found = np.array(_compat.to_host(variable))
        if OTHERS in by_value:
            found[:] = _checked(by_value[OTHERS])
        check_stated(by_value, "Limits", f"limits[{name!r}]")
        for value, limit in by_value.items():
            if value != OTHERS:
                found[feature.id_of(value)] = _checked(limit)
        changes.append((variable, found))
    for variable, found in changes:
        variable.assign(found)
    return model


def reached_limits(model: keras.Model, feature: str) -> list[Value]:
    """The values of a feature that have had as many updates as they may."""
    known, count, limit = _counted(model, feature)
    reached = _compat.to_host(count) >= _compat.to_host(limit)
    return [value for value, done in zip(known.values, reached.tolist()) if done]


def _counted(
    model: keras.Model, feature: str
) -> tuple[Feature, keras.Variable, keras.Variable]:
    """A feature, with the counts and the limits of its values."""
    adaptation = adaptation_of(model)
    known = checked_feature(adaptation.schema, feature)
    between_steps(model)
    optimizer: Any = getattr(model, "optimizer", None)
    worker = optimizer and _compat.innermost(optimizer)
    if not getattr(worker, "counts_values", False):
        received = type(worker).__name__ if worker is not None else "no optimizer"
        raise ValueError(
            "The optimizer must count the steps of each value. Received: "
            f"{received}. Compile the model with `LazyAdam(..., step_counts='value')`."
        )
    if not optimizer.built:
        with creation_scope(model):
            optimizer.build(model.trainable_variables)
    found = _compat.counts_of(worker)
    if feature not in found:
        raise ValueError(
            "Steps are counted of features that train. Received: feature "
            f"{feature!r}, of which the optimizer has no adapter weights. Compile the "
            "model again."
        )
    return known, *found[feature]


def _checked(limit: Any) -> int:
    if limit is None:
        return _compat.NO_LIMIT
    if (
        isinstance(limit, bool)
        or not isinstance(limit, numbers.Integral)
        or not 0 <= int(limit) <= _compat.NO_LIMIT
    ):
        raise ValueError(
            "A limit must be a number of updates, of at least 0, or None for no limit. "
            f"Received: {limit!r}. 0 stops a value where it is."
        )
    return int(limit)
