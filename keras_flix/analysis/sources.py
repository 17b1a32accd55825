"""The updates of values as factors in float64, from a model or without one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_flix.features.schema import FeatureSchema
from keras_flix.files.adapter_file import Adapters
from keras_flix.layers.factors import Factors
from keras_flix.layers.tables import Adapter
from keras_flix.models.adapted.model import is_adapted, surgery_of


def adapters_of_layers(
    source: keras.Model | Adapters,
) -> tuple[FeatureSchema, dict[str, Adapter]]:
    """The schema, and the tables of each layer by its path."""
    if not isinstance(source, Adapters):
        surgery = surgery_of(source)
        return surgery.schema, {p: x._adapter for p, x in surgery.layers.items()}
    schema = source.schema
    return schema, {
        path: Adapter(
            schema, source.alpha, {f.name: source.pair(path, f.name) for f in schema}
        )
        for path in source.layers
    }


def factors_by_axis(
    schema: FeatureSchema, layers: Mapping[str, Adapter]
) -> dict[str, list[Factors]]:
    """The updates of each axis, layer by layer."""
    return {f.name: [x.factors(f.name) for x in layers.values()] for f in schema}


def norms_by_axis(
    schema: FeatureSchema, layers: Mapping[str, Adapter]
) -> dict[str, np.ndarray]:
    """The Frobenius norms of each axis' updates, `(values, layers)`."""
    return {
        name: np.stack([one.norms for one in factors], axis=1)
        for name, factors in factors_by_axis(schema, layers).items()
    }


def kernel_norm(source: Any, path: str) -> float:
    """The Frobenius norm of a layer's kernel; NaN if there is none in floats."""
    layer = surgery_of(source).layers[path] if is_adapted(source) else None
    if layer is None or layer.quantization_mode is not None:
        return float("nan")
    kernel = ops.convert_to_numpy(ops.cast(layer.kernel, "float32"))
    return float(np.linalg.norm(kernel.astype("float64")))
