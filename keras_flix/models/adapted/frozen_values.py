"""Values that do not train: what holds the choice, and how optimizers respect it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_flix import _compat
from keras_flix.models.adapted.adaptation import Choice
from keras_flix.models.adapted.devices import creation_scope
from keras_flix.models.adapted.learning_rates import rates_of


class FrozenRows(_compat.Mixin):
    """The part of an adapted model that prepares its optimizer for training."""

    def _check_optimizer(self) -> list[keras.Variable]:
        """Raises unless the optimizer can train; returns what it trains."""
        if self._adaptation.disabled:
            # JAX gives zeros for gradients, and weight decay would move them yet.
            raise ValueError(
                "The adapters must be on while they train. Received: training within "
                "`adapters_disabled`. Leave the block; to train without a feature, "
                "state None for it."
            )
        trained = self.trainable_variables
        if not _compat.optimizer_knows(self, trained):
            raise ValueError(
                "The optimizer must know the adapters' variables. Received: a "
                "model whose optimizer was built before `enable_flix`. Call "
                "`model.compile(...)` again before training."
            )
        # Here too, since the model may have been compiled since the choice was made.
        guard_optimizer(self)
        return trained


def is_table(variable: Any) -> bool:
    """Whether a variable holds adapter weights, row by row those of a value."""
    return getattr(variable, "has_rows_of_values", False)


def choose(adaptation: Any, choice: Choice) -> None:
    """Makes all layers of a model, and its optimizers, follow a choice of values."""
    for layer in adaptation.layers.values():
        layer._tables.trainable = choice
    for part in adaptation.users:
        part._adaptation.changes += 1
        old = _compat.reset_parameters(part)
        guard_optimizer(part)
        if _compat.is_running(part):
            _compat.remake_functions(part, old)


def guard_optimizer(model: Any) -> None:
    """Makes a model's optimizer, if it has one, leave frozen rows alone.

    And gives it the rates of all others.
    """
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None:
        rates = rates_of(model._adaptation)
        # One of several may know these only once it is built.
        unknown = bool(rates) and not _compat.workers(optimizer)
        if unknown:
            with creation_scope(model):
                optimizer.build(model.trainable_variables)
        _compat.set_rates(optimizer, rates)
        # A lazy one moves nothing without a gradient, unless by a weight decay of the
        # rates, and to watch it would cost a pass over all values.
        moves = getattr(optimizer, "moves_rows_without_gradient", True)
        rows = frozen_rows(model._adaptation, rates) if moves else {}
        # Where there are rows, the optimizer is built, too.
        with creation_scope(model) if rows else contextlib.nullcontext():
            _compat.guard_rows(optimizer, model.trainable_variables, rows)


def frozen_rows(
    adaptation: Any, rates: Mapping[int, _compat.Rate]
) -> dict[int, np.ndarray]:
    """Which rows of tables are frozen, by id of the variable.

    Args:
        adaptation: What `enable_flix` did to a model.
        rates: What `rates_of` tells of it: a rate of 0 freezes, too.
    """
    frozen = dict(adaptation.trained)
    for name, rows in frozen.items():
        frozen[name] = np.logical_not(rows)
    if not frozen and not rates:
        return {}
    found = {
        id(table.variable): frozen[table.feature]
        for table in adaptation.tables()
        if table.feature in frozen
    }
    for table in adaptation.tables():
        key = id(table.variable)
        if key in rates:
            still = rates[key].rows(table.variable.shape[0]) == 0
            if still.any():
                found[key] = still | found.get(key, False)
    return found
