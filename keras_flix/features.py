"""Features of a training mixture: their vocabularies, ranks and ids.

A mixture has many datasets; each is described by *features* (its task, its
language, ...). A `Feature` is one such axis with its values, a `FeatureSchema`
the ordered axes of one model. This module needs numpy only.
"""

from __future__ import annotations

import dataclasses
import difflib
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from keras_flix import encoding
from keras_flix.encoding import ABSENT

Value = str | int
Rank = int | Mapping[Any, int]
FeatureIds = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Feature:
    """One feature axis of a mixture, such as its tasks or its languages.

    Args:
        name: The axis' name, which is also its key in a model's input dict.
        values: The vocabulary: unique strings, or unique integers. The
            position of a value is its id. May be left out if `always=True`.
        rank: Rank of each value's low-rank update: an integer, or a dict from
            value to rank in which `"*"` stands for all others. `None` takes
            the rank given where the schema is used.
        dropout: Probability in `[0, 1)` of dropping this axis from an
            example in training. `None` takes the rate given where the schema
            is used.
        multiple: Whether an example may have several values of this axis.
        always: Whether the axis is active in every example. It then has one
            value and no entry in the input dict. A schema with only such an
            axis is LoRA; next to other axes it is what they share.

    Example:

    >>> language = Feature("language", ["en", "sw", "yo"], rank={"en": 2, "*": 4})
    >>> language.ranks
    (2, 4, 4)
    >>> language.id_of("sw")
    1
    """

    name: str
    values: Sequence[Value] = ()
    rank: Rank | None = None
    dropout: float | None = None
    multiple: bool = False
    always: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(
                "A feature's name must be a non-empty string. "
                f"Received: name={self.name!r}. Name the axis after what it "
                'describes, such as "task" or "language".'
            )
        if "/" in self.name:
            raise ValueError(
                "A feature's name must not contain '/', which separates parts "
                f"of a variable's path. Received: name={self.name!r}. Use "
                "another character, such as '_'."
            )
        object.__setattr__(self, "values", self._checked_values())
        if self.rank is not None:
            object.__setattr__(self, "rank", self._checked_rank(self.rank))
        if self.dropout is not None:
            object.__setattr__(self, "dropout", self._checked_dropout(self.dropout))

    def _checked_values(self) -> tuple[Value, ...]:
        if isinstance(self.values, (str, bytes)):
            raise ValueError(
                f"The values of feature {self.name!r} must be a list. "
                f"Received: values={self.values!r}, a single string. "
                f"Write [{self.values!r}]."
            )
        values = tuple(
            int(v)
            if isinstance(v, numbers.Integral) and not isinstance(v, bool)
            else str(v)
            if isinstance(v, str)
            else v
            for v in self.values
        )
        if self.always and not values:
            values = (self.name,)
        if not values:
            raise ValueError(
                f"Feature {self.name!r} must have at least one value. "
                "Received: values=[]. List the values that occur in the "
                "mixture."
            )
        kinds = {type(v) for v in values}
        if not (kinds <= {str} or kinds <= {int}):
            raise ValueError(
                f"The values of feature {self.name!r} must be all strings or "
                f"all integers. Received: values={list(values)!r}. Convert "
                "them to strings."
            )
        duplicates = sorted({v for v in values if values.count(v) > 1}, key=str)
        if duplicates:
            raise ValueError(
                f"The values of feature {self.name!r} must be unique. "
                f"Received: values={list(values)!r}, where {duplicates!r} "
                "occur more than once. Remove the repeated ones."
            )
        if self.always and len(values) != 1:
            raise ValueError(
                f"Feature {self.name!r} has always=True and must have exactly "
                f"one value. Received: values={list(values)!r}. Leave `values` "
                "out, or set always=False."
            )
        if self.always and self.multiple:
            raise ValueError(
                f"Feature {self.name!r} cannot have both always=True and "
                "multiple=True. Received: always=True, multiple=True. Choose "
                "one of them."
            )
        return values

    def _checked_rank(self, rank: Rank) -> int | dict[Value, int]:
        if isinstance(rank, Mapping):
            unknown = [v for v in rank if v != "*" and v not in self.values]
            if unknown:
                raise ValueError(
                    f"A rank by value of feature {self.name!r} must name its "
                    f"values or '*'. Received: rank={dict(rank)!r}, where "
                    f"{unknown[0]!r} is unknown.{self._nearest(unknown[0])}"
                )
            missing = [v for v in self.values if v not in rank]
            if missing and "*" not in rank:
                raise ValueError(
                    f"A rank by value of feature {self.name!r} must cover every "
                    f"value. Received: rank={dict(rank)!r}, without "
                    f"{missing!r}. Add them, or '*' for all others."
                )
            return {v: self._checked_int_rank(r) for v, r in rank.items()}
        return self._checked_int_rank(rank)

    def _checked_int_rank(self, rank: Any) -> int:
        if isinstance(rank, bool) or not isinstance(rank, numbers.Integral):
            raise ValueError(
                f"The rank of feature {self.name!r} must be an integer. "
                f"Received: rank={rank!r}. Pass a positive integer such as 4."
            )
        if rank < 1:
            raise ValueError(
                f"The rank of feature {self.name!r} must be at least 1. "
                f"Received: rank={rank}. To leave a feature out, remove it "
                "from the schema."
            )
        return int(rank)

    def _checked_dropout(self, dropout: Any) -> float:
        if isinstance(dropout, bool) or not isinstance(dropout, numbers.Real):
            dropout_is_valid = False
        else:
            dropout_is_valid = 0.0 <= dropout < 1.0
        if not dropout_is_valid:
            raise ValueError(
                f"The dropout of feature {self.name!r} must be a number in "
                f"[0, 1). Received: dropout={dropout!r}. Pass 0.0 for none."
            )
        return float(dropout)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The rank of each value, in the order of `values`."""
        if self.rank is None:
            raise ValueError(
                f"The rank of feature {self.name!r} must be known here. "
                "Received: rank=None. Pass rank= to the Feature or to the layer."
            )
        if isinstance(self.rank, Mapping):
            rank = self.rank
            return tuple(rank[v] if v in rank else rank["*"] for v in self.values)
        return (self.rank,) * len(self.values)

    def id_of(self, value: Value | None) -> int:
        """The id of a value; -1 for `None`. Raises for an unknown value."""
        if value is None:
            return ABSENT
        try:
            return self.values.index(value)
        except ValueError:
            raise ValueError(
                f"A value of feature {self.name!r} must be one of its "
                f"{len(self.values)} values. Received: {self.name}={value!r}."
                f"{self._nearest(value)} State absence as None."
            ) from None

    def encoder(
        self, ints_are_ids: bool = True, unknown_is_absent: bool = False
    ) -> encoding.Encoder:
        """What turns an entry of this axis into ids.

        Args:
            ints_are_ids: Whether integers are ids, as in a model's inputs, or
                values to look up.
            unknown_is_absent: Whether unknown values become -1 or raise.
        """
        lookup = {value: i for i, value in enumerate(self.values)}
        return encoding.Encoder(
            self.name,
            len(self.values),
            (lambda value: lookup.get(value, ABSENT))
            if unknown_is_absent
            else self.id_of,
            multiple=self.multiple,
            ints_are_ids=ints_are_ids,
        )

    def _nearest(self, value: Any) -> str:
        names = [str(v) for v in self.values]
        near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.0)
        known = ", ".join(repr(v) for v in self.values[:8])
        more = ", ..." if len(self.values) > 8 else ""
        hint = f" The nearest known value is {near[0]!r}." if near else ""
        return f"{hint} Known values: {known}{more}."

    def get_config(self) -> dict[str, Any]:
        """The feature as a dict of JSON types."""
        rank: Any = self.rank
        if isinstance(rank, Mapping):
            rank = [[value, r] for value, r in rank.items()]
        return {
            "name": self.name,
            "values": list(self.values),
            "rank": rank,
            "dropout": self.dropout,
            "multiple": self.multiple,
            "always": self.always,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Feature:
        """The feature that `get_config` described."""
        config = dict(config)
        if isinstance(config.get("rank"), list):
            config["rank"] = {value: rank for value, rank in config["rank"]}
        return cls(**config)


class FeatureSchema:
    """The ordered feature axes of one model.

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

    def __init__(
        self,
        features: FeatureSchema | Iterable[Feature] | Mapping[str, Sequence[Value]],
    ) -> None:
        if isinstance(features, Mapping):
            features = [Feature(name, values) for name, values in features.items()]
        elif isinstance(features, (str, bytes, Feature)) or not isinstance(
            features, Iterable
        ):
            raise ValueError(
                "`features` must be a FeatureSchema, a list of Feature or a "
                "dict from name to values. "
                f"Received: features={features!r}. Wrap it in a list."
            )
        self._features = tuple(features)
        if not self._features:
            raise ValueError(
                "A feature schema must have at least one feature. Received: "
                'features=[]. Name the axes of the mixture, such as {"task": '
                '["qa", "parse"]}.'
            )
        for feature in self._features:
            if not isinstance(feature, Feature):
                raise ValueError(
                    "The members of a feature schema must be Feature. Received: "
                    f"{feature!r} of type {type(feature).__name__}. Write "
                    "Feature(name, values)."
                )
        names = [feature.name for feature in self._features]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    "The features of a schema must have unique names. Received: "
                    f"names={names!r}. Rename or join {name!r}."
                )

    def __iter__(self) -> Iterator[Feature]:
        return iter(self._features)

    def __len__(self) -> int:
        return len(self._features)

    def __getitem__(self, name: str) -> Feature:
        for feature in self._features:
            if feature.name == name:
                return feature
        raise KeyError(f"No feature is called {name!r}. Features: {self.names}.")

    def __contains__(self, name: object) -> bool:
        return any(feature.name == name for feature in self._features)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FeatureSchema) and self._features == other._features

    def __hash__(self) -> int:
        return hash(tuple((f.name, f.values) for f in self._features))

    def __repr__(self) -> str:
        return f"FeatureSchema({list(self._features)!r})"

    @property
    def names(self) -> list[str]:
        """The names of all axes, in order."""
        return [feature.name for feature in self._features]

    @property
    def routed(self) -> list[Feature]:
        """The axes that every input dict must state: all but `always` ones."""
        return [feature for feature in self._features if not feature.always]

    def resolve(
        self,
        rank: int | Mapping[str, Rank] = 4,
        dropout: float | Mapping[str, float] = 0.0,
    ) -> FeatureSchema:
        """The same axes with every rank and dropout rate filled in.

        Args:
            rank: Rank for the axes that have none: a number, or a dict from
                the axis' name to a number or to a dict by value.
            dropout: Dropout rate for the axes that have none: a number or a
                dict from the axis' name.

        Returns:
            A new `FeatureSchema`. Axes that a dict leaves out take rank 4
            and no dropout.
        """
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
            dataclasses.replace(
                feature,
                rank=feature.rank
                if feature.rank is not None
                else rank.get(feature.name, 4)
                if isinstance(rank, Mapping)
                else rank,
                dropout=feature.dropout
                if feature.dropout is not None
                else dropout.get(feature.name, 0.0)
                if isinstance(dropout, Mapping)
                else dropout,
            )
            for feature in self._features
        )

    def encode(
        self,
        values: Mapping[str, Any],
        unknown: str = "error",
        batch_size: int | None = None,
    ) -> FeatureIds:
        """Turns values into ids.

        Args:
            values: A dict with one entry per axis (none for `always` axes):
                one value for the whole batch or a list with one value per
                example. `None` or -1 is absent. For `multiple` axes, an
                example's entry may be a list. On an axis of strings, integers
                are taken as ids.
            unknown: `"error"` raises on unknown values, `"absent"` maps them
                to -1.
            batch_size: Number of examples, if it is known. By default it is
                read from the entries.

        Returns:
            A dict of int32 arrays of shape `(batch,)`, or `(batch, k)` for
            `multiple` axes (padded with -1), in the order of the axes.
        """
        if unknown not in ("error", "absent"):
            raise ValueError(
                "`unknown` must be 'error' or 'absent'. Received: "
                f"unknown={unknown!r}. Use 'absent' to map unknown values to -1."
            )
        self.check_entries(values)
        ids = {
            feature.name: feature.encoder(
                ints_are_ids=isinstance(feature.values[0], str),
                unknown_is_absent=unknown == "absent",
            )(values[feature.name])
            for feature in self.routed
        }
        return self.with_batch(ids, batch_size)

    def encode_one(self, combination: Mapping[str, Any]) -> FeatureIds:
        """Encodes one example, `{"task": "qa", "language": "sw"}`: a batch of 1.

        On a `multiple` axis, a list holds the values of that one example.
        """
        self.check_entries(combination)
        return self.encode(
            {
                feature.name: [combination[feature.name]]
                if feature.multiple
                else combination[feature.name]
                for feature in self.routed
            },
            batch_size=1,
        )

    def with_batch(self, ids: FeatureIds, batch_size: int | None) -> FeatureIds:
        """Gives encoded entries one batch length and `multiple` axes a width."""
        ids = encoding.broadcast(ids, batch_size)
        return {
            name: value[:, None] if self[name].multiple and value.ndim == 1 else value
            for name, value in ids.items()
        }

    def check_entries(self, entries: Mapping[str, Any]) -> None:
        """Raises unless a dict has one entry per axis, and none besides."""
        for name in entries:
            if name not in self or self[name].always:
                raise ValueError(
                    "Feature values must belong to the schema's axes "
                    f"{[f.name for f in self.routed]}. Received: {name!r}"
                    + (
                        ", which is always active and takes no entry."
                        if name in self
                        else "."
                    )
                    + " Remove it."
                )
        for feature in self.routed:
            if feature.name not in entries:
                raise ValueError(
                    "Every feature must have an entry in the input dict, next "
                    f"to the model's own inputs. Received: no entry "
                    f"{feature.name!r} (entries: {sorted(entries)}). State its "
                    "values or ids; where an example has none, None or -1."
                )

    def get_config(self) -> dict[str, Any]:
        """The schema as a dict of JSON types."""
        return {"features": [feature.get_config() for feature in self._features]}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> FeatureSchema:
        """The schema that `get_config` described."""
        return cls(Feature.from_config(feature) for feature in config["features"])
