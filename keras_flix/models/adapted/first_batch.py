"""What an adapted model's first batch is for, if the model did not tell before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import tree

from keras_flix import _compat
from keras_flix.features.host_values import host_value
from keras_flix.features.input_entries import leading_size, split_entries
from keras_flix.layers.active_scope import Routing, routing_scope
from keras_flix.models.adapted.probe_batches import Probe
from keras_flix.models.adapted.row_probe import (
    LENGTHS,
    find_orders,
    unclear_rows,
)


class FirstBatch(_compat.Mixin):
    """The part of an adapted model that finds out whose the rows of its layers are."""

    def _find_rows(self, inputs: Any, *args: Any, **kwargs: Any) -> None:
        """Tries the model on batches like this one, as `enable_flix` does.

        Args:
            inputs: As for the model. Where they are traced, or tell no batch, nothing
                happens: layers then raise, as far as it matters.
            *args: As for the model.
            **kwargs: As for the model.
        """
        state = self._adaptation
        if state.rows_known or state.disabled:
            return
        unknown = {p: x for p, x in state.layers.items() if x.row_orders is None}
        own, entries = split_entries(inputs, state.schema)
        length = _length(own, entries)
        if length is None:
            return
        other = next(n for n in LENGTHS if n != length)

        def stand_in(x: Any) -> Any:
            shape = getattr(x, "shape", None)
            if shape is None or isinstance(x, keras.KerasTensor):
                return x
            shape = tuple(shape)
            if shape[:1] == (length,):
                shape = (other, *shape[1:])
            elif shape[:1] == (other,):
                raise _Unclear
            try:
                dtype = keras.backend.standardize_dtype(x.dtype)
            except ValueError as error:  # strings
                raise _Unclear from error
            return keras.KerasTensor(shape, dtype=dtype)

        def call(given: Any, training: bool) -> None:
            args, kwargs = given
            with routing_scope(Routing(state.schema, None)):
                self(*args, **{**kwargs, "training": training})

        try:
            given = tree.map_structure(stand_in, ((own, *args), kwargs))
        except _Unclear:
            return
        trains = _compat.heeds_training(self)
        probe = Probe(call, given, other, True, trains, state.readers)
        found = find_orders(probe, unknown)
        if found is None:
            return
        if text := unclear_rows(found):
            raise ValueError(text)
        for path, one in found.items():
            if one.ran:
                unknown[path].row_orders = one.orders
        state.rows_known = all(x.row_orders is not None for x in unknown.values())


class _Unclear(Exception):
    """An input without a batch axis has the length of the batch to try."""


def _length(own: Any, entries: Mapping[str, Any]) -> int | None:
    """The length of a batch; `None` if it is traced, or cannot be told."""
    leaves = [x for x in tree.flatten(own) if len(getattr(x, "shape", None) or ())]
    if any(host_value(x) is None for x in leaves):
        return None
    lengths = {x.shape[0] for x in leaves}
    for entry in entries.values():
        length = leading_size((entry,))
        if length in lengths and length != 1:
            return length
    return lengths.pop() if len(lengths) == 1 else None
