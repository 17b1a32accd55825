"""Features that are stated for calls whose inputs bring none.

They join the entries of an input dict before anything is encoded or compiled, so that
from there on they are what stated entries are: ids among a model's inputs.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import types
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import tree

from keras_flix.features.columns import as_columns, described
from keras_flix.features.encoding import ForAll
from keras_flix.features.feature import Feature
from keras_flix.features.host_values import host_value, is_tracing
from keras_flix.features.input_entries import split_entries
from keras_flix.features.schema import FeatureSchema
from keras_flix.layers.active_scope import current_routing

if TYPE_CHECKING:
    from keras_flix.models.adapted.adaptation import Adaptation
    from keras_flix.models.adapted.data_sources import BatchFunction

Values = Mapping[str, Any]
"""By feature: a value or `None`; a list of values; a dict from values to weights."""

Entries = dict[str, Any]
"""Entries for an input dict."""


@dataclasses.dataclass(frozen=True)
class Stated:
    """What is stated for calls that bring no features, at one time in one context.

    Attributes:
        of_model: By `set_default_features`.
        of_block: By the blocks of `use_features`; these win.
        trains: Whether it is asked for training, which takes only that of blocks.
    """

    of_model: Values
    of_block: Values
    trains: bool

    def __bool__(self) -> bool:
        return bool(self.of_model or self.of_block)

    def entries(self, schema: FeatureSchema, given: Mapping[str, Any]) -> Entries:
        """Entries, for a batch of any length, of what the given ones leave out."""
        values = {**self.of_model, **self.of_block}
        names = [f.name for f in _missing(schema, given) if f.name in values]
        forgotten = [name for name in names if name not in self.of_block]
        if self.trains and forgotten:
            raise ValueError(
                "Training takes no features from `set_default_features`. Received: "
                f"training data without {forgotten}. State them in the data, or train "
                "within `keras_flix.use_features(model, ...)`."
            )
        if not names:
            return {}
        absent = {feature.name: None for feature in schema.routed}
        ids = schema.encode_one({**absent, **{name: values[name] for name in names}})
        return schema.as_inputs({n: ForAll(np.asarray(ids[n][0])) for n in names})


@dataclasses.dataclass(eq=False)
class DefaultFeatures:
    """What is stated of a model, its backbone and those that share its features.

    Attributes:
        of_model: What `set_default_features` stated, for all threads.
    """

    of_model: Values = dataclasses.field(default_factory=dict)

    def rename(self, feature: str, old: Any, new: Any) -> None:
        """Goes on stating a value that has another name now."""

        def renamed(entry: Any) -> Any:
            if isinstance(entry, Mapping):
                return {renamed(value): weight for value, weight in entry.items()}
            if isinstance(entry, (list, tuple)):
                return [renamed(value) for value in entry]
            return new if entry == old else entry

        if feature in self.of_model:
            entry = renamed(self.of_model[feature])
            self.of_model = {**self.of_model, feature: entry}

    def now(self, trains: bool = False) -> Stated:
        """What is stated where this is called, see `Stated`."""
        return Stated(self.of_model, _blocks.get().get(self, {}), trains)

    @contextlib.contextmanager
    def block(self, values: Values) -> Iterator[None]:
        """Within the block, in its context alone, these values hold besides."""
        blocks = _blocks.get()
        token = _blocks.set({**blocks, self: {**blocks.get(self, {}), **values}})
        try:
            yield
        finally:
            _blocks.reset(token)


# In the context: other threads, and tasks that began before, are not in the block.
_blocks: contextvars.ContextVar[Mapping[DefaultFeatures, Values]] = (
    contextvars.ContextVar(
        "keras_flix_default_features", default=types.MappingProxyType({})
    )
)


def checked_values(schema: FeatureSchema, features: Any) -> Values:
    """Entries that hold for all examples, as values, which ids would not outlive.

    Args:
        schema: The features.
        features: Entries of some of them.
    """
    if not isinstance(features, Mapping):
        raise ValueError(
            "Features must be stated as a dict from their names to values. Received: "
            f"{described(features)}. Write such as {{{schema.names[0]!r}: ...}}."
        )
    for key, entry in features.items():
        if key in schema.entry_names:
            _check_holds_for_all(schema[schema.entry_names[key]], key, entry)
    absent = {feature.name: None for feature in _missing(schema, features)}
    given = {key: host_value(entry) for key, entry in features.items()}
    values = schema.decode(schema.encode_one({**absent, **given}))
    return {name: one for name, (one,) in values.items() if name not in absent}


def _check_holds_for_all(feature: Feature, key: str, entry: Any) -> None:
    is_list = isinstance(entry, (list, tuple))
    axes = 1 if is_list else len(getattr(entry, "shape", ()))
    traced = entry is not None and host_value(entry) is None
    if axes > feature.multiple or traced:
        several = ", a list of values" if feature.multiple else ""
        raise ValueError(
            "What is stated for all examples must be one value per feature"
            f"{several}, a dict from values to weights, or None. Received: {key}="
            f"{described(entry)}. Put entries that differ into the input dict."
        )


def _missing(schema: FeatureSchema, entries: Mapping[str, Any]) -> list[Feature]:
    return [
        f for f in schema.routed if f.name not in entries and f.ids_key not in entries
    ]


def default_entries(
    state: Adaptation,
    own: Any,
    entries: Mapping[str, Any],
    trains: bool | None = False,
) -> Entries:
    """What is stated now of the features that the inputs of a call leave out.

    Args:
        state: What `enable_flix` did to the model.
        own: The model's own inputs.
        entries: The entries that the inputs bring.
        trains: See `Stated`.
    """
    # In most calls nothing is missing. A part of a model goes by the whole one.
    if len(entries) >= len(state.schema.routed) or state.disabled:
        return {}
    if current_routing(state.schema) is not None:
        return {}
    added = state.defaults.now(bool(trains)).entries(state.schema, entries)
    if added and (is_tracing() or keras.KerasTensor in map(type, tree.flatten(own))):
        raise ValueError(
            "A function that is compiled, or a model that is made of another, must "
            f"have the features among its inputs. Received: no entries {list(added)}, "
            "which `use_features` or `set_default_features` states; it would keep "
            "today's values. Pass them on, as in model({**inputs, **features})."
        )
    return added


def with_entries(model: Any, inputs: Any, added: Entries) -> Any:
    """A model's own inputs, or its input dict, with more entries.

    `inputs` themselves where there are none.
    """
    if not added:
        return inputs
    if not isinstance(inputs, Mapping):
        inputs = {_key(model._adaptation): inputs}
    return {**inputs, **added}


def _key(state: Adaptation) -> str:
    """Under this key, an input dict holds the only input of a model that takes one."""
    keys = state.input_keys or _free_keys(state.schema)
    if state.input_keys and len(keys) > 1:
        raise ValueError(
            f"The inputs of a model that takes several must be a dict of {keys}. "
            "Received: no dict. Name them; features that `use_features` or "
            "`set_default_features` states may be left out."
        )
    return keys[0]


def _free_keys(schema: FeatureSchema) -> list[str]:
    # What tasks take; no feature of a task is called "text".
    keys = ("inputs", "text", "own inputs")
    return [key for key in keys if key not in schema.entry_names]


def before(model: Any, function: BatchFunction, stated: Stated) -> BatchFunction:
    """A function of batches that gets them with what is stated, on whatever thread."""
    if not stated:
        return function
    return functools.partial(_with_stated, model, function, stated)


def _with_stated(
    model: Any, function: BatchFunction, stated: Stated, batch: tuple[Any, ...]
) -> tuple[Any, ...]:
    return function((complete(model, batch[0], stated), *batch[1:]))


def complete(model: Any, x: Any, stated: Stated) -> Any:
    """A batch, or a whole data set of any form, with what is stated of its features."""
    state = model._adaptation
    if not stated or state.disabled or not state.schema.routed:
        return x
    x = as_columns(x, state.schema.of_strings)
    _, entries = split_entries(x, state.schema)
    added = stated.entries(state.schema, entries)
    if added and not isinstance(x, Mapping) and getattr(model, "preprocessor", None):
        x = {_free_keys(state.schema)[0]: x}
    return with_entries(model, x, added)
