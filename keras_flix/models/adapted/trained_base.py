"""What trains in an adapted model besides its adapters, such as a head."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import keras_hub

from keras_flix import _compat
from keras_flix.layers.holds_tables import HoldsTables
from keras_flix.layers.token_rows import TokenRows
from keras_flix.models.adapted.adaptation import is_adapted

FLOATS = ("bfloat16", "float16", "float32", "float64")
Described = list[list[Any]]
"""Layers and variables by their places in a model, in JSON's types."""


class BaseVariable(NamedTuple):
    """A variable of a model that is no adapter.

    Attributes:
        name: Its path; with `:2` and so on where others have that too.
        layer: Whose it is.
        variable: The variable.
    """

    name: str
    layer: keras.layers.Layer
    variable: keras.Variable


def base_variables(model: keras.Model) -> list[BaseVariable]:
    """All variables of a model but the adapters, each with a name of its own."""
    counts: Counter[str] = Counter()
    found: list[BaseVariable] = []
    layers = [model, *_compat.flatten_layers(model)]
    seen: set[int] = set()
    for layer in layers:
        if isinstance(layer, TokenRows):
            seen.update(map(id, layer.adapter_variables().values()))
    for layer, variable in _compat.variables_of(layers):
        if id(variable) in seen or getattr(variable, "has_rows_of_values", False):
            continue
        seen.add(id(variable))
        # Two layers may have the same path.
        path = variable.path
        counts[path] += 1
        name = path if counts[path] == 1 else f"{path}:{counts[path]}"
        found.append(BaseVariable(name, layer, variable))
    return found


def trained_base(model: keras.Model) -> dict[str, keras.Variable]:
    """What trains besides the adapters, or has trained since `enable_flix`.

    Also what moves without gradients in layers that train, such as the averages of
    batch normalization. What `train` has chosen counts from the start. What a layer's
    flag lets train does while it is on, and for good from `fit`, `train_on_batch`, a
    copy, loaded weights, or `model.trainable = False` on.

    Args:
        model: An adapted model; of others, nothing is known.

    Returns:
        Variables by name, in order.
    """
    return _trained_base(model) if is_adapted(model) else {}


def _trained_base(model: Any) -> dict[str, keras.Variable]:
    parts = set(map(id, model._adaptation.parts))
    found = {}
    for name, layer, variable in base_variables(model):
        # Of these, the layers' flags are for the adapters.
        adapted = isinstance(layer, (HoldsTables, TokenRows)) or id(layer) in parts
        is_on = variable.trainable or (layer.trainable and not adapted)
        if getattr(variable, "has_trained", False) or (
            is_on and _trains(layer, variable, adapted)
        ):
            found[name] = variable
    return found


def _trains(layer: Any, variable: keras.Variable, adapted: bool) -> bool:
    """Whether what is on, or is in a layer that is, trains."""
    if keras.backend.standardize_dtype(variable.dtype) not in FLOATS:
        return False
    if any([variable is v for v in _compat.by_gradients(layer)]):
        return bool(variable.trainable)
    return not adapted and _compat.is_on(layer)


def token_variables(model: keras.Model) -> dict[str, keras.Variable]:
    """The rows of tokens that train, by path; empty for a plain model."""
    layers = model._adaptation.token_rows if is_adapted(model) else ()
    return {
        f"{layer.path}/{name}": variable
        for layer in layers
        for name, variable in layer.adapter_variables().items()
    }


