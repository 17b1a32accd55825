"""The tables of one adapted layer, and their initial values."""

from __future__ import annotations

import dataclasses
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_flix import _compat
from keras_flix.features.feature import Feature, Value
from keras_flix.features.schema import FeatureSchema
from keras_flix.features.tensor_ids import Tensor
from keras_flix.layers.factors import Factors
from keras_flix.layers.low_rank_update import FeatureTables


@dataclasses.dataclass
class Tables:
    """The low-rank tables of one layer.

    Attributes:
        schema: The features, with ranks, dropout rates and scales resolved.
        variables: By feature, the variables `A` and `B`; of features that target other
            layers of a model, none.
        trainable: By feature, the values that train, the others being frozen; `None`
            for all.
        kernel_shape: The logical shape of the layer's kernel, once it is known.
        ranks: By feature, the rank of all values where the layer has one of its own.
        experts: How many experts have adapters of their own: that many stand side by
            side along the rank, see `expert_update`.
    """

    schema: FeatureSchema
    variables: dict[str, tuple[keras.Variable, keras.Variable]] = dataclasses.field(
        default_factory=dict
    )
    trainable: Mapping[str, Sequence[Value]] | None = None
    kernel_shape: tuple[int, ...] = ()
    ranks: Mapping[str, int] = dataclasses.field(default_factory=dict)
    experts: int = 1
    _found: tuple[Any, list[FeatureTables]] = (None, [])
    _trained: tuple[Any, Mapping[str, np.ndarray]] = (None, {})

    def feature(self, name: str, schema: FeatureSchema | None = None) -> Feature:
        """A feature with the ranks that it has in this layer.

        Args:
            name: The feature's name.
            schema: Another schema than that of the layer.
        """
        return (schema or self.schema)[name].with_rank(self.ranks.get(name))

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
        features = [
            [f.name, list(f.values), list(f.ranks), f.multiple, f.always]
            for f in map(self.feature, self.schema.names)
        ]
        scales = {
            f.name: [f.alpha, f.scale] if f.scale == "sqrt" else f.alpha
            for f in self.schema
            if f.alpha is not None
        }
        # In the second place, files of 0.1 have an alpha for all that have none.
        text = json.dumps([features, None, *([scales] if scales else [])])
        return np.frombuffer(text.encode("utf-8"), "uint8")

    def check_stamp(self, saved: np.ndarray, path: str) -> None:
        """Raises if the rows of saved tables mean something else."""
        own = self.stamp()
        if not np.array_equal(saved, own) and _meaning(saved) != _meaning(own):
            expected, received = _around_difference(own, saved)
            raise ValueError(
                f"The features in a weights file must match layer {path!r}. "
                f"Expected: {expected}. Received: {received}. Load it into a model "
                "adapted with the same features, values in the same order."
                f"{_joined_later(_meaning(own), _meaning(saved))}"
            )

    def trained(self) -> Mapping[str, np.ndarray]:
        """Which values train, bool `(values,)`, of features where some do not."""
        if self.trainable is None:
            return {}
        now = self.schema, self.trainable
        if self._trained[0] != now:
            found = {}
            for feature in self.schema:
                named = set(self.trainable.get(feature.name, ()))
                if not named.issuperset(feature.values):
                    found[feature.name] = np.array([v in named for v in feature.values])
            self._trained = now, found
        return self._trained[1]

    def own_features(self) -> FeatureSchema:
        """The features that there are tables of, as those of a layer of its own."""
        return FeatureSchema(
            dataclasses.replace(self.feature(feature.name), targets=None)
            for feature in self.schema
            if feature.name in self.variables or not self.variables
        )

    def pair(self, feature: str) -> tuple[np.ndarray, np.ndarray]:
        """`A` and `B` of a feature in numpy; of rank 0, if there are none."""
        if feature in self.variables:
            a, b = map(_compat.to_host, self.variables[feature])
            return a, b
        ((a, b), *_) = self.variables.values()
        count = len(self.schema[feature].values)
        return np.zeros((count, a.shape[1], 0)), np.zeros((count, 0, b.shape[2]))

    def factors(self, feature: str) -> Factors:
        """The updates of a feature as factors in float64."""
        a, b = self.pair(feature)
        return Factors.of(a, b, self.feature(feature).scales, self.experts)

    def by_feature(self) -> list[FeatureTables]:
        """What the update reads, in the order of the schema."""
        # Asked for in every pass of a model, and changed hardly ever.
        now = self.schema, self.trainable, len(self.variables)
        if self._found[0] != now:
            found = []
            for feature in self.schema.features:
                if feature.name in self.variables:
                    own = feature
                    relative: float | np.ndarray = 1.0
                    if feature.name in self.ranks:
                        own = self.feature(feature.name)
                        relative = relative_scale(own, feature)
                    tables = FeatureTables(
                        feature.name,
                        *self.variables[feature.name],
                        scale=own.common_scale,
                        relative=relative,
                        shared=feature.always,
                        trains=not feature.always or feature.name not in self.trained(),
                    )
                    found.append(tables)
            self._found = now, found
        return self._found[1]


