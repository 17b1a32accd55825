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
import keras_hub
import numpy as np
from keras import ops, tree

from keras_flix import _compat
from keras_flix.features.columns import as_columns, is_table
from keras_flix.features.input_entries import (
    batch_length,
    encode_batch,
    encoded,
    layer_ids,
    put_back,
    split_entries,
    take_inputs,
    tf_errors_as_value_errors,
)
from keras_flix.layers.active_scope import Routing, current_routing, routing_scope
from keras_flix.models.adapted import prompts
from keras_flix.models.adapted.adaptation import Adaptation
from keras_flix.models.adapted.arguments import by_name, split_for_validation
from keras_flix.models.adapted.data_sources import map_batches
from keras_flix.models.adapted.devices import MirroredBuild, check_whole
from keras_flix.models.adapted.first_batch import FirstBatch
from keras_flix.models.adapted.frozen_values import FrozenRows
from keras_flix.models.adapted.generation import RoutedGeneration
from keras_flix.models.adapted.optimizer_advice import advise
from keras_flix.models.adapted.own_inputs import check_entries, checked_columns
from keras_flix.models.adapted.plain_view import REGISTERED_NAME, PlainView
from keras_flix.models.adapted.savedmodel_onnx import Exporting
from keras_flix.models.adapted.score import RoutedScore
from keras_flix.models.adapted.state_trees import StateTrees
from keras_flix.models.adapted.thread_lock import take_turns
from keras_flix.models.adapted.train_step import RowGradients
from keras_flix.models.adapted.trained_base import KeepsBaseFrozen, mark_trained
from keras_flix.models.adapted.unsupported import Refusals, never_runs


