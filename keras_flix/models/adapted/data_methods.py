"""What an adapted model's `fit` and its kin do with data, whatever form that has."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from typing import Any

import keras
import keras_hub

from keras_flix import _compat
from keras_flix.features.columns import as_columns, is_table
from keras_flix.features.input_entries import (
    encode_batch,
    leading_size,
    split_entries,
    tf_errors_as_value_errors,
)
from keras_flix.models.adapted import cut_counts, cut_texts, prompts, token_weights
from keras_flix.models.adapted.adaptation import Adaptation
from keras_flix.models.adapted.arguments import by_name
from keras_flix.models.adapted.cut_counts import CutTexts
from keras_flix.models.adapted.data_sources import map_batches
from keras_flix.models.adapted.default_features import Stated, before, complete
from keras_flix.models.adapted.devices import check_whole
from keras_flix.models.adapted.example_order import Examples
from keras_flix.models.adapted.mixture_data import (
    as_mixture,
    columns_of,
    parts_of,
    refuse_mixture,
    training_of,
)
from keras_flix.models.adapted.optimizer_advice import advise
from keras_flix.models.adapted.own_callbacks import resumed_draws
from keras_flix.models.adapted.own_inputs import (
    as_input,
    check_entries,
    checked_columns,
)
from keras_flix.models.adapted.task_data import TaskData, named
from keras_flix.models.adapted.trained_base import mark_trained
from keras_flix.models.adapted.unread_data import name_without_rows


class DataMethods(TaskData):
    """The part of an adapted model that encodes what Keras' loops go over."""

    _adaptation: Adaptation

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = by_name(super().fit, x, args, kwargs)
        # Of a `fit` that a backup made go on: this one begins where it is told to.
        _compat.begin_at_epoch(self, None)
        self._check_optimizer()
        texts, validation = CutTexts(trains=True), CutTexts("validation ")
        drawn, mixture = None, as_mixture(x)
        if mixture is not None:
            x, kwargs, drawn = training_of(mixture, named(args, kwargs))
            args = ()
        elif kwargs.get("validation_data") is not None:
            found = parts_of(kwargs["validation_data"], kwargs)
            kwargs = {**kwargs, "validation_data": found}
        batches, (x, stated) = x, self._stated(x, trains=True)
        if drawn is not None or self._is_task_in_memory(x):
            x, kwargs = self._training_examples(x, args, kwargs, texts, drawn)
            args, pipeline = (), False
        else:
            x, pipeline = self._feed(x, stated, texts)
        if pipeline and kwargs.get("validation_data") is not None:
            texts.which = "training and validation "
        advise(self, x.data[0] if isinstance(x, Examples) else x)
        mark_trained(self)
        if kwargs.get("validation_data") is not None:
            kwargs["validation_data"] = self._feed_validation(
                kwargs["validation_data"],
                stated,
                pipeline,
                kwargs.get("validation_batch_size"),
                validation,
            )
        fit = self._data_method("fit", pipeline)
        with (
            resumed_draws(batches, kwargs) as kwargs,
            self._counted(kwargs, texts, validation) as options,
            tf_errors_as_value_errors(),
            _compat.variables_survive(self),
        ):
            try:
                return fit(x, *args, **options)
            except ValueError as error:
                name_without_rows(error, self._adaptation.schema.names, x, kwargs)
                raise

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("_use_cached_eval_dataset"):
            return super().evaluate(x, *args, **kwargs)
        args, kwargs = by_name(super().evaluate, x, args, kwargs)
        texts, mixture = CutTexts(), as_mixture(x)
        if mixture is not None:
            x, kwargs = columns_of(mixture, named(args, kwargs))
            args = ()
        x, stated = self._stated(x)
        if self._is_task_in_memory(x):
            x, kwargs = self._examples(x, args, kwargs, texts)
            args, pipeline = (), False
        else:
            x, pipeline = self._feed(x, stated, texts)
        with (
            self._counted(kwargs, texts) as options,
            tf_errors_as_value_errors(),
            _compat.variables_survive(self),
        ):
            try:
                return self._data_method("evaluate", pipeline)(x, *args, **options)
            except ValueError as error:
                name_without_rows(error, self._adaptation.schema.names, x, kwargs)
                raise

    def predict(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = by_name(super().predict, x, args, kwargs)
        mixture = as_mixture(x)
        x = x if mixture is None else mixture.inputs()
        x, stated = self._stated(x)
        if self._is_task_in_memory(x):
            kwargs = {**dict(zip(("batch_size",), args)), **kwargs}
            x, kwargs = self._examples(x, (), kwargs, None)
            args, pipeline = (), False
        else:
            x, pipeline = self._feed(x, stated)
        with tf_errors_as_value_errors(), _compat.variables_survive(self):
            try:
                return self._data_method("predict", pipeline)(x, *args, **kwargs)
            except ValueError as error:
                name_without_rows(error, self._adaptation.schema.names, x, kwargs)
                raise

    def train_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        trained = self._check_optimizer()
        x = self._encode_one(self._stated(x, trains=True)[0])
        # Not in every step, where only adapters train.
        if not all([getattr(v, "has_rows_of_values", False) for v in trained]):
            mark_trained(self)
        with cut_counts.training_step(self._adaptation):
            return super().train_on_batch(x, *args, **kwargs)

    def test_on_batch(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        x = self._encode_one(self._stated(x)[0])
        return super().test_on_batch(x, *args, **kwargs)

    def predict_on_batch(self, x: Any, **kwargs: Any) -> Any:
        x = self._encode_one(self._stated(x)[0])
        return super().predict_on_batch(x, **kwargs)

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

    def _is_task_in_memory(self, x: Any) -> bool:
        is_task = isinstance(self, keras_hub.models.Task)
        return is_task and _compat.source_kind(x) == "arrays"

    def _counted(self, options: dict[str, Any], *texts: CutTexts) -> Any:
        """Counts texts that are cut, in a model that takes texts."""
        if not isinstance(self, keras_hub.models.Task):
            return contextlib.nullcontext(options)
        return cut_counts.counted(self._adaptation, options, *texts)

    def _stated(self, x: Any, trains: bool = False) -> tuple[Any, Stated]:
        """What is stated for inputs without features, and `x` with it.

        A source gets it batch by batch, later, in threads that know nothing of it.
        """
        stated = self._adaptation.defaults.now(trains)
        if not isinstance(x, Mapping):
            refuse_mixture(x)
        if stated and _compat.source_kind(x) == "arrays":
            x = complete(self, x, stated)
        return x, stated

    def _encode(self, x: Any) -> Any:
        if not isinstance(x, Mapping):
            refuse_mixture(x)
        state = self._adaptation
        # Without features, a table may itself be what a model of one input takes.
        if state.schema.routed or not state.unwraps:
            x = as_columns(x, state.schema.of_strings)
        if state.disabled:
            return split_entries(x, state.schema)[0]
        nested = not isinstance(self, keras_hub.models.Task)
        x = encode_batch(state.schema, x, nested)
        if not state.rows_known and isinstance(x, Mapping):
            # Now: Keras' loops over data trace the model.
            self._find_rows(x)
        return x

    def _encode_one(self, x: Any) -> Any:
        """`_encode` for one batch, in which lists of numbers become arrays."""
        x = self._encode(x)
        if not isinstance(x, Mapping) or isinstance(self, keras_hub.models.Task):
            return x
        return {k: as_input(k, v) if isinstance(v, list) else v for k, v in x.items()}

    def _encode_all(self, x: Any) -> Any:
        """`_encode` for a whole data set, with what is wrong in it told at once."""
        x = self._encode(x)
        schema = self._adaptation.schema
        own, ids = split_entries(x, schema)
        own = checked_columns(self, own, leading_size(own), schema.names)
        return {**own, **ids} if isinstance(own, Mapping) else own

    def _encode_batch(self, batch: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._encode(batch[0]), *batch[1:])

    def _preprocess_batch(
        self, batch: tuple[Any, ...], texts: CutTexts | None = None
    ) -> tuple[Any, ...]:
        with contextlib.nullcontext() if texts is None else texts.of_rows():
            outputs = self.preprocess_samples(*batch)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def _feed(
        self, x: Any, stated: Stated, texts: CutTexts | None = None
    ) -> tuple[Any, bool]:
        """Encodes a data source, and counts texts that are cut.

        Returns:
            The source, and whether KerasHub's pipeline is still to preprocess it: that
            knows how long grain datasets are, and is led around for all others.
        """
        check_whole(self)
        self._adaptation.called = True
        kind = _compat.source_kind(x)
        has_pipeline = isinstance(self, keras_hub.models.Task)
        if kind == "arrays":
            return self._encode_all(x), has_pipeline
        if not has_pipeline:
            return map_batches(x, before(self, self._encode_batch, stated)), False
        if kind == "grain_dataset":
            return self._left_to_keras_hub(x, stated), True
        return self._preprocessed(x, stated, texts), False

    def _left_to_keras_hub(self, source: Any, stated: Stated) -> Any:
        """A data source that KerasHub's own pipeline preprocesses."""
        if not stated:
            return source
        return map_batches(source, before(self, self._encode_batch, stated))

    def _preprocessed(self, source: Any, stated: Stated, texts: CutTexts | None) -> Any:
        """A data source whose batches are preprocessed here."""
        if _compat.source_kind(source) == "tf":
            _compat.renew_tokenizer(getattr(self.preprocessor, "tokenizer", None))
        function = functools.partial(self._preprocess_batch, texts=texts)
        return map_batches(source, before(self, function, stated), ahead=True)

    def _feed_validation(
        self,
        data: Any,
        stated: Stated,
        pipeline: bool,
        batch_size: int | None,
        texts: CutTexts,
    ) -> Any:
        if is_table(data):
            data = (data,)
        if isinstance(data, (tuple, list)):
            data = (complete(self, data[0], stated), *data[1:])
            if not isinstance(self, keras_hub.models.Task):
                return (self._encode_all(data[0]), *data[1:])
            if pipeline:
                return self._validation_arrays(data)
            return self._validation_examples(data, batch_size, texts)
        if not isinstance(self, keras_hub.models.Task):
            return self._feed(data, stated, texts)[0]
        check_whole(self)
        if not pipeline:
            return self._preprocessed(data, stated, texts)
        if _compat.source_kind(data) not in ("tf", "grain_dataset"):
            raise ValueError(
                "Beside training data in a grain dataset, validation data of a task "
                "must be arrays, a tf.data or a grain dataset. Received: "
                f"validation_data of type {type(data).__name__}. Convert one of them."
            )
        return self._left_to_keras_hub(data, stated)

    def _data_method(self, name: str, pipeline: bool) -> Any:
        if pipeline or not isinstance(self, keras_hub.models.Task):
            return getattr(super(), name)
        return functools.partial(getattr(keras.Model, name), self)
