"""What `enable_flix` makes of a model: one that routes features.

`routed_class(cls)` derives from the model's own class and overrides its entry
points. All of them come down to one thing: ids are inputs of the model, taken
out of the input dict inside `call` and put in the routing scope.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from typing import Any

import keras
import keras_hub
import numpy as np
from keras import ops, tree

from keras_flix import _compat
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
from keras_flix.models.adapted import cut_counts, cut_texts, prompts, token_weights
from keras_flix.models.adapted.adaptation import Adaptation
from keras_flix.models.adapted.cut_counts import CutTexts
from keras_flix.models.adapted.data_sources import map_batches
from keras_flix.models.adapted.devices import MirroredBuild
from keras_flix.models.adapted.frozen_values import FrozenRows
from keras_flix.models.adapted.generation import RoutedGeneration
from keras_flix.models.adapted.plain_view import REGISTERED_NAME, PlainView
from keras_flix.models.adapted.savedmodel_onnx import Exporting
from keras_flix.models.adapted.task_data import TaskData
from keras_flix.models.adapted.thread_lock import take_turns
from keras_flix.models.adapted.train_step import RowGradients
from keras_flix.models.adapted.unsupported import Refusals, never_runs


@take_turns
class RoutedModel(
    RoutedGeneration,
    TaskData,
    FrozenRows,
    RowGradients,
    MirroredBuild,
    PlainView,
    Exporting,
    Refusals,
):
    """Mixin of adapted models; the model's own class comes after it."""

    _adaptation: Adaptation

    # Entry points of a forward pass. -------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name, inputs, args, kwargs = take_inputs(args, kwargs)
        state = self._adaptation
        own, entries = split_entries(inputs, state.schema)
        ids: dict[str, Any] = {}
        if not entries:
            self._refuse_a_task_around(inputs)
        if state.disabled:
            inputs = own
        elif entries and keras.KerasTensor not in map(type, entries.values()):
            ids = layer_ids(state.schema, entries, batch_length(own, entries))
            # Keras refuses arrays beside tensors in one dict.
            inputs = {**tree.map_structure(_as_tensor, own), **ids}
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
            self._adaptation.schema.check_entries(entries)
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
            layer_ids(state.schema, entries, size),
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
        self._check_optimizer()
        texts, validation = CutTexts(trains=True), CutTexts("validation ")
        if self._is_task_in_memory(x):
            x, kwargs = self._training_examples(x, args, kwargs, texts)
            args, pipeline = (), False
        else:
            x, pipeline = self._feed(x, texts)
        if kwargs.get("validation_data") is not None:
            kwargs["validation_data"] = self._feed_validation(
                kwargs["validation_data"],
                pipeline,
                kwargs.get("validation_batch_size"),
                validation,
            )
        with (
            cut_counts.counted(self._adaptation, kwargs, texts, validation) as options,
            _compat.variables_survive(self),
            tf_errors_as_value_errors(),
        ):
            return self._data_method("fit", pipeline)(x, *args, **options)

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("_use_cached_eval_dataset"):
            return super().evaluate(x, *args, **kwargs)
        texts = CutTexts()
        if self._is_task_in_memory(x):
            x, kwargs = self._examples(x, args, kwargs, texts)
            args, pipeline = (), False
        else:
            x, pipeline = self._feed(x, texts)
        with (
            cut_counts.counted(self._adaptation, kwargs, texts) as options,
            _compat.variables_survive(self),
            tf_errors_as_value_errors(),
        ):
            return self._data_method("evaluate", pipeline)(x, *args, **options)

    def predict(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        if self._is_task_in_memory(x):
            kwargs = {**dict(zip(("batch_size",), args)), **kwargs}
            x, kwargs = self._examples(x, (), kwargs, None)
            args, pipeline = (), False
        else:
            x, pipeline = self._feed(x)
        with _compat.variables_survive(self), tf_errors_as_value_errors():
            return self._data_method("predict", pipeline)(x, *args, **kwargs)

    def train_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        self._check_optimizer()
        with cut_counts.training_step(self._adaptation):
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
        if preprocessor is None:
            outputs = keras.utils.pack_x_y_sample_weight(own, y, sample_weight)
        else:
            token_weights.refuse_targets(preprocessor, y)
            makes_targets = token_weights.makes_targets(preprocessor)
            own = prompts.plain_input(own)
            if isinstance(own, Mapping) and prompts.takes_plain_strings(preprocessor):
                outputs = prompts.preprocess_prompts(preprocessor, own)
            elif makes_targets:
                outputs = super().preprocess_samples(own)
            else:
                outputs = super().preprocess_samples(own, y, sample_weight)
            if makes_targets:
                token_weights.check_weights(outputs, sample_weight)
            outputs = cut_texts.watched(
                self._adaptation, preprocessor, own, outputs, sample_weight
            )
            if makes_targets:
                outputs = token_weights.weigh(outputs, sample_weight)
        if not ids:
            return outputs
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(outputs)
        own = x if isinstance(x, Mapping) else {"inputs": x}
        return keras.utils.pack_x_y_sample_weight({**own, **ids}, y, sample_weight)

    def _encode(self, x: Any) -> Any:
        if self._adaptation.disabled:
            return split_entries(x, self._adaptation.schema)[0]
        return encode_batch(self._adaptation.schema, x)

    def _encode_batch(self, batch: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._encode(batch[0]), *batch[1:])

    def _preprocess_batch(
        self, batch: tuple[Any, ...], texts: CutTexts | None = None
    ) -> tuple[Any, ...]:
        with contextlib.nullcontext() if texts is None else texts.of_rows():
            outputs = self.preprocess_samples(*batch)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def _feed(self, x: Any, texts: CutTexts | None = None) -> tuple[Any, bool]:
        """Encodes a data source, and counts texts that are cut.

        Returns:
            The source, and whether KerasHub's pipeline is still to preprocess it: that
            takes tf.data and grain datasets, and is led around for all others.
        """
        kind = _compat.source_kind(x)
        has_pipeline = isinstance(self, keras_hub.models.Task)
        if kind == "arrays":
            return self._encode(x), has_pipeline
        if has_pipeline and kind in ("tf", "grain_dataset"):
            return x, True
        function = functools.partial(self._preprocess_batch, texts=texts)
        return map_batches(x, function if has_pipeline else self._encode_batch), False

    def _feed_validation(
        self, data: Any, pipeline: bool, batch_size: int | None, texts: CutTexts
    ) -> Any:
        if isinstance(data, Mapping):
            data = (data,)
        if isinstance(data, (tuple, list)):
            if not isinstance(self, keras_hub.models.Task):
                return (self._encode(data[0]), *data[1:])
            if pipeline:
                return self._validation_arrays(data)
            return self._validation_examples(data, batch_size, texts)
        data, still_pipeline = self._feed(data, texts)
        if still_pipeline and not pipeline:
            function = functools.partial(self._preprocess_batch, texts=texts)
            return map_batches(data, function)
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
    routed = type(cls.__name__, (RoutedModel, cls), names)
    _compat.register_class_name(routed, REGISTERED_NAME)
    return routed