@take_turns
class RoutedModel(
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
        name, inputs, args, kwargs = take_inputs(args, kwargs)
        state = self._adaptation
        if not state.called:
            check_whole(self)
            state.called = True
        own, entries = split_entries(inputs, state.schema)
        ids: dict[str, Any] = {}
        if not entries:
            self._refuse_a_task_around(inputs)
        if entries and not state.rows_known:
            self._find_rows(inputs, *args[1:], **kwargs)
        if state.disabled:
            inputs = own
        elif entries and keras.KerasTensor not in map(type, entries.values()):
            size = batch_length(own, entries)
            ids = layer_ids(state.schema, entries, size, own)
            # Keras refuses arrays beside tensors in one dict.
            own = tree.map_structure(_as_tensor, own)
            inputs = {**own, **state.schema.as_inputs(ids)}
        with encoded(state.schema, ids):
            return super().__call__(
                *put_back(name, inputs, args),
                **kwargs,
                **({name: inputs} if name else {}),
            )

    def call(self, *args: Any, **kwargs: Any) -> Any:
        name, inputs, args, kwargs = take_inputs(args, kwargs)
        state = self._adaptation
        if kwargs.get("training") and state.no_gradient:
            raise ValueError(state.no_gradient)
        own, entries = split_entries(inputs, state.schema)
        routing = self._routing(own, entries, kwargs.get("training"))
        if not state.takes_training:
            kwargs.pop("training", None)
        own = self._own_inputs(own)
        with routing_scope(routing):
            outputs = super().call(
                *put_back(name, own, args), **kwargs, **({name: own} if name else {})
            )
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

    def _routing(
        self, own: Any, entries: Mapping[str, Any], training: bool | None
    ) -> Routing | None:
        """The routing of one call; `None` inherits that of an outer model."""
        state = self._adaptation
        if state.disabled:
            return Routing(state.schema, None)
        if not entries and current_routing(state.schema) is not None:
            return None
        size = batch_length(own, entries)
        return Routing.from_ids(
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
        if state.verified or routing is None or routing.active is None:
            return
        idle = [p for p, layer in state.layers.items() if id(layer) not in routing.ran]
        if idle:
            raise ValueError(never_runs(idle))
        state.verified = True

    # Data. ---------------------------------------------------------------

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = by_name(super().fit, x, args, kwargs)
        self._check_optimizer()
        x, pipeline = self._feed(x)
        mark_trained(self)
        advise(self, x)
        splits = kwargs.get("validation_split") and _compat.source_kind(x) == "arrays"
        if pipeline and splits and kwargs.get("validation_data") is None:
            x, kwargs = split_for_validation(x, kwargs)
        elif kwargs.get("validation_data") is not None:
            kwargs["validation_data"] = self._feed_validation(
                kwargs["validation_data"], pipeline
            )
        with _compat.variables_survive(self), tf_errors_as_value_errors():
            return self._data_method("fit", pipeline)(x, *args, **kwargs)

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("_use_cached_eval_dataset"):
            return super().evaluate(x, *args, **kwargs)
        args, kwargs = by_name(super().evaluate, x, args, kwargs)
        x, pipeline = self._feed(x)
        with _compat.variables_survive(self), tf_errors_as_value_errors():
            return self._data_method("evaluate", pipeline)(x, *args, **kwargs)

    def predict(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = by_name(super().predict, x, args, kwargs)
        x, pipeline = self._feed(x)
        with _compat.variables_survive(self), tf_errors_as_value_errors():
            return self._data_method("predict", pipeline)(x, *args, **kwargs)

    def train_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        self._check_optimizer()
        return super().train_on_batch(self._encode(x), *args, **kwargs)

    def test_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        return super().test_on_batch(self._encode(x), *args, **kwargs)

    def predict_on_batch(self, x: Any, **kwargs: Any) -> Any:
        return super().predict_on_batch(self._encode(x), **kwargs)

    def preprocess_samples(
        self, x: Any, y: Any = None, sample_weight: Any = None
    ) -> Any:
        """The seam of KerasHub tasks between raw samples and the model."""
        x = self._encode(x)
        own, ids = split_entries(x, self._adaptation.schema)
        preprocessor = self.preprocessor
        check_entries(preprocessor, own, self._adaptation.schema.names)
        if preprocessor is None:
            outputs = keras.utils.pack_x_y_sample_weight(own, y, sample_weight)
        else:
            own = prompts.plain_input(own)
            if isinstance(own, Mapping) and prompts.takes_plain_strings(preprocessor):
                outputs = prompts.preprocess_prompts(preprocessor, own)
            else:
                outputs = super().preprocess_samples(own, y, sample_weight)
        if not ids:
            return outputs
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(outputs)
        own = x if isinstance(x, Mapping) else {"inputs": x}
        return keras.utils.pack_x_y_sample_weight({**own, **ids}, y, sample_weight)

    def _encode(self, x: Any) -> Any:
        state = self._adaptation
        # Without features, a table may itself be what a model of one input takes.
        if state.schema.routed or not state.unwraps:
            x = as_columns(x)
        if state.disabled:
            return split_entries(x, state.schema)[0]
        nested = not isinstance(self, keras_hub.models.Task)
        x = encode_batch(state.schema, x, nested)
        if not state.rows_known and isinstance(x, Mapping):
            # Now: Keras' loops over data trace the model.
            self._find_rows(x)
        return x

    def _encode_all(self, x: Any) -> Any:
        """`_encode` for a whole data set, with what is wrong in it told at once."""
        x = self._encode(x)
        schema = self._adaptation.schema
        own, ids = split_entries(x, schema)
        own = checked_columns(self, own, schema.names)
        return {**own, **ids} if isinstance(own, Mapping) else own

    def _encode_batch(self, batch: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._encode(batch[0]), *batch[1:])

    def _preprocess_batch(self, batch: tuple[Any, ...]) -> tuple[Any, ...]:
        outputs = self.preprocess_samples(*batch)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def _feed(self, x: Any) -> tuple[Any, bool]:
        """Encodes a data source.

        Returns:
            The source, and whether KerasHub's pipeline is still to preprocess
            it: that takes arrays, tf.data and grain datasets, and is led
            around for all others.
        """
        check_whole(self)
        kind = _compat.source_kind(x)
        has_pipeline = isinstance(self, keras_hub.models.Task)
        if kind == "arrays":
            return self._encode_all(x), has_pipeline
        if has_pipeline and kind in ("tf", "grain_dataset"):
            return x, True
        function = self._preprocess_batch if has_pipeline else self._encode_batch
        return map_batches(x, function), False

    def _feed_validation(self, data: Any, pipeline: bool) -> Any:
        if is_table(data):
            data = (data,)
        if isinstance(data, (tuple, list)):
            data = (self._encode_all(data[0]), *data[1:])
            if not pipeline and isinstance(self, keras_hub.models.Task):
                return self._preprocess_batch(data)
            return data
        data, still_pipeline = self._feed(data)
        if still_pipeline and not pipeline:
            return map_batches(data, self._preprocess_batch)
        if pipeline and not still_pipeline:
            raise ValueError(
                "Training and validation data of a KerasHub task must both go "
                "through its preprocessing pipeline (arrays, tf.data, grain "
                "datasets), or neither. Received: validation_data of type "
                f"{type(data).__name__}. Use sources of the same kind."
            )
        return data

    def _data_method(self, name: str, pipeline: bool) -> Any:
        if pipeline or not isinstance(self, keras_hub.models.Task):
            return getattr(super(), name)
        return functools.partial(getattr(keras.Model, name), self)


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
