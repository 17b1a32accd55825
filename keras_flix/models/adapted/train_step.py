"""Training steps whose gradients of tables are of the batch's values only.

A dense gradient of a table has a row for every value there is. Under an optimizer that
updates only some (`LazyAdam`), it is not made: see `keras_flix.layers.row_scope`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_flix import _compat
from keras_flix.features.input_entries import (
    batch_length,
    encoded,
    layer_ids,
    split_entries,
)
from keras_flix.features.tensor_ids import Tensor
from keras_flix.layers.low_rank_embedding import is_looked_up_by_token
from keras_flix.layers.low_rank_update import ActiveValues
from keras_flix.layers.row_scope import RowScope, UsedRows, current_row_scope, row_scope


def takes_rows(model: Any) -> bool:
    """Whether a model's optimizer updates only rows, and nothing needs others."""
    if not getattr(model.optimizer, "takes_row_gradients", False):
        return False
    base = model._adaptation.base_class
    for name in ("train_step", "compute_loss_and_updates"):
        # One of the user's own may look at gradients: clip them, report their norm.
        if getattr(base, name, None) is not getattr(keras.Model, name, None):
            return False
    if keras.config.backend() == "jax":
        return keras.distribution.distribution() is None
    # Torch's processes average dense gradients only.
    return not _compat.averages_gradients(model)


def scope_of_batch(
    model: Any, values: Sequence[Tensor], ids: Mapping[str, Tensor]
) -> RowScope:
    """The scope of a step on JAX.

    Args:
        model: The adapted model.
        values: Those of its trained variables.
        ids: The ids of the batch, by feature.
    """
    schema = model._adaptation.schema
    rows_of = {
        name: ops.reshape(
            ActiveValues.from_ids(one, len(schema[name].values)).rows, (-1,)
        )
        for name, one in ids.items()
        if not schema[name].always
    }
    at = {id(v): i for i, v in enumerate(model.trainable_variables)}
    used = {}
    for one in model._adaptation.tables():
        table, rows = one.variable, rows_of.get(one.feature)
        position = at.get(id(table))
        if rows is None or position is None or is_looked_up_by_token(table):
            continue
        # Of as many rows as the table has, a dense gradient is smaller.
        if rows.shape[0] < table.shape[0]:
            zeros = ops.zeros((*rows.shape, *table.shape[1:]), table.dtype)
            used[id(table)] = UsedRows(position, values[position], rows, zeros)
    return RowScope(used)


class RowGradients(_compat.Mixin):
    """The part of an adapted model that trains without dense gradients of tables."""

    def train_step(self, *args: Any) -> Any:
        if self._adaptation.disabled or not takes_rows(self):
            return super().train_step(*args)
        if keras.config.backend() != "jax":
            with row_scope(RowScope()):
                return super().train_step(*args)
        state, data = args
        trained, *rest = state
        inputs, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        schema = self._adaptation.schema
        own, entries = split_entries(inputs, schema)
        ids = layer_ids(schema, entries, batch_length(own, entries), own)
        if isinstance(inputs, Mapping):
            inputs = {**own, **schema.as_inputs(ids)}
            data = keras.utils.pack_x_y_sample_weight(inputs, y, sample_weight)
        scope = scope_of_batch(self, trained, ids)
        with row_scope(scope), encoded(schema, ids):
            return super().train_step((scope.with_zeros(trained), *rest), data)

    def compute_loss_and_updates(self, trained: Any, *args: Any, **kwargs: Any) -> Any:
        scope = current_row_scope()
        if scope is None or not scope.used:
            return super().compute_loss_and_updates(trained, *args, **kwargs)
        with row_scope(scope.differentiated(trained)):
            return super().compute_loss_and_updates(
                scope.differentiable(trained), *args, **kwargs
            )
