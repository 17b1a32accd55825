"""Values that do not train: what holds the choice, and how optimizers respect it."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_flix import _compat
from keras_flix.models.adapted.adaptation import Choice
from keras_flix.models.adapted.devices import creation_scope


class FrozenRows(_compat.Mixin):
    """The part of an adapted model that prepares its optimizer for training."""

    def _check_optimizer(self) -> None:
        if not _compat.optimizer_knows(self, self.trainable_variables):
            raise ValueError(
                "The optimizer must know the adapters' variables. Received: a "
                "model whose optimizer was built before `enable_flix`. Call "
                "`model.compile(...)` again before training."
            )
        # Here too, since the model may have been compiled since the choice was made.
        guard_optimizer(self)


def choose(adaptation: Any, choice: Choice) -> None:
    """Makes all layers of a model, and its optimizers, follow a choice of values."""
    for layer in adaptation.layers.values():
        layer._tables.trainable = choice
    for part in adaptation.parts:
        _compat.reset_functions(part)
        guard_optimizer(part)


def guard_optimizer(model: Any) -> None:
    """Makes a model's optimizer, if it has one, leave frozen rows alone."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None:
        rows = frozen_rows(model._adaptation)
        with creation_scope(model):
            _compat.guard_rows(optimizer, model.trainable_variables, rows)


def frozen_rows(adaptation: Any) -> dict[int, np.ndarray]:
    """Which rows of tables are frozen, by id of the variable."""
    if adaptation.trainable is None:
        return {}
    tables = next(iter(adaptation.layers.values()))._tables
    trained = {f.name: tables.trained(f) for f in adaptation.schema}
    return {
        id(table.variable): np.logical_not(trained[table.feature])
        for table in adaptation.tables()
        if trained[table.feature] is not None
    }
