"""`generate` with features: ids travel with the batch into the compiled step."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_flix import _compat
from keras_flix.features.columns import as_columns, described
from keras_flix.features.input_entries import (
    encode_inputs,
    layer_ids,
    leading_size,
    none_for_empty,
    split_entries,
)
from keras_flix.layers.active_scope import Routing, routing_scope
from keras_flix.models.adapted import cut_texts, prompts
from keras_flix.models.adapted.adaptation import Adaptation
from keras_flix.models.adapted.default_features import default_entries
from keras_flix.models.adapted.mixture_data import refuse_mixture
from keras_flix.models.adapted.own_inputs import (
    GENERATE_KEYS,
    check_entries,
    check_texts,
)

# Between `generate` and the compiled step lies KerasHub's own code, which knows
# two tensors. What it must not see waits here, for this call on this thread.
_waiting: contextvars.ContextVar[dict[str, np.ndarray] | None] = contextvars.ContextVar(
    "keras_flix_generation", default=None
)

_making = threading.Lock()
"""One thread at a time makes what a model's first generation makes."""


class RoutedGeneration(_compat.Mixin):
    """The part of an adapted model that generates."""

    def generate(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """As the model's own `generate`, with feature entries in a dict.

        Args:
            inputs: A dict of prompts (`"prompts"`, or `"text"`), or of
                `token_ids` and `padding_mask` where no preprocessor is
                attached, with one entry per feature; the same as a table of
                another form, as for `fit`; or a `tf.data.Dataset` of such dicts.
            *args: As for the model's own `generate`.
            **kwargs: As for the model's own `generate`. An `assistant_model` that
                drafts may be plain, merged, or adapted with the same schema; it then
                drafts by the features of each prompt.
        """
        assistant = kwargs.get("assistant_model")
        _check_assistant(self._adaptation, assistant)
        if _compat.source_kind(inputs) == "tf":
            batches = [
                {key: none_for_empty(value) for key, value in batch.items()}
                if isinstance(batch, Mapping)
                else batch
                for batch in inputs.as_numpy_iterator()
            ]
            with cut_texts.prompts_counted():
                return _concatenate(
                    [self.generate(b, *args, **kwargs) for b in batches]
                )
        refuse_mixture(inputs)
        state = self._adaptation
        own, entries = split_entries(
            as_columns(inputs, state.schema.of_strings), state.schema
        )
        check_entries(self.preprocessor, own, state.schema.names, generates=True)
        check_texts(own)
        if state.disabled:
            ids = {}
        else:
            size = leading_size(own)
            if not size:
                raise ValueError(
                    "`generate` must have at least one prompt, next to the "
                    f"features. Received: {described(own)}. Pass "
                    '{"prompts": [...], ...}.'
                )
            entries |= default_entries(state, own, entries)
            ids = encode_inputs(state.schema, entries, size, own)
            ids = state.schema.as_inputs(ids)
        if self.preprocessor is not None:
            with _making:
                # As KerasHub does at the first use, where threads would meet.
                if not self.preprocessor.built:
                    self.preprocessor.build(None)
            own = _python_strings(own)
            if prompts.takes_plain_strings(self.preprocessor):
                own = prompts.plain_input(own, GENERATE_KEYS)
        token = _waiting.set(ids)
        try:
            with (
                cut_texts.prompts_counted(self.preprocessor, own),
                _compat.drafting(self, assistant),
            ):
                return super().generate(own, *args, **kwargs)
        finally:
            _waiting.reset(token)

    def make_generate_function(self) -> Any:
        # KerasHub sets the attribute before the function is made.
        with _making:
            function = super().make_generate_function()

        def with_ids(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            ids = _waiting.get()
            cut_texts.look_at_prompts(inputs)
            return function({**inputs, **ids} if ids else inputs, *args, **kwargs)

        return with_ids

    def generate_step(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        state = self._adaptation
        own, entries = split_entries(inputs, state.schema)
        if state.disabled:
            routing = Routing(state.schema, None)
        else:
            size = leading_size(own)
            routing = Routing.from_ids(
                state.schema,
                layer_ids(state.schema, entries, size),
                generates=_keeps_rows_together(getattr(self, "sampler", None)),
            )
            # Once, not per token: each token would cost more to look up than to adapt.
            for layer in state.layers.values():
                gathered = layer.gather_ahead(routing.active or {})
                if gathered is not None:
                    routing.gathered[id(layer)] = gathered
        with routing_scope(routing):
            return super().generate_step(own, *args, **kwargs)


def _check_assistant(state: Adaptation, assistant: Any) -> None:
    """Raises unless the layers of a model that drafts get the features they take."""
    own = getattr(assistant, "_adaptation", None)
    if own is None or own.disabled or not own.schema.routed:
        return
    if own.schema != state.schema:
        raise ValueError(
            "An assistant that is adapted must have the features of the model that it "
            f"drafts for, with equal ranks and options: {state.schema!r}. Received: an "
            f"assistant with {own.schema!r}. Adapt it by `enable_flix(assistant, "
            "schema_of(model))`, or pass one without adapters, such as "
            "`merge_features(assistant, ...)` gives."
        )


def _keeps_rows_together(sampler: Any) -> bool:
    """Whether a sampler is known to repeat the rows of an example side by side."""
    return type(sampler).__module__.partition(".")[0] == "keras_hub"


def _python_strings(inputs: Any) -> Any:
    """Prompts of a numpy iterator as Python strings, in a new dict."""

    def convert(x: Any) -> Any:
        if isinstance(x, np.ndarray) and x.dtype.kind in "OSU":
            x = x.tolist()
        if isinstance(x, bytes):
            return x.decode("utf-8")
        if isinstance(x, list):
            return [convert(item) for item in x]
        return x

    if isinstance(inputs, Mapping):
        return {key: convert(value) for key, value in inputs.items()}
    return convert(inputs)


def _concatenate(batches: list[Any]) -> Any:
    if isinstance(batches[0], dict):
        return {key: _concatenate([b[key] for b in batches]) for key in batches[0]}
    if isinstance(batches[0], list):
        return [item for batch in batches for item in batch]
    return np.concatenate(batches, axis=0)
