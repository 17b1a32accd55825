"""Where updates are read from: an adapted model, or an adapter file."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_flix.features.schema import FeatureSchema
from keras_flix.files.adapter_file import Adapters
from keras_flix.layers.factors import Factors
from keras_flix.models.adapted.adaptation import adaptation_of, is_adapted

if TYPE_CHECKING:
    import keras

FactorsOf = Callable[[str], Factors]
"""From the name of a feature to its updates in a layer."""


def updates_of(
    source: keras.Model | Adapters,
) -> tuple[FeatureSchema, dict[str, FactorsOf]]:
    """The schema, and the updates in each layer by its path."""
    if isinstance(source, Adapters):
        return source.schema, {
            path: functools.partial(source.factors, path) for path in source.layers
        }
    adaptation = adaptation_of(source)
    layers = adaptation.layers.items()
    return adaptation.schema, {path: layer._tables.factors for path, layer in layers}


def layer_ranks(
    source: keras.Model | Adapters, paths: Iterable[str]
) -> dict[str, np.ndarray]:
    """By feature, ranks `(values, layers)`, where layers have ranks of their own."""
    of = source if isinstance(source, Adapters) else adaptation_of(source)
    return {
        name: np.stack([of.feature_in(path, name).ranks for path in paths], axis=1)
        for name in of.ranks
    }


def norms_by_feature(
    schema: FeatureSchema, layers: Mapping[str, FactorsOf]
) -> dict[str, np.ndarray]:
    """The Frobenius norms of each feature's updates, `(values, layers)`."""
    return {
        feature.name: np.stack([of(feature.name).norms for of in layers.values()], 1)
        for feature in schema
    }


def kernel_norm(source: Any, path: str) -> float:
    """The Frobenius norm of a layer's kernel; NaN if there is none in floats."""
    if not is_adapted(source):
        return float("nan")
    return adaptation_of(source).layers[path].kernel_norm()