def _meaning(stamp: np.ndarray) -> Any:
    """The features that a stamp describes, each with its scale; `None` for none."""
    try:
        features, alpha, *own = json.loads(np.asarray(stamp).tobytes())
        return [(one, dict(*own).get(one[0], alpha)) for one in features]
    except (LookupError, TypeError, ValueError):
        return None


def _around_difference(*stamps: np.ndarray) -> list[str]:
    """Two stamps' texts where they differ first: not thousands of values.

    >>> own, saved = (np.frombuffer(x, "uint8") for x in (b'["en"]', b'["en", "sw"]'))
    >>> _around_difference(own, saved)
    ['["en"]', '["en", "sw"]']
    """
    texts = [np.asarray(one).tobytes().decode(errors="replace") for one in stamps]
    at = len(os.path.commonprefix(texts))
    start, end = max(at - AROUND, 0), at + AROUND
    return [
        "..." * (start > 0) + text[start:end] + "..." * (end < len(text))
        for text in texts
    ]


AROUND = 200
"""So many characters of a stamp are shown before a difference, and after it."""


def _joined_later(own: Any, saved: Any) -> str:
    """What to do about values that a saved feature has after those of one's own."""
    try:
        for ((name, values, *_), _), ((other, known, *_), _) in zip(own, saved):
            count = len(values)
            if name == other and len(known) > count and known[:count] == values:
                some = ", ".join(map(repr, known[count : count + 3]))
                return (
                    f" If values joined later, add them first, in their order: "
                    f"`add_values(model, {name!r}, [{some}"
                    f"{', ...' * (len(known) > count + 3)}])`."
                )
    except (LookupError, TypeError, ValueError):
        # What is damaged says nothing.
        pass
    return ""


class Constant(keras.initializers.Initializer):
    """An initial value computed in numpy: the same on every backend."""

    def __init__(self, value: np.ndarray) -> None:
        self.value = value

    def __call__(self, shape: Any, dtype: Any = None) -> Tensor:
        return ops.convert_to_tensor(self.value, dtype=dtype)


def relative_scale(own: Feature, common: Feature) -> float | np.ndarray:
    """The scale of a feature in a layer over that which it has by its schema.

    >>> task = Feature("task", ["qa", "parse"], rank=4, alpha=8.0)
    >>> relative_scale(task.with_rank(2), task)
    2.0
    """
    if own is common or own.alpha is None:
        return 1.0
    ratio = np.asarray(own.scales) / np.asarray(common.scales)
    if len(set(ratio.tolist())) == 1:
        return float(ratio[0])
    return ratio.astype("float32")


def initial_a(
    ranks: tuple[int, ...], d_in: int, seed: tuple[int, str], experts: int = 1
) -> np.ndarray:
    """Initial `A` of one feature, `(values, d_in, rank)`: normal, std `d_in**-0.5`.

    Of several experts, `(values, d_in, rank * experts)`.

    Columns beyond a value's own rank are zero, and as `B` starts at zero too,
    they never get a gradient.
    """
    generator = np.random.default_rng([seed[0], zlib.crc32(seed[1].encode())])
    width = max(ranks) * experts
    a = generator.normal(size=(len(ranks), d_in, width)) / np.sqrt(d_in)
    beyond = np.arange(width) // experts >= np.asarray(ranks)[:, None]
    return np.where(beyond[:, None, :], 0.0, a).astype("float32")
