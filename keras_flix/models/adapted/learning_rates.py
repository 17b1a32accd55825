"""How adapters learn beside the optimizer's own settings: see `set_learning_rates`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_flix import _compat
from keras_flix.features.feature import Feature, Value
from keras_flix.features.schema import FeatureSchema
from keras_flix.features.values import OTHERS


@dataclasses.dataclass(frozen=True)
class Rates:
    """What `set_learning_rates` was told.

    Attributes:
        factors: By feature and value, what the learning rate is multiplied by.
        a: By feature, a further factor of `A`.
        b: By feature, a further factor of `B`.
        decay: By feature, the weight decay; that of the optimizer where there is none.
    """

    factors: Mapping[str, Mapping[Value, float]]
    a: Mapping[str, float]
    b: Mapping[str, float]
    decay: Mapping[str, float]

    def of(self, feature: Feature, part: str) -> _compat.Rate | None:
        """How a table of a feature learns; `None` for as the optimizer says.

        Args:
            feature: The feature.
            part: `"a"` or `"b"`.
        """
        whole = _named(self.a if part == "a" else self.b, feature.name, 1.0)
        by_value = _named(self.factors, feature.name, {})
        rows = [_named(by_value, value, 1.0) * whole for value in feature.values]
        decay = _named(self.decay, feature.name, None)
        if decay is None and set(rows) == {1.0}:
            return None
        if len(set(rows)) == 1:
            return _compat.Rate(rows[0], decay)
        return _compat.Rate(np.asarray(rows, "float32")[:, None, None], decay)

    def narrowed(self, schema: FeatureSchema) -> Rates:
        """These without values that a schema has no more."""
        values = {f.name: {*f.values, OTHERS} for f in schema} | {OTHERS: {OTHERS}}
        kept = {
            name: {v: f for v, f in by.items() if v in values[name]}
            for name, by in self.factors.items()
        }
        return dataclasses.replace(self, factors=kept)

    def renamed(self, feature: str, old: Value, new: Value) -> Rates:
        """These with another name of a value."""
        by_value = self.factors.get(feature, {})
        if old not in by_value:
            return self
        renamed = {new if v == old else v: f for v, f in by_value.items()}
        return dataclasses.replace(self, factors={**self.factors, feature: renamed})

    def get_config(self) -> dict[str, Any]:
        """These as a dict of JSON types."""
        config = dataclasses.asdict(self)
        # As pairs: JSON would make strings of integer values.
        config["factors"] = {n: list(by.items()) for n, by in self.factors.items()}
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Rates:
        """Those that `get_config` described."""
        factors = {name: dict(pairs) for name, pairs in config["factors"].items()}
        return cls(**{**config, "factors": factors})

    def __str__(self) -> str:
        parts = [
            ", ".join(
                f"{'all' if feature == OTHERS else feature} {f:g}"
                if v == OTHERS
                else f"{feature}={v} {f:g}"
                for v, f in list(by.items())[:SHOWN]
            )
            + ", ..." * (len(by) > SHOWN)
            for feature, by in self.factors.items()
            if by
        ]
        for label, named in (
            ("A", self.a),
            ("B", self.b),
            ("weight decay", self.decay),
        ):
            parts += [
                f"{label} {x:g}" if name == OTHERS else f"{label} of {name} {x:g}"
                for name, x in named.items()
                if label == "weight decay" or x != 1
            ]
        return ", ".join(parts)


SHOWN = 6
"""So many values of a feature are listed."""


def _named(by_name: Mapping[Any, Any], name: Any, default: Any) -> Any:
    return by_name.get(name, by_name.get(OTHERS, default))


def rates_of(adaptation: Any) -> dict[int, _compat.Rate]:
    """How the tables of a model learn, by id of the variable; empty for as all do."""
    if adaptation.rates is None:
        return {}
    found = {
        (feature.name, part): adaptation.rates.of(feature, part)
        for feature in adaptation.schema
        for part in "ab"
    }
    rates = {
        id(table.variable): found[table.feature, table.part]
        for table in adaptation.tables()
    }
    return {key: rate for key, rate in rates.items() if rate is not None}
