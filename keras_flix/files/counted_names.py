"""Names that Keras has counted up, in files and in a model that was made anew."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import keras_hub

from keras_flix import _compat
from keras_flix.files.adapter_file import Adapters
from keras_flix.files.base_configuration import base_configuration
from keras_flix.files.fingerprint import BaseFingerprint
from keras_flix.files.stand_ins import table_names
from keras_flix.files.weight_digests import HALF
from keras_flix.models.adapted.adaptation import adaptation_of, is_adapted
from keras_flix.models.adapted.trained_base import base_variables
from keras_flix.models.multiplied import expert_kernels
from keras_flix.models.targets import keyed_layers

Names = dict[str, str]
"""What a model calls that which a file calls otherwise."""


def named_as_in(model: keras.Model, adapters: Adapters) -> Adapters:
    """Adapters with the names that a model of KerasHub's has for their layers.

    KerasHub gives some layers no name, such as Moonshine's attention and what is around
    the shared experts of QwenMoe. Keras then calls them by their class and a count,
    which goes on from model to model: the second one of a process has others than the
    first one. Nobody could name them, so names that are the same but for such counts
    are matched in the order of these, where there are as many in both. (Layers of
    users' own models have the names that these give them.)

    Args:
        model: The model, plain or adapted.
        adapters: Of the same base.
    """
    if not isinstance(model, (keras_hub.models.Task, keras_hub.models.Backbone)):
        return adapters
    layers = {path for path, _ in keyed_layers(model)}
    layers |= {path for path, _ in expert_kernels(_compat.layers_with_parents(model))}
    if is_adapted(model):
        layers |= adaptation_of(model).layers.keys()
    variables = {one.name for one in base_variables(model)}
    base = adapters.base
    saved = {*adapters.trained, *map(_as_float32, base.variables if base else ())}
    if layers.issuperset(adapters.layers) and variables.issuperset(saved):
        return adapters
    stems = _compat.stems_of_counts(model)
    by_layer = _matched(adapters.layers, layers, stems)
    by_variable = _matched(saved, variables, stems)
    if base is not None:
        own = base_configuration(model)
        base = BaseFingerprint(
            {_renamed(n, by_variable): x for n, x in base.variables.items()},
            _keyed(base.settings, _matched(base.settings, own, stems)),
        )
    tables = {
        new: adapters.tables[old]
        for layer in adapters.layers
        for feature in adapters.schema.names
        for old, new in zip(
            table_names(layer, feature),
            table_names(by_layer.get(layer, layer), feature),
        )
        if old in adapters.tables
    }
    return dataclasses.replace(
        adapters,
        layers=[by_layer.get(layer, layer) for layer in adapters.layers],
        tables=tables,
        base=base,
        rows=_keyed(adapters.rows, by_layer),
        trained=_keyed(adapters.trained, by_variable),
        places={
            name: [by_layer.get(layer, layer) for layer in of]
            for name, of in adapters.places.items()
        },
        ranks={name: _keyed(of, by_layer) for name, of in adapters.ranks.items()},
        experts=_keyed(adapters.experts, by_layer),
    )


def _matched(saved: Iterable[str], own: Iterable[str], stems: set[str]) -> Names:
    """The names of a model by those of a file, where they differ in counts."""
    theirs, ours = _by_place(saved, stems), _by_place(own, stems)
    return {
        old: new
        for place, names in theirs.items()
        if len(names) == len(ours.get(place, ()))
        for old, new in zip(names, ours[place])
    }


def _by_place(names: Iterable[str], stems: set[str]) -> dict[Any, list[str]]:
    """Names by what they are without counts, in the order of these."""
    found: dict[Any, list[Any]] = defaultdict(list)
    for name in names:
        parts = [_compat.without_count(part, stems) for part in name.split("/")]
        place, counts = zip(*parts)
        found[place].append((counts, name))
    return {place: [name for _, name in sorted(some)] for place, some in found.items()}


def _as_float32(name: str) -> str:
    return name.removesuffix(HALF)


def _renamed(name: str, names: Names) -> str:
    plain = _as_float32(name)
    return names.get(plain, plain) + name[len(plain) :]


def _keyed(by_name: Mapping[str, Any], names: Names) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in by_name.items()}
