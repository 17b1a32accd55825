"""Changes that leave a model as it was, if anything keeps them from being whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from keras_flix import _compat
from keras_flix.models.adapted.adaptation import Adaptation

ADAPTATION = ("schema", "rates", "changes", "dropout_seed")
TABLES = ("schema", "trainable", "ranks")
"""The attributes that a change of features gives other values."""


@contextlib.contextmanager
def all_or_nothing(adaptation: Adaptation) -> Iterator[None]:
    """Undoes what the block did to a model's features, if it raises.

    Such as for want of memory, or at Ctrl+C: tables of one size in some layers, and of
    another in others, would compute and be saved without a word. Until the block ends,
    the old tables take memory beside the new ones.
    """
    undos = _undos(adaptation)
    try:
        yield
    except BaseException:
        for undo in undos:
            undo()
        for part in adaptation.users:
            _compat.track_torch_parameters([*_compat.flatten_layers(part), part])
        raise


def _undos(adaptation: Adaptation) -> list[_compat.Undo]:
    optimizers = [getattr(part, "optimizer", None) for part in adaptation.users]
    each = {id(optimizer): optimizer for optimizer in optimizers if optimizer}
    layers = [layer.holder() for layer in adaptation.layers.values()]
    holders = {id(layer): layer for layer in layers}
    return [
        _undo_attributes(adaptation),
        _compat.undo_variables(list(holders.values())),
        _compat.undo_shapes(table.variable for table in adaptation.tables()),
        *map(_compat.undo_optimizer, each.values()),
        *(_compat.undo_model(p, "_flix_dropout_seed") for p in adaptation.users),
    ]


def _undo_attributes(adaptation: Adaptation) -> _compat.Undo:
    held: list[tuple[Any, tuple[str, ...]]]
    held = [(part._adaptation, ADAPTATION) for part in adaptation.users]
    held += [(layer._tables, TABLES) for layer in adaptation.layers.values()]
    old = [(x, {name: getattr(x, name) for name in names}) for x, names in held]
    variables = [
        (layer._tables.variables, dict(layer._tables.variables))
        for layer in adaptation.layers.values()
    ]
    added = {name: set(values) for name, values in adaptation.added.items()}

    def undo() -> None:
        for x, attributes in old:
            vars(x).update(attributes)
        for tables, before in variables:
            tables.clear()
            tables.update(before)
        # The same dict for all users.
        adaptation.added.clear()
        adaptation.added.update(added)

    return undo
