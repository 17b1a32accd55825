"""Adapters of only some values: a file for each tenant of a model."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from keras_flix import _compat
from keras_flix.features.feature import Feature, Value
from keras_flix.features.schema import FeatureSchema
from keras_flix.files.adapter_file import (
    Adapters,
    checked_path,
    write_adapters,
)
from keras_flix.files.saving import adapters_of
from keras_flix.files.stand_ins import table_names
from keras_flix.models.growing.schema_changes import (
    checked_feature,
    checked_values,
    replaced,
    without_values,
)


def save_values(
    model: keras.Model,
    path: str | os.PathLike[str],
    values: Mapping[str, Sequence[Value]],
    *,
    others: bool = True,
) -> None:
    """Saves the adapters of only some values, as a file of a smaller model.

    The file is one like those of `save_adapters`: `load_adapters` adapts a plain model
    with these values alone, which computes what the whole model does for them, and
    `update_from` takes them into another. To save values while `fit` trains the others,
    see `keras_flix.callbacks.SaveFinished`.

    Args:
        model: A model adapted by `enable_flix`.
        path: A file name that ends in `.flix.safetensors`.
        values: By feature, the values to save, such as `{"user": ["ann"]}`. Features
            that are not named are saved as a whole.
        others: Whether these are in the file. Without them it is small, and for
            `update_from`: a plain model that loads it lacks what they did.

    Raises:
        ValueError: If a feature or a value is not the model's. Nothing is written then.

    Where layouts split a model across processes, it goes as `save_adapters` does.

    Example:

    >>> import pathlib, tempfile
    >>> x = keras.Input((8,), name="x")
    >>> model = keras.Model({"x": x}, keras.layers.Dense(4, name="head")(x))
    >>> model = enable_flix(model, {"user": ["ann", "bob"]}, targets=["head"])
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "ann.flix.safetensors"
    >>> save_values(model, path, {"user": ["ann"]})
    >>> files.read_adapters(path).schema["user"].values
    ('ann',)
    """
    path = checked_path(path)
    found = some_values(adapters_of(model), values, others)
    _compat.written_once(
        lambda: write_adapters(found, path), _compat.is_split(model.variables)
    )


def some_values(
    adapters: Adapters, values: Mapping[str, Sequence[Value]], others: bool = True
) -> Adapters:
    """Adapters with only some values of the features that are named."""
    schema, tables = adapters.schema, dict(adapters.tables)
    for name, chosen in values.items():
        known = checked_feature(adapters.schema, name)
        kept = set(checked_values(known, chosen))
        gone = [value for value in known.values if value not in kept]
        narrow = without_values(known, gone) if gone else known
        schema = replaced(schema, narrow)
        for layer in adapters.layers_of(name):
            names = table_names(layer, name)
            own = narrow.with_rank(adapters.ranks.get(name, {}).get(layer))
            width = max(own.ranks) * adapters.experts.get(layer, 1)
            parts = _rows(tables, names, known, narrow, width)
            tables |= zip(names, parts, strict=True)
    found = dataclasses.replace(adapters, schema=schema, tables=tables)
    return found if others else _of_features(found, list(values))


def _of_features(adapters: Adapters, names: Sequence[str]) -> Adapters:
    """Adapters with only some features."""
    used = {layer for name in names for layer in adapters.layers_of(name)}
    layers = [layer for layer in adapters.layers if layer in used]
    places = {name: list(adapters.layers_of(name)) for name in names}
    kept = {t for name in names for x in places[name] for t in table_names(x, name)}
    return dataclasses.replace(
        adapters,
        schema=FeatureSchema(f for f in adapters.schema if f.name in names),
        layers=layers,
        tables={name: t for name, t in adapters.tables.items() if name in kept},
        rows={name: rows for name, rows in adapters.rows.items() if name in used},
        places={n: paths for n, paths in places.items() if len(paths) < len(layers)},
        ranks={name: own for name, own in adapters.ranks.items() if name in names},
        experts={path: n for path, n in adapters.experts.items() if path in used},
    )


def _rows(
    tables: Mapping[str, np.ndarray],
    names: tuple[str, str],
    known: Feature,
    narrow: Feature,
    width: int,
) -> list[np.ndarray]:
    """The rows of a feature's tables in one layer, as wide as their ranks there."""
    rows = [known.id_of(value) for value in narrow.values]
    a, b = (tables[name] for name in names)
    parts = a[rows][:, :, :width], b[rows][:, :width]
    return [np.ascontiguousarray(part) for part in parts]
