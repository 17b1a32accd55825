"""What `enable_flix` makes of a model: one that routes features.

`routed_class(cls)` derives from the model's own class and overrides its entry
points. All of them come down to one thing: ids are inputs of the model, taken
out of the input dict inside `call` and put in the routing scope.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from keras_flix import _compat
from keras_flix.features.input_entries import (
    batch_length,
    encoded,
    layer_ids,
    split_entries,
)
from keras_flix.layers.active_scope import Routing, current_routing, routing_scope
from keras_flix.models.adapted.adaptation import Adaptation
from keras_flix.models.adapted.data_methods import DataMethods
from keras_flix.models.adapted.default_features import default_entries, with_entries
from keras_flix.models.adapted.devices import MirroredBuild, check_whole
from keras_flix.models.adapted.first_batch import FirstBatch
from keras_flix.models.adapted.frozen_values import FrozenRows
from keras_flix.models.adapted.generation import RoutedGeneration
from keras_flix.models.adapted.mixture_data import refuse_mixture
from keras_flix.models.adapted.plain_view import REGISTERED_NAME, PlainView
from keras_flix.models.adapted.savedmodel_onnx import Exporting
from keras_flix.models.adapted.score import RoutedScore
from keras_flix.models.adapted.state_trees import StateTrees
from keras_flix.models.adapted.thread_lock import take_turns
from keras_flix.models.adapted.train_step import RowGradients
from keras_flix.models.adapted.trained_base import KeepsBaseFrozen
from keras_flix.models.adapted.unsupported import Refusals, never_runs


@take_turns
class RoutedModel(
    DataMethods,
    RoutedGeneration,
    FirstBatch,
    FrozenRows,
    KeepsBaseFrozen,
    RowGradients,
    MirroredBuild,
    PlainView,
    StateTrees,
    Exporting,
    Refusals,
):
    """Mixin of adapted models; the model's own class comes after it."""

    _adaptation: Adaptation

    # Entry points of a forward pass. -------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name, inputs, args, kwargs = _take_inputs(args, kwargs)
        state = self._adaptation
        if not state.called:
            check_whole(self)
            state.called = True
        own, entries = split_entries(inputs, state.schema)
        ids: dict[str, Any] = {}
        if not entries:
            refuse_mixture(inputs)
            self._refuse_a_task_around(inputs)
        if len(entries) < len(state.schema.routed):
            added = default_entries(state, own, entries, kwargs.get("training"))
            inputs = with_entries(self, inputs, added)
            own, entries = split_entries(inputs, state.schema)
        if entries and not state.rows_known:
            self._find_rows(inputs, *args[1:], **kwargs)
        if state.disabled:
            inputs = own
        elif entries and keras.KerasTensor not in map(type, entries.values()):
            size = batch_length(own, entries)
            ids = layer_ids(state.schema, entries, size, own)
            encoded_entries = state.schema.as_inputs(ids)
            # Keras refuses arrays beside tensors in one dict.
            own = tree.map_structure(_as_tensor, own)
            inputs = {**own, **encoded_entries}
        args, kwargs = _put_back(name, inputs, args, kwargs)
        with encoded(state.schema, ids):
            return super().__call__(*args, **kwargs)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        name, inputs, args, kwargs = _take_inputs(args, kwargs)
        state = self._adaptation
        if kwargs.get("training") and state.no_gradient:
            raise ValueError(state.no_gradient)
        own, routing = self._routed(inputs, kwargs.get("training"))
        if not state.takes_training:
            kwargs.pop("training", None)
        args, kwargs = _put_back(name, self._own_inputs(own), args, kwargs)
        with routing_scope(routing):
            outputs = super().call(*args, **kwargs)
        if not state.verified:
            self._check_all_ran(routing)
        return outputs

    def compute_output_spec(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        # Shapes do not depend on the features, but those must be stated.
        own, entries = split_entries(inputs, self._adaptation.schema)
        if (
            current_routing(self._adaptation.schema) is None
            and not self._adaptation.disabled
        ):
            beside = own if isinstance(own, Mapping) else ()
            self._adaptation.schema.check_entries(entries, beside)
        if not self._adaptation.takes_training:
            kwargs.pop("training", None)
        with routing_scope(Routing(self._adaptation.schema, None)):
            return super().compute_output_spec(self._own_inputs(own), *args, **kwargs)

    def _assert_input_compatibility(self, *args: Any) -> None:
        own, _ = split_entries(args[0], self._adaptation.schema)
        super()._assert_input_compatibility(self._own_inputs(own), *args[1:])

    def _own_inputs(self, own: Any) -> Any:
        keys = self._adaptation.input_keys
        if keys is not None and isinstance(own, Mapping) and set(own) - set(keys):
            # A functional model would go by the order of the keys.
            raise ValueError(
                f"The input dict must hold the model's own inputs {keys} and its "
                f"features {self._adaptation.schema.names}. Received: entries "
                f"{sorted(set(own) - set(keys))} besides. Remove them."
            )
        if self._adaptation.unwraps and isinstance(own, Mapping) and len(own) == 1:
            return next(iter(own.values()))
        return own

    def _routed(self, inputs: Any, training: bool | None) -> tuple[Any, Routing | None]:
        """The own inputs of one call and its routing; `None` inherits an outer one."""
        state = self._adaptation
        own, entries = split_entries(inputs, state.schema)
        if state.disabled:
            return own, Routing(state.schema, None)
        if not entries and current_routing(state.schema) is not None:
            return own, None
        size = batch_length(own, entries)
        return own, Routing.from_ids(
            state.schema,
            layer_ids(state.schema, entries, size, own),
            batch_size=size,
            dropout_seed=state.dropout_seed if training else None,
            trained=state.trained,
        )

    def rematerialized_call(self, layer_call: Any, *args: Any, **kwargs: Any) -> Any:
        # Run again in the backward pass, `call` would drop other features than
        # in the forward pass. The layers below are rematerialized each.
        return layer_call

    def _check_all_ran(self, routing: Routing | None) -> None:
        state = self._adaptation
        if routing is None or routing.active is None:
            return
        idle = [p for p, layer in state.layers.items() if id(layer) not in routing.ran]
        if idle:
            raise ValueError(never_runs(idle))
        state.verified = True


def _take_inputs(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[str | None, Any, tuple[Any, ...], dict[str, Any]]:
    """The first argument, whether it came by position or by keyword."""
    if args:
        return None, args[0], args, kwargs
    kwargs = dict(kwargs)
    for name in kwargs:
        if name not in ("training", "mask"):
            return name, kwargs.pop(name), (), kwargs
    return None, None, args, kwargs


def _put_back(
    name: str | None, inputs: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with other inputs, undoing `_take_inputs`."""
    if name:
        return args, {**kwargs, name: inputs}
    return (inputs, *args[1:]), kwargs


def _as_tensor(x: Any) -> Any:
    is_numeric = isinstance(x, np.ndarray) and x.dtype.kind in "biuf"
    return ops.convert_to_tensor(x) if is_numeric else x


@functools.cache
def routed_class(cls: type) -> type:
    """The class of adapted models of class `cls`: the same name, a subclass."""
    names = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
    }
    bases: tuple[type, ...] = (RoutedModel, cls)
    if hasattr(cls, "score"):
        bases = (RoutedScore, *bases)
    routed = type(cls.__name__, bases, names)
    _compat.register_class_name(routed, REGISTERED_NAME)
    return routed
