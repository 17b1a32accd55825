"""`FeatureSchema`: the features of one model, and values as ids.

A training mixture has many datasets; each is described by *features* (its
task, its language, ...). This module needs numpy only.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from keras_flix._utils.displayed import Displayed, Rows, shown, some
from keras_flix._utils.near_names import hint
from keras_flix.features import encoding
from keras_flix.features.columns import as_columns, described
from keras_flix.features.dropout import FeatureDropout
from keras_flix.features.feature import Feature, Rank, Value
from keras_flix.features.scaling import check_alpha, check_scale

SHOWN = 12
"""So many entries are listed in an error."""

FeatureIds = dict[str, np.ndarray]
Ranks = int | Mapping[str, Rank]
"""One rank for all features, or by feature: a rank, or ranks by value."""
Dropouts = float | FeatureDropout | Mapping[str, float | FeatureDropout]
"""Feature dropout for all features, or by feature."""


class FeatureSchema(Displayed):
    """The ordered features of one model.

    Args:
        features: A list of `Feature`, a dict from name to values, or another
            schema.

    Example:

    >>> schema = FeatureSchema({"task": ["qa", "parse"], "language": ["en", "sw"]})
    >>> schema["language"].values
    ('en', 'sw')
    >>> schema.encode({"task": ["qa", None], "language": "sw"})
    {'task': array([ 0, -1], dtype=int32), 'language': array([1, 1], dtype=int32)}
    """

    def __init__(self, features: Features) -> None:
        if isinstance(features, Mapping):
            features = [Feature(name, values) for name, values in features.items()]
        elif isinstance(features, (str, bytes, Feature)) or not isinstance(
            features, Iterable
        ):
            one = isinstance(features, Feature)
            has_schema = callable(getattr(features, "schema", None))
            raise ValueError(
                "`features` must be a FeatureSchema, a list of Feature or a "
                "dict from name to values. "
                f"Received: features={features if one else described(features)}. "
                f"{'Pass its `schema()`' if has_schema else 'Wrap it in a list'}."
            )
        self.features: tuple[Feature, ...] = tuple(features)
        """The features, in order."""
        if not self.features:
            raise ValueError(
                "A feature schema must have at least one feature. Received: "
                'features=[]. Name the features of the mixture, such as {"task": '
                '["qa", "parse"]}.'
            )
        for feature in self.features:
            if not isinstance(feature, Feature):
                raise ValueError(
                    "The members of a feature schema must be Feature. Received: "
                    f"{feature!r} of type {type(feature).__name__}. Write "
                    "Feature(name, values)."
                )
        names = [feature.name for feature in self.features]
        for name, count in collections.Counter(names).items():
            if count > 1:
                raise ValueError(
                    "The features of a schema must have unique names. Received: "
                    f"names={names!r}. Rename or join {name!r}."
                )
        self.names: list[str] = names
        """The names of all features, in order."""
        self.routed: list[Feature] = [f for f in self.features if not f.always]
        """The features that every input dict must state: all but `always` ones."""
        self.of_strings = [f.name for f in self.routed if not f.has_integers]
        """The names of those whose values are strings."""
        self.sizes: dict[str, int] = {f.name: len(f.values) for f in self.features}
        """How many values each feature has."""
        self.multiple = frozenset(f.name for f in self.features if f.multiple)
        """The features of which an example may have several values."""
        self._by_name = dict(zip(names, self.features))
        self.entry_names: dict[str, str] = {
            key: feature.name
            for feature in self.features
            for key in (feature.name, feature.ids_key)
        }
        """By key of an input dict that is an entry, the feature that it is of."""
        self._encoded_keys = {f.name: f.encoded_key for f in self.features}

    def __iter__(self) -> Iterator[Feature]:
        return iter(self.features)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, name: str) -> Feature:
        try:
            return self._by_name[name]
        except KeyError:
            raise KeyError(
                f"No feature is called {name!r}. Features: {self.names}."
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._by_name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FeatureSchema) and self.features == other.features

    def __hash__(self) -> int:
        return hash(tuple((f.name, f.values) for f in self.features))

    def _line(self) -> str:
        return f"FeatureSchema({list(self.features)!r})"

    def _tables(self) -> Iterable[tuple[str, Rows]]:
        rows = [
            [f.name, len(f.values), some(f.values), shown(f.rank), shown(f.dropout)]
            for f in self.features
        ]
        return [("", [["feature", "values", "which", "rank", "dropout"], *rows])]

    def resolve(
        self,
        rank: Ranks = 4,
        dropout: Dropouts = 0.0,
        alpha: float | None = None,
        scale: str = "rank",
    ) -> FeatureSchema:
        """The same features with every rank, dropout rate, alpha and scale filled in.

        Args:
            rank: Rank for the features that have none: a number, or a dict from
                the feature's name to a number or to a dict by value.
            dropout: Dropout for the features that have none: a number or a
                `FeatureDropout`, or a dict of them from the feature's name.
            alpha: Alpha for the features that have none; `None` is a scale of 1.
            scale: `"rank"` or `"sqrt"`, for the features that have none.

        Returns:
            A new `FeatureSchema`. Features that a dict leaves out take rank 4
            and no dropout.
        """
        scale, alpha = check_scale(scale), check_alpha(alpha)
        for label, option in (("rank", rank), ("dropout", dropout)):
            if isinstance(option, Mapping):
                for name in option:
                    if name not in self:
                        raise ValueError(
                            f"`{label}` by feature must name features of the "
                            f"schema. Received: {label}={dict(option)!r}, where "
                            f"{name!r} is none of {self.names}. Correct the name."
                        )
        return FeatureSchema(
            feature.filled(
                rank.get(feature.name, 4) if isinstance(rank, Mapping) else rank,
                (dropout.get(feature.name) if isinstance(dropout, Mapping) else dropout)
                or 0.0,
                alpha,
                scale,
            )
            for feature in self.features
        )

    def encode(
        self,
        values: Mapping[str, Any],
        unknown: str = "error",
        batch_size: int | None = None,
    ) -> FeatureIds:
        """Turns values into ids; a table of any form is read as a dict.

        Args:
            values: A dict with one entry per feature (none for `always` features):
                one value for the whole batch or a list with one value per
                example. `None` or -1 is absent, and so is what numpy and pandas
                write for missing values: NaN, NA, NaT, masked entries. For
                `multiple` features, an example's entry may be a list. On a feature
                of strings, integers are taken as ids; on one of integers, they are
                values, and ids have the key `"<feature>:ids"` instead.
            unknown: `"error"` raises on unknown values, `"absent"` maps them
                to -1.
            batch_size: Number of examples, if it is known. By default it is
                read from the entries.

        Returns:
            A dict of int32 arrays of shape `(batch,)`, or `(batch, k)` for
            `multiple` features (padded with -1), in the order of the features. A
            model takes it as it is. Those of features of integer values are
            `EncodedIds`, so that they are not read as values: where they are
            converted to tensors first, put them under `"<feature>:ids"`.
        """
        if unknown not in ("error", "absent"):
            raise ValueError(
                "`unknown` must be 'error' or 'absent'. Received: "
                f"unknown={unknown!r}. Use 'absent' to map unknown values to -1."
            )
        values = as_columns(values, self.of_strings)
        ids = {}
        for feature, entry, is_ids in self.check_entries(values):
            encoder = feature.encoder(is_ids, unknown_is_absent=unknown == "absent")
            ids[feature.name] = encoder(entry)
        ids = encoding.with_batch(ids, batch_size, self.multiple)
        for feature in self.routed:
            if feature.has_integers:
                ids[feature.name] = ids[feature.name].view(encoding.EncodedIds)
        return ids

    def decode(self, ids: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Turns ids back into values: the inverse of `encode`.

        Args:
            ids: By feature, what `encode` gave, for any of the features.

        Returns:
            By feature, one entry per example: a value, or `None` where it is absent; on
            `multiple` features a list of values; a dict from values to weights where
            there are weights.

        Example:

        >>> schema = FeatureSchema({"task": ["qa", "parse"], "language": ["en", "sw"]})
        >>> schema.decode(schema.encode({"task": ["qa", None], "language": "sw"}))
        {'task': ['qa', None], 'language': ['sw', 'sw']}
        """
        return {name: self[name].decode(value) for name, value in ids.items()}

    def encode_one(self, combination: Mapping[str, Any]) -> FeatureIds:
        """Encodes one example, `{"task": "qa", "language": "sw"}`: a batch of 1.

        On a `multiple` feature, a list holds the values of that one example.
        """
        self.check_entries(combination)
        return self.encode(
            {
                key: [entry] if self.entry_names[key] in self.multiple else entry
                for key, entry in combination.items()
            },
            batch_size=1,
        )

    def as_inputs(self, ids: Mapping[str, Any]) -> dict[str, Any]:
        """Ids by feature, under the keys by which an input dict states ids."""
        inputs = {}
        for name, value in ids.items():
            inputs[self._encoded_keys[name]] = value
        return inputs

    def by_name(self, entries: Mapping[str, Any]) -> dict[str, Any]:
        """Ids by feature, of an input dict that states ids: undoes `as_inputs`."""
        return {self.entry_names[key]: value for key, value in entries.items()}

    def check_entries(
        self, entries: Mapping[str, Any], beside: Iterable[Any] = ()
    ) -> list[tuple[Feature, Any, bool]]:
        """Raises unless a dict has one entry per feature, and none besides.

        Args:
            entries: The entries, by feature or by `"<feature>:ids"`.
            beside: What else was received, for the error.

        Returns:
            Each feature with its entry, and whether integers in it are ids for sure.
        """
        if not isinstance(entries, Mapping):
            raise ValueError(
                "Feature values must be a dict from the name of a feature to its "
                f"entry. Received: {described(entries)}. Write such as "
                f"{{{self.names[0]!r}: ...}}."
            )
        for key in entries:
            name = self.entry_names.get(key)
            if name is None or self._by_name[name].always:
                routed = [feature.name for feature in self.routed]
                raise ValueError(
                    f"Feature values must belong to the schema's features {routed}. "
                    f"Received: {key!r}"
                    + (", which is always active and takes no entry." if name else ".")
                    + ("" if name else hint(key, routed))
                    + " Remove it."
                )
        stated = []
        for feature in self.routed:
            by_ids = feature.ids_key in entries
            if feature.name in entries:
                entry = entries[feature.name]
                stated.append((feature, entry, isinstance(entry, encoding.EncodedIds)))
                if by_ids:
                    raise ValueError(
                        "A feature must have one entry, of values or of ids. Received: "
                        f"{feature.name!r} and {feature.ids_key!r}. Remove one."
                    )
            elif by_ids:
                stated.append((feature, entries[feature.ids_key], True))
            else:
                routed = [feature.name for feature in self.routed]
                others = [key for key in beside if isinstance(key, str)]
                unknown = [key for key in (*others, *entries) if key not in routed]
                received = sorted({*entries, *others})
                more = ", ..." if len(received) > SHOWN else ""
                raise ValueError(
                    "Every feature must have an entry in the input dict, next "
                    f"to the model's own inputs. Received: no entry "
                    f"{feature.name!r} (entries: {received[:SHOWN]}{more})."
                    f"{hint(feature.name, unknown)} State its "
                    "values or ids; where an example has none, None or -1."
                )
        return stated

    def get_config(self) -> dict[str, Any]:
        """The schema as a dict of JSON types."""
        return {"features": [feature.get_config() for feature in self.features]}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> FeatureSchema:
        """The schema that `get_config` described."""
        return cls(Feature.from_config(feature) for feature in config["features"])


Features = FeatureSchema | Iterable[Feature] | Mapping[str, Sequence[Value]]
"""What a schema is made of: itself, a list of `Feature`, or values by name."""


def check_feature(name: str, known: Iterable[str], what: str) -> None:
    """Raises unless `name` is that of a known feature; `what` asks for it."""
    names = list(known)
    if name not in names:
        raise ValueError(
            f"{what} must name one of the features {names}. Received: {name!r}."
            f"{hint(name, names)}"
        )
