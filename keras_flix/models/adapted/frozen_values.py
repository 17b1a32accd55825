"""Values that do not train: what holds the choice, and how optimizers respect it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_flix import _compat
from keras_flix.features.feature import Value
from keras_flix.models.adapted.devices import creation_scope

Choice = Mapping[str, Sequence[Value]] | None
"""By axis, the values that train, the others being frozen; `None` for all."""


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


def choose(surgery: Any, choice: Choice) -> None:
    """Makes all layers of a model, and its optimizers, follow a choice of values."""
    for layer in surgery.layers.values():
        layer._adapter.trainable = choice
    for part in surgery.parts:
        _compat.reset_functions(part)
        guard_optimizer(part)


def guard_optimizer(model: Any) -> None:
    """Makes a model's optimizer, if it has one, leave frozen rows alone."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is not None:
        with creation_scope(model):
            _compat.guard_rows(
                optimizer, model.trainable_variables, frozen_rows(model._flix)
            )


def frozen_rows(surgery: Any) -> dict[int, np.ndarray]:
    """Which rows of tables are frozen, by id of the variable."""
    frozen: dict[int, np.ndarray] = {}
    for layer in surgery.layers.values():
        adapter = layer._adapter
        for feature in adapter.schema:
            trained = adapter.trained(feature)
            if trained is not None and not all(trained):
                rows = np.logical_not(trained)
                frozen.update((id(v), rows) for v in adapter.variables[feature.name])
    return frozen