def heads(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers with weights of their own that a KerasHub task has on its backbone."""
    backbone = getattr(model, "backbone", None)
    if not isinstance(model, keras_hub.models.Task) or backbone is None:
        return []
    inner = {id(backbone)} | {id(layer) for layer in _compat.flatten_layers(backbone)}
    return [
        layer
        for layer in _compat.flatten_layers(model)
        if id(layer) not in inner
        and not isinstance(layer, HoldsTables)
        and _compat.by_gradients(layer)
    ]


def mark_trained(model: Any) -> None:
    """Remembers what trains now, for when it is frozen again."""
    for variable in _trained_base(model).values():
        variable.has_trained = True


def let_train(layer: keras.layers.Layer, variable: keras.Variable, on: bool) -> None:
    """Makes a variable of the base one that has trained, and trains on if so asked."""
    variable.has_trained = True
    if on:
        own = [v for v in _compat.by_gradients(layer) if v is variable]
        _compat.switch([layer, *own], True)


class KeepsBaseFrozen(_compat.KeepsFrozen):
    """The part of an adapted model that is asked to train as a whole, or not at all."""

    def _before_freezing(self) -> None:
        mark_trained(self)

    def _nothing_to_thaw(self) -> None:
        warnings.warn(
            "`trainable = True` leaves the base of an adapted model frozen: its "
            f"adapters train. Received: {type(self).__name__} {self.name!r}, which "
            "trains. To let layers train besides the adapters, set it on them: "
            "`layer.trainable = True`.",
            stacklevel=4,
        )

    def _adapter_flags(self) -> list[_compat.Flagged]:
        adaptation = self._adaptation
        tables = [table.variable for table in adaptation.tables()]
        holders = [layer.holder() for layer in adaptation.layers.values()]
        own = [*adaptation.parts, *holders, *tables]
        for layer in adaptation.token_rows:
            own += layer.adapter_flags()
        # A backbone does not switch its task on.
        inside = {id(one) for one in _compat.with_flags(self)}
        return [one for one in own if id(one) in inside]


# Flags in configs. ------------------------------------------------------------


def flags_config(model: Any) -> dict[str, Described]:
    """How a model's flags differ from what `enable_flix` makes them; empty if not."""
    adaptation = model._adaptation
    default = {id(one) for one in model._adapter_flags()}
    flagged = list(_compat.with_flags(model))
    chosen = {
        "trains": [one for one in flagged if _on_only(one, id(one) in default)],
        "rests": [o for o in flagged if id(o) in default and not _compat.is_on(o)],
        "has_trained": [
            one.variable
            for one in base_variables(model)
            if getattr(one.variable, "has_trained", False)
        ],
        "frozen_before": adaptation.frozen_before,
    }
    return {name: _described(model, some) for name, some in chosen.items() if some}


def _on_only(one: Any, default: bool) -> bool:
    return _compat.is_on(one) and not default


def restore_flags(model: Any, config: Mapping[str, Any]) -> None:
    """Gives a model that was made again the flags that `flags_config` described."""
    found = {
        name: _found(model, config[name])
        for name in ("trains", "rests", "has_trained", "frozen_before")
        if config.get(name)
    }
    _compat.switch(found.get("trains", ()), True)
    _compat.switch(found.get("rests", ()), False)
    # A loop of one's own may have trained it.
    mark_trained(model)
    for variable in found.get("has_trained", ()):
        variable.has_trained = True
    if "frozen_before" in found:
        model._adaptation.frozen_before[:] = found["frozen_before"]


def _places(model: Any) -> Iterator[tuple[list[Any], Any]]:
    """By position and kind: names and paths may change where a model is made again."""
    for position, layer in enumerate([model, *_compat.flatten_layers(model)]):
        kind = getattr(layer, "plain_class", type(layer)).__name__
        yield [position, kind], layer
        tables = {}
        if isinstance(layer, (HoldsTables, TokenRows)):
            tables = {id(v): n for n, v in layer.adapter_variables().items()}
        own = [v for v in _compat.own_variables(layer) if id(v) not in tables]
        keys = {id(v): i for i, v in enumerate(own)} | tables
        for variable in _compat.own_variables(layer):
            yield [position, kind, keys[id(variable)]], variable


def _described(model: Any, some: Iterable[Any]) -> Described:
    wanted = {id(one) for one in some}
    return [place for place, one in _places(model) if id(one) in wanted]


def _found(model: Any, described: Sequence[Sequence[Any]]) -> list[Any]:
    by_place = {tuple(place): one for place, one in _places(model)}
    missing = [place for place in described if tuple(place) not in by_place]
    if missing:
        raise ValueError(
            "A saved model must be built again with the layers it had. Expected: a "
            f"{missing[0][1]} at place {missing[0][0]}, which trained or was frozen. "
            "Received: another. Load its weights into a model that you adapt with "
            "`enable_flix`."
        )
    return [by_place[tuple(place)] for place in described]
