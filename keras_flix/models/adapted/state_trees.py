"""Keras' state trees, which Orbax checkpoints hold: they say what their rows mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from keras import ops

from keras_flix import _compat
from keras_flix._utils.shapes import unlike
from keras_flix.models.adapted.frozen_values import guard_optimizer
from keras_flix.models.adapted.plain_view import unchanged_if_it_raises

STAMP = "flix_schema"
"""Under this name, a tree holds what each row of the adapters is of."""
GROUPS = ("trainable_variables", "non_trainable_variables")
OPTIMIZER = "optimizer_variables"
SEED = "seed_generator_state"
"""The end of paths that are named anew each time that a model is made."""


class StateTrees(_compat.Mixin):
    """The part of an adapted model that gives its state as a tree, and takes it."""

    def get_state_tree(self, value_format: str = "backend_tensor") -> dict[str, Any]:
        """As Keras' own, with the model's schema among what does not train."""
        tree = super().get_state_tree(value_format)
        # With the weights: `OrbaxCheckpoint(save_weights_only=True)` keeps no more.
        stamp = _some_layer(self)._tables.stamp()
        if value_format == "backend_tensor":
            stamp = ops.convert_to_tensor(stamp, "uint8")
        tree[GROUPS[1]][STAMP] = stamp
        return tree

    def set_state_tree(self, state_tree: Mapping[str, Any]) -> None:
        """As Keras' own; where the state is not the model's, nothing has changed.

        What trains here need not be what trained there.

        Raises:
            ValueError: If the adapters are of other features or values, or weights
                are missing, superfluous or of other shapes.
        """
        tree = dict(state_tree)
        weights = {
            path: value
            for group in GROUPS
            for path, value in _flat(tree.pop(group, {}))
        }
        stamp = weights.pop(STAMP, None)
        if stamp is not None:
            layer = _some_layer(self)
            layer._tables.check_stamp(ops.convert_to_numpy(stamp), layer.path)
        if weights:
            self._check_weights(weights)
        # Keras looks for each weight in the group where it was.
        for group in GROUPS:
            paths = {v.path for v in getattr(self, group)}
            tree[group] = {p: w for p, w in weights.items() if p in paths}
        if OPTIMIZER in tree:
            tree[OPTIMIZER] = self._by_own_paths(tree[OPTIMIZER])
        with unchanged_if_it_raises(self):
            super().set_state_tree(tree)
        guard_optimizer(self)

    def _by_own_paths(self, tree: Mapping[str, Any]) -> dict[str, Any]:
        """An optimizer's state, which begins with its name: that is a counter's."""
        optimizer = getattr(self, "optimizer", None)
        own = [v.path for v in getattr(optimizer, "variables", ())]
        by_tail = {path.partition("/")[2]: path for path in own}
        return {
            path if path in own else by_tail.get(path.partition("/")[2], path): value
            for path, value in _flat(tree)
        }

    def _check_weights(self, weights: Mapping[str, Any]) -> None:
        own = {v.path: tuple(v.shape) for v in self.variables}
        tables = {table.variable.path for table in self._adaptation.tables()}
        if not tables & weights.keys():
            # Weights of the plain model: the adapters stay as they are.
            own = {path: shape for path, shape in own.items() if path not in tables}
        found = {path: tuple(np.shape(value)) for path, value in weights.items()}
        for path, expected, received in unlike(own, found):
            if not path.endswith(SEED):
                raise ValueError(
                    "The weights of a state, such as an Orbax checkpoint's, must be "
                    f"those of the model. At {path!r}, expected: shape {expected}. "
                    f"Received: {received}. Make the model as it was, adapted with the "
                    "same features, ranks and targets."
                )


def _some_layer(model: Any) -> Any:
    return next(iter(model._adaptation.layers.values()))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, entry in tree.items():
        if isinstance(entry, Mapping):
            yield from _flat(entry, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", entry
