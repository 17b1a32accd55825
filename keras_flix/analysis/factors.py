"""The updates of values as factors in float64, from a model or without one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_flix.features.schema import FeatureSchema
from keras_flix.files.adapter_files import Adapters
from keras_flix.layers.adapter import Adapter
from keras_flix.low_rank import FeatureTables
from keras_flix.routed_model import is_adapted, surgery_of

BLOCK = 2**23
"""Numbers of one block of the matrix that holds the products of all factors."""


@dataclasses.dataclass(frozen=True)
class Factors:
    """The updates of an axis in one layer, as `left @ right.T`.

    `right` has orthonormal columns, so products and norms of updates lose no
    digits, however ill-conditioned the factors are.

    Attributes:
        left: `(values, d_in, rank)`.
        right: `(values, d_out, rank)`.
        core: `(values, rank, rank)`, with the singular values of the update.
        broken: `(values,)`: whether a table is not finite. All else is then 0.
    """

    left: np.ndarray
    right: np.ndarray
    core: np.ndarray
    broken: np.ndarray

    @classmethod
    def of(cls, tables: FeatureTables) -> Factors:
        """Reads the tables of an axis in a layer."""
        a, b = (
            np.asarray(ops.convert_to_numpy(table), "float64")
            for table in (tables.a, tables.b)
        )
        broken = ~(np.isfinite(a).all((1, 2)) & np.isfinite(b).all((1, 2)))
        keep = ~broken[:, None, None]
        a, b = np.where(keep, a, 0.0), np.where(keep, b, 0.0)
        q_in, r_in = np.linalg.qr(a * np.asarray(tables.scales)[:, None, None])
        q_out, r_out = np.linalg.qr(b.transpose(0, 2, 1))
        core = r_in @ r_out.transpose(0, 2, 1)
        return cls(q_in @ core, q_out, core, broken)

    @property
    def norms(self) -> np.ndarray:
        """Frobenius norms, `(values,)`."""
        norms = np.sqrt((self.core**2).sum((1, 2)))
        return np.where(self.broken, np.nan, norms)

    def singular_values(self) -> np.ndarray:
        """Singular values, `(values, rank)`, falling."""
        values = np.linalg.svd(self.core, compute_uv=False)
        return np.where(self.broken[:, None], np.nan, values)

    def products(self) -> np.ndarray:
        """Inner products of the updates, `(values, values)`."""
        count, _, rank = self.left.shape
        left, right = (
            factor.transpose(1, 0, 2).reshape(factor.shape[1], count * rank)
            for factor in (self.left, self.right)
        )
        products = np.empty((count, count))
        step = max(1, BLOCK // (rank * rank * count))
        for start in range(0, count, step):
            columns = slice(start * rank, (start + step) * rank)
            block = (left[:, columns].T @ left) * (right[:, columns].T @ right)
            block = block.reshape(-1, rank, count, rank).sum((1, 3))
            products[start : start + step] = block
        products[self.broken] = products[:, self.broken] = np.nan
        return (products + products.T) / 2


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


def table_of(adapter: Adapter, axis: str) -> FeatureTables:
    """The tables of one axis in one layer."""
    return next(table for table in adapter.tables() if table.name == axis)


def tables_by_axis(
    schema: FeatureSchema, layers: Mapping[str, Adapter]
) -> dict[str, list[FeatureTables]]:
    """The tables of each axis, layer by layer."""
    return {f.name: [table_of(x, f.name) for x in layers.values()] for f in schema}


def norms_by_axis(
    schema: FeatureSchema, layers: Mapping[str, Adapter]
) -> dict[str, np.ndarray]:
    """The Frobenius norms of each axis' updates, `(values, layers)`."""
    return {
        name: np.stack([Factors.of(table).norms for table in tables], axis=1)
        for name, tables in tables_by_axis(schema, layers).items()
    }


def kernel_norm(source: Any, path: str) -> float:
    """The Frobenius norm of a layer's kernel; NaN if there is none in floats."""
    layer = surgery_of(source).layers[path] if is_adapted(source) else None
    if layer is None or layer.quantization_mode is not None:
        return float("nan")
    kernel = ops.convert_to_numpy(ops.cast(layer.kernel, "float32"))
    return float(np.linalg.norm(kernel.astype("float64")))
