"""`Feature`: what examples differ in, with its values, ranks and dropout."""

from __future__ import annotations

import dataclasses
import functools
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_flix._utils.displayed import Displayed, Rows, cut, some
from keras_flix._utils.switches import checked_switch
from keras_flix.features.dropout import FeatureDropout, as_dropout
from keras_flix.features.encoding import ABSENT, WEIGHT_UNIT, Encoder
from keras_flix.features.missing import is_missing
from keras_flix.features.ranks import Rank, checked_rank
from keras_flix.features.scaling import (
    Scaling,
    check_alpha,
    check_has_alpha,
    check_scale,
)
from keras_flix.features.targets import checked_targets
from keras_flix.features.values import (
    OTHERS,
    Value,
    checked_values,
    nearest_value,
    plain_value,
)

# What every backend takes in the names of variables.
NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclasses.dataclass(frozen=True, repr=False)
class Feature(Displayed):
    """One way in which examples differ, such as their task or their language.

    Args:
        name: The feature's name, which is also its key in a model's input dict.
        values: The vocabulary: unique strings, or unique integers. The
            position of a value is its id. Strings are kept in Unicode's normal
            form NFC. May be left out if `always=True`.
        rank: Rank of each value's low-rank update: an integer, or a dict from
            value to rank in which `"*"` stands for all others. `None` takes
            the rank given where the schema is used.
        dropout: Probability in `[0, 1)` of dropping this feature from an
            example in training, or a `FeatureDropout`. `None` takes what is
            given where the schema is used.
        multiple: Whether an example may have several values of this feature.
        always: Whether the feature is active in every example. It then has one
            value and no entry in the input dict. A schema with only such a
            feature is LoRA; next to other features it is what they share.
        alpha: The scale of this feature's updates is `alpha / rank`. `None` takes
            the alpha given where the schema is used.
        scale: `"rank"` divides alpha by the rank, `"sqrt"` by its square root. `None`
            takes the scale given where the schema is used.
        targets: Which layers of a model have adapter weights of this feature, as for
            `enable_flix`: `"all-linear"`, or a list of names or regexes. `None` takes
            the targets given there.

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
    dropout: float | FeatureDropout | None = None
    multiple: bool = False
    always: bool = False
    alpha: float | None = None
    scale: str | None = None
    targets: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(
                "A feature's name must be a non-empty string. "
                f"Received: name={self.name!r}. Name the feature after what it "
                'describes, such as "task" or "language".'
            )
        if not NAME.fullmatch(self.name):
            raise ValueError(
                "A feature's name must consist of ASCII letters, digits, '_' and "
                "'-', since its variables are named after it. Received: "
                f"name={self.name!r}. Use '_' for other characters; values may be "
                "any strings."
            )
        for name in ("multiple", "always"):
            object.__setattr__(self, name, checked_switch(name, getattr(self, name)))
        values = checked_values(self.name, self.values, self.always, self.multiple)
        object.__setattr__(self, "values", values)
        if self.rank is not None:
            object.__setattr__(
                self, "rank", checked_rank(self.name, self.values, self.rank)
            )
        if self.dropout is not None:
            object.__setattr__(self, "dropout", self._checked_dropout(self.dropout))
        if self.alpha is not None:
            object.__setattr__(self, "alpha", check_alpha(self.alpha))
        if self.scale is not None:
            check_scale(self.scale)
        targets = checked_targets(self.name, self.targets)
        object.__setattr__(self, "targets", targets)

    def _checked_dropout(self, dropout: Any) -> float | FeatureDropout:
        try:
            checked = as_dropout(dropout)
        except (TypeError, ValueError):
            raise ValueError(
                f"The dropout of feature {self.name!r} must be a number in "
                f"[0, 1). Received: dropout={dropout!r}. Pass 0.0 for none."
            ) from None
        # The plain number where it says all.
        return checked.rate if checked == FeatureDropout(checked.rate) else checked

    def _line(self) -> str:
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)[2:]}
        given = [
            f"{n}={cut(repr(x))}" for n, x in options.items() if x not in (None, False)
        ]
        return f"Feature({', '.join([repr(self.name), some(self.values), *given])})"

    def _tables(self) -> Iterable[tuple[str, Rows]]:
        return [("", [["id", self.name], *enumerate(self.values)])]

    def __hash__(self) -> int:
        return hash((self.name, self.values))

    @functools.cached_property
    def _ids(self) -> dict[Any, int]:
        return dict(zip(self.values, range(len(self.values))))

    def __contains__(self, value: object) -> bool:
        """Whether it has a value. `value in feature.values` looks at all of them."""
        try:
            return plain_value(value) in self._ids
        except TypeError:
            return False

    def filled(
        self,
        rank: Rank,
        dropout: float | FeatureDropout,
        alpha: float | None,
        scale: str,
    ) -> Feature:
        """This feature with what it states none of its own of."""
        filled = dataclasses.replace(
            self,
            rank=rank if self.rank is None else self.rank,
            dropout=dropout if self.dropout is None else self.dropout,
            alpha=alpha if self.alpha is None else self.alpha,
            # Files that have no entry for it are of the default.
            scale=scale if self.scale is None and scale != "rank" else self.scale,
        )
        check_has_alpha(self.name, filled.alpha, filled.scale)
        return filled

    @property
    def scaling(self) -> Scaling:
        """How the rank of a value gives the scale of its update."""
        return Scaling(self.alpha, self.scale or "rank")

    @functools.cached_property
    def scales(self) -> tuple[float, ...]:
        """`s_f` of each value: 1 if `alpha` is `None`."""
        if self.alpha is None:
            return (1.0,) * len(self.values)
        return tuple(map(self.scaling.of, self.ranks))

    @functools.cached_property
    def common_scale(self) -> float | np.ndarray:
        """`scales` as one number if all values have the same, else float32."""
        if self.alpha is None or len(set(self.scales)) == 1:
            return self.scales[0]
        return np.asarray(self.scales, "float32")

    @functools.cached_property
    def ranks(self) -> tuple[int, ...]:
        """The rank of each value, in the order of `values`."""
        if self.rank is None:
            raise ValueError(
                f"The rank of feature {self.name!r} must be known here. "
                "Received: rank=None. Pass rank= to the Feature or to the layer."
            )
        if isinstance(self.rank, Mapping):
            rank = self.rank
            return tuple(rank[v] if v in rank else rank[OTHERS] for v in self.values)
        return (self.rank,) * len(self.values)

    def with_rank(self, rank: int | None) -> Feature:
        """This feature with one rank for all values; itself for `None`."""
        if rank is None:
            return self
        # Not checked again, once per layer: there may be very many values.
        made = object.__new__(Feature)
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        vars(made).update(own, rank=rank)
        return made

    def id_of(self, value: Value | None) -> int:
        """The id of a value; -1 for `None`. Raises for an unknown value."""
        if is_missing(value):
            return ABSENT
        try:
            return self._ids[plain_value(value)]
        except (KeyError, TypeError):
            raise ValueError(
                f"A value of feature {self.name!r} must be one of its "
                f"{len(self.values)} values. Received: {self.name}={value!r}."
                f"{nearest_value(value, self.values)} State absence as None"
                + (f", and ids as {self.ids_key!r}." if self.has_integers else ".")
            ) from None

    @functools.cached_property
    def has_integers(self) -> bool:
        """Whether the values are integers, which in inputs are no ids then."""
        return not isinstance(self.values[0], str)

    @functools.cached_property
    def ids_key(self) -> str:
        """Under this key, an input dict states ids of this feature."""
        return f"{self.name}:ids"

    @functools.cached_property
    def encoded_key(self) -> str:
        """Under this key, ids of this feature are among a model's inputs."""
        return self.ids_key if self.has_integers else self.name

    @functools.cached_property
    def integers_are_announced(self) -> bool:
        """Warns once where 0.1 took integers for ids that may be other values."""
        count = len(self.values)
        if self.has_integers and any(
            value != i and 0 <= int(value) < count
            for i, value in enumerate(self.values)
        ):
            warnings.warn(
                f"Integers of feature {self.name!r} are read as its values, which are "
                "integers; keras_flix 0.1 read them as ids. Where ids are meant, call "
                f"the entry {self.ids_key!r}.",
                FutureWarning,
                stacklevel=2,
            )
        return True

    @functools.cached_property
    def in_order(self) -> tuple[np.ndarray, np.ndarray]:
        """Integer values from low to high, int64, and their ids."""
        values = np.asarray(self.values, "int64")
        order = np.argsort(values)
        return values[order], order

    def decode(self, ids: np.ndarray) -> list[Any]:
        """The values that ids stand for, one entry per example.

        Args:
            ids: As `FeatureSchema.encode` gives them: `(batch,)`; `(batch, k)` where
                an example may have several values; `(batch, k, 2)` with weights.

        Returns:
            Per example a value, or `None` where it is absent; a list of values; or a
            dict from values to weights.

        >>> Feature("task", ["qa", "parse"]).decode(np.array([1, -1]))
        ['parse', None]
        """
        ids = np.asarray(ids)
        if np.any((ids[..., 0] if ids.ndim == 3 else ids) >= len(self.values)):
            raise ValueError(
                f"The ids of feature {self.name!r} must be in [0, {len(self.values)}), "
                f"or -1 for absent. Received: {self.name}={ids.tolist()}. Decode ids "
                "of this schema."
            )
        values = self.values
        if ids.ndim == 1:
            return [values[i] if i > ABSENT else None for i in ids.tolist()]
        if ids.ndim == 2:
            return [[values[i] for i in row if i > ABSENT] for row in ids.tolist()]
        return [
            {values[i]: weight * WEIGHT_UNIT for i, weight in row if i > ABSENT}
            for row in ids.tolist()
        ]

    def encoder(
        self, ints_are_ids: bool = False, unknown_is_absent: bool = False
    ) -> Encoder:
        """What turns an entry of this feature into ids.

        Args:
            ints_are_ids: Whether integers are ids also where the values are integers.
            unknown_is_absent: Whether unknown values become -1 or raise.
        """
        return Encoder(
            self.name,
            self._ids,
            self._known_id if unknown_is_absent else self.id_of,
            multiple=self.multiple,
            ints_are_ids=ints_are_ids or not self.has_integers,
        )

    def _known_id(self, value: Any) -> int:
        return self._ids.get(plain_value(value), ABSENT)

    def get_config(self) -> dict[str, Any]:
        """The feature as a dict of JSON types."""
        rank: Any = self.rank
        targets = (
            list(self.targets) if isinstance(self.targets, tuple) else self.targets
        )
        if isinstance(rank, Mapping):
            rank = [[value, r] for value, r in rank.items()]
        return {
            "name": self.name,
            "values": list(self.values),
            "rank": rank,
            "dropout": self.dropout.get_config()
            if isinstance(self.dropout, FeatureDropout)
            else self.dropout,
            "multiple": self.multiple,
            "always": self.always,
            "alpha": self.alpha,
            # Files without these are read by 0.1, too.
            **({} if self.scale is None else {"scale": self.scale}),
            **({} if self.targets is None else {"targets": targets}),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Feature:
        """The feature that `get_config` described."""
        config = dict(config)
        if isinstance(config.get("rank"), list):
            config["rank"] = {value: rank for value, rank in config["rank"]}
        return cls(**config)
