"""The tables of one adapted layer, and their initial values."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_flix.features.feature import Feature, Value
from keras_flix.features.schema import FeatureSchema
from keras_flix.features.tensor_ids import Tensor
from keras_flix.layers.factors import Factors
from keras_flix.layers.low_rank_update import FeatureTables


@dataclasses.dataclass
class Adapter:
    """The low-rank tables of one layer.

    Attributes:
        schema: The axes, with ranks and dropout rates resolved.
        alpha: The scale of a value's update is `alpha / rank`, or 1 if `None`;
            an axis' own alpha wins.
        variables: By axis, the variables `A` and `B`.
        trainable: By axis, the values that train, the others being frozen; `None`
            for all.
    """

    schema: FeatureSchema
    alpha: float | None
    variables: dict[str, tuple[keras.Variable, keras.Variable]] = dataclasses.field(
        default_factory=dict
    )
    trainable: Mapping[str, Sequence[Value]] | None = None

    @property
    def named_variables(self) -> dict[str, keras.Variable]:
        """The variables by a name that is unique in the layer."""
        return {
            f"flix_{name}_{part}": variable
            for name, pair in self.variables.items()
            for part, variable in zip("ab", pair)
        }

    def stamp(self) -> np.ndarray:
        """What the tables' rows mean, as bytes for Keras' weight files."""
        axes = [
            [f.name, list(f.values), list(f.ranks), f.multiple, f.always]
            for f in self.schema
        ]
        own = {f.name: f.alpha for f in self.schema if f.alpha is not None}
        text = json.dumps([axes, self.alpha, *([own] if own else [])])
        return np.frombuffer(text.encode("utf-8"), "uint8")

    def scales(self, feature: Feature) -> list[float]:
        """`s_f` of each value of an axis."""
        alpha = self.alpha if feature.alpha is None else feature.alpha
        return [1.0 if alpha is None else alpha / rank for rank in feature.ranks]

    def trained(self, feature: Feature) -> list[bool] | None:
        """Which values of an axis train; `None` for all."""
        if self.trainable is None:
            return None
        named = self.trainable.get(feature.name, ())
        return [value in named for value in feature.values]

    def factors(self, axis: str) -> Factors:
        """The updates of an axis as factors in float64."""
        a, b = map(ops.convert_to_numpy, self.variables[axis])
        return Factors.of(a, b, self.scales(self.schema[axis]))

    def tables(self, row_scope: Any = None) -> list[FeatureTables]:
        """What the update reads; for `row_scope` see `FeatureTables`."""
        return [
            FeatureTables(
                feature.name,
                *self.variables[feature.name],
                scales=self.scales(feature),
                shared=feature.always,
                trained=self.trained(feature),
                row_scope=row_scope,
            )
            for feature in self.schema
        ]


class Constant(keras.initializers.Initializer):
    """An initial value computed in numpy: the same on every backend."""

    def __init__(self, value: np.ndarray) -> None:
        self.value = value

    def __call__(self, shape: Any, dtype: Any = None) -> Tensor:
        return ops.convert_to_tensor(self.value, dtype=dtype)


def initial_a(ranks: tuple[int, ...], d_in: int, seed: tuple[int, str]) -> np.ndarray:
    """Initial `A` of one axis, `(values, d_in, rank)`: normal, std `d_in**-0.5`.

    Columns beyond a value's own rank are zero, and as `B` starts at zero too,
    they never get a gradient.
    """
    generator = np.random.default_rng([seed[0], zlib.crc32(seed[1].encode())])
    a = generator.normal(size=(len(ranks), d_in, max(ranks))) / np.sqrt(d_in)
    beyond = np.arange(max(ranks)) >= np.asarray(ranks)[:, None]
    return np.where(beyond[:, None, :], 0.0, a).astype("float32")
