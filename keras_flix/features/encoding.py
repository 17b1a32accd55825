"""From one feature's values, as a person writes them, to an array of ids.

Knows nothing of schemas or backends: it takes the feature's name, the number of its
values and a look-up, and works on Python and numpy data.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Container, Mapping, Set
from typing import Any

import numpy as np

from keras_flix.features.missing import is_missing, whole_numbers, without_masks

ABSENT = -1
"""The id of a feature that has no value in an example."""

WEIGHT_UNIT = 2.0**-20
"""Weights of values are whole multiples of this, about a millionth.

Ids and weights travel as one int32 array of shape `(batch, k, 2)`: as floats, mixed
precision would round the ids.
"""

MAX_WEIGHT = 1000.0

PLAIN = frozenset({str, type(None)})
"""Types of entries that are one value or none, and can be nothing else."""

Pairs = list[tuple[int, float]]
"""Ids of one example with their weights."""


class EncodedIds(np.ndarray):
    """An int32 array of ids that is known to be one.

    What `FeatureSchema.encode` returns for features of integer values: in a plain
    array, their integers are values. Slices and copies are ids still; converted to
    a tensor, ids go into an input dict under the key `"<feature>:ids"`.
    """


class IntegerValue(int):
    """An integer that is known to be a value, and never an id.

    What a mixture's batches hold: a plain integer is an id on features of strings.
    """


@dataclasses.dataclass(frozen=True)
class ForAll:
    """An encoded entry that holds for every example of a batch.

    Attributes:
        row: int32, of one example: an id of rank 0; `(k,)` of several values; `(k, 2)`
            with weights, ids beside them in `WEIGHT_UNIT`.
        ndim: As that of a single id, which holds for every example too.
    """

    row: np.ndarray
    ndim: int = 0


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Encodes the entries of one feature.

    Args:
        name: The feature's name, for errors.
        ids: The id of each value.
        id_of: What an unknown one is, or raises.
        multiple: Whether an example may have several values.
        ints_are_ids: Whether integers are ids or values to look up.
    """

    name: str
    ids: Mapping[Any, int]
    id_of: Callable[[Any], int]
    multiple: bool = False
    ints_are_ids: bool = True

    def __call__(self, entry: Any) -> Any:
        """Encodes one entry of an input dict.

        Args:
            entry: One value for all examples, or what `ForAll` is; or a sequence with
                one per example; an example's own entry may be a list if `multiple`, and
                a dict from values to weights on any feature. Or a float array of
                shape `(batch, values)` with every value's weight.

        Returns:
            An int32 array: of rank 0 for one value for the whole batch, else
            of shape `(batch,)`, or `(batch, k)` if `multiple`. With weights, of
            shape `(batch, k, 2)`: ids, and weights in `WEIGHT_UNIT`; or `ForAll`.
        """
        if isinstance(entry, ForAll):
            return entry
        if type(entry) not in (list, np.ndarray):
            entry = without_masks(entry)
        if isinstance(entry, np.ndarray) and entry.ndim < 2:
            if entry.dtype.kind == "f" and np.isnan(entry).any():
                entry = entry.astype("float64").tolist()
        if isinstance(entry, np.ndarray) and entry.ndim and entry.dtype.kind in "iu":
            ids = self._numeric(entry)
        elif (
            isinstance(entry, np.ndarray)
            and entry.dtype.kind == "f"
            and entry.ndim == 2
        ):
            return self._dense(entry)
        elif isinstance(entry, np.ndarray) and entry.dtype.kind in "fbc":
            raise self._dtype_error(entry.dtype)
        elif not isinstance(entry, list) and _is_scalar(entry):
            return np.asarray(self._one(entry), "int32")
        elif isinstance(entry, Mapping):
            return ForAll(self._packed([self._pairs(entry, 0)])[0])
        elif isinstance(entry, Set):
            raise self._dtype_error(type(entry).__name__)
        else:
            entries = entry.tolist() if isinstance(entry, np.ndarray) else list(entry)
            if not PLAIN.issuperset(map(type, entries)):
                entries = whole_numbers(entries)
                for one in entries:
                    if isinstance(one, Mapping):
                        rows = [self._pairs(e, i) for i, e in enumerate(entries)]
                        return self._packed(rows)
            ids = self._several(entries) if self.multiple else self._each(entries)
        self._check_shape(ids)
        self.check_range(ids[..., 0] if ids.ndim == 3 else ids)
        return np.asarray(ids, "int32")

    def check_range(self, ids: np.ndarray) -> None:
        """Raises unless all ids are -1 or those of a value."""
        bad = (ids < ABSENT) | (ids >= len(self.ids))
        if np.any(bad):
            raise self._range_error(ids[bad][0], int(np.argwhere(bad)[0][0]))

    def _one(self, value: Any, example: int | None = None) -> int:
        if isinstance(value, np.ndarray) and value is not np.ma.masked:
            value = value.item()
        if isinstance(value, bytes):
            value = value.decode("utf-8")
        if not isinstance(value, str) and is_missing(value):
            return ABSENT
        if isinstance(value, bool) or (
            isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral)
        ):
            raise self._dtype_error(type(value).__name__)
        is_id = self.ints_are_ids and not isinstance(value, IntegerValue)
        if isinstance(value, numbers.Integral) and (is_id or value == ABSENT):
            if not ABSENT <= int(value) < len(self.ids):
                raise self._range_error(value, example)
            return int(value)
        if not isinstance(value, (str, numbers.Integral)):
            raise self._dtype_error(type(value).__name__)
        found = self.ids.get(value)
        return self.id_of(value) if found is None else found

    def _each(self, entries: list[Any]) -> np.ndarray:
        for entry in entries:
            if type(entry) not in PLAIN and _is_several(entry):
                raise ValueError(
                    f"Feature {self.name!r} takes one value per example. "
                    f"Received: {self.name}={entry!r} for one example. Pass a "
                    "single value, or declare the feature with multiple=True."
                )
        ids = []
        for example, entry in enumerate(entries):
            # A call for each would be most of what a whole data set takes.
            known = ABSENT if entry is None else None
            if type(entry) is str:
                known = self.ids.get(entry)
            ids.append(self._one(entry, example) if known is None else known)
        return np.asarray(ids, "int64")

    def _several(self, entries: list[Any]) -> np.ndarray:
        rows = [
            [self._one(e, example) for e in entry]
            if _is_several(entry)
            else [self._one(entry, example)]
            for example, entry in enumerate(entries)
        ]
        width = max([1, *map(len, rows)])
        return np.asarray(
            [row + [ABSENT] * (width - len(row)) for row in rows], "int64"
        ).reshape(len(rows), width)

    def _pairs(self, entry: Any, example: int) -> Pairs:
        """Ids and weights of one example; what is no dict of weights counts once."""
        if isinstance(entry, Mapping):
            return [
                (self._one(value, example), self._weight(value, weight, example))
                for value, weight in entry.items()
            ]
        ids = self._several([entry]) if self.multiple else self._each([entry])
        return [(i, 1.0) for i in ids.ravel().tolist()]

    def _packed(self, rows: list[Pairs]) -> np.ndarray:
        """Ids and weights of all examples as an int32 array `(batch, k, 2)`."""
        # Without a weight, not even a NaN in the value's table counts.
        rows = [[(i, w) for i, w in row if i != ABSENT and w] for row in rows]
        packed = np.zeros((len(rows), max([1, *map(len, rows)]), 2), "int32")
        packed[..., 0] = ABSENT
        for example, row in enumerate(rows):
            ids = [i for i, _ in row]
            if len(set(ids)) < len(ids):
                raise self._repeated_error(ids, example)
            for k, (i, weight) in enumerate(row):
                packed[example, k] = i, round(weight / WEIGHT_UNIT)
        return packed

    def _dense(self, weights: np.ndarray) -> np.ndarray:
        """A matrix of the weights of all values, of shape `(batch, values)`."""
        if weights.shape[1] != len(self.ids):
            raise ValueError(
                f"A float entry of feature {self.name!r} holds the weights of its "
                f"values and must have the shape (batch, {len(self.ids)}). "
                f"Received: {self.name} of shape {weights.shape} and dtype "
                f"{weights.dtype}. Give one weight per value, or cast ids to int32."
            )
        return self._packed(
            [
                [(i, self._weight(i, w, example)) for i, w in enumerate(row)]
                for example, row in enumerate(weights.tolist())
            ]
        )

    def _weight(self, value: Any, weight: Any, example: int) -> float:
        if (
            isinstance(weight, bool)
            or not isinstance(weight, numbers.Real)
            or not abs(float(weight)) <= MAX_WEIGHT
        ):
            raise ValueError(
                f"The weight of a value of feature {self.name!r} must be a number "
                f"between {-MAX_WEIGHT:g} and {MAX_WEIGHT:g}. Received: {value!r}: "
                f"{weight!r} (at example {example}). Write such as "
                '{"hi": 0.6, "en": 0.4}.'
            )
        return float(weight)

    def _numeric(self, ids: np.ndarray) -> np.ndarray:
        if not self.ints_are_ids and ids.ndim < 3:
            flat = [self._one(int(value)) for value in ids.ravel()]
            ids = np.asarray(flat, "int64").reshape(ids.shape)
        if self.multiple and ids.ndim == 1:
            ids = ids[:, None]
        # Unsigned and wide integers must not wrap around when narrowed.
        return ids.astype("int64") if ids.dtype.kind != "u" else _from_unsigned(ids)

    def _check_shape(self, ids: np.ndarray) -> None:
        weighted = ids.ndim == 3 and ids.shape[2] == 2
        if not weighted and ids.ndim != (2 if self.multiple else 1):
            wanted = "(batch, k)" if self.multiple else "(batch,)"
            raise ValueError(
                f"The ids of feature {self.name!r} must have the shape {wanted}. "
                f"Received: {self.name} of shape {ids.shape}. Pass one entry per "
                "example."
            )
        if weighted:
            ids = ids[..., 0]
        if ids.ndim == 2 and ids.shape[1] > 1:
            ordered = np.sort(ids, axis=1)
            repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != ABSENT)
            if np.any(repeated):
                example = int(np.argwhere(repeated)[0][0])
                raise self._repeated_error(ids[example].tolist(), example)

    def _repeated_error(self, ids: list[int], example: int) -> ValueError:
        return ValueError(
            f"An example must have each value of feature {self.name!r} at most once. "
            f"Received: {self.name}={ids} (as ids, at example {example}). Remove the "
            "repeated one."
        )

    def _range_error(self, value: Any, example: int | None) -> ValueError:
        where = "" if example is None else f" (at example {example})"
        return ValueError(
            f"The ids of feature {self.name!r} must be in [0, {len(self.ids)}), "
            f"or -1 for absent. Received: {self.name}={int(value)}{where}. Encode "
            "values with `schema.encode(...)`."
        )

    def _dtype_error(self, dtype: Any) -> ValueError:
        return ValueError(
            f"The entry of feature {self.name!r} must hold strings, integer ids "
            f"or None. Received: {self.name} of dtype {dtype}. Encode values "
            "with `schema.encode(...)`, or cast ids to int32."
        )


def _is_several(entry: Any) -> bool:
    # What is masked is an array by its type.
    return isinstance(entry, (list, tuple, np.ndarray)) and entry is not np.ma.masked


def _is_scalar(entry: Any) -> bool:
    if isinstance(entry, np.ndarray):
        return entry.ndim == 0
    if isinstance(entry, (str, bytes, numbers.Number, np.generic)):
        return True
    return is_missing(entry)


def _from_unsigned(ids: np.ndarray) -> np.ndarray:
    highest = np.uint64(np.iinfo("int64").max)
    return np.minimum(ids.astype("uint64"), highest).astype("int64")


def with_batch(
    ids: Mapping[str, Any], batch_size: int | None, multiple: Container[str] = ()
) -> dict[str, np.ndarray]:
    """Gives all ids one batch length; those of rank 0 stand for every example.

    Args:
        ids: What the encoders of all features returned, by feature.
        batch_size: The number of examples, or `None` to read it from the ids.
        multiple: The features of which an example may have several values.

    Returns:
        The ids with a batch axis each, and those of `multiple` features with a width.
    """
    for name, value in ids.items():
        if value.ndim and batch_size is None:
            batch_size = len(value)
        if value.ndim and len(value) != batch_size:
            raise ValueError(
                "Every feature must have one entry per example. Received: "
                f"{len(value)} entries of {name!r} for a batch of {batch_size}. "
                "Pass one value for the whole batch, or one per example."
            )
    length = 1 if batch_size is None else batch_size
    found = dict(ids)
    for name, value in ids.items():
        if not value.ndim:
            repeated = np.repeat(one_row(value), length, axis=0)
            is_narrow = repeated.ndim == 1 and name in multiple
            found[name] = repeated[:, None] if is_narrow else repeated
    return found


def one_row(value: np.ndarray | ForAll) -> np.ndarray:
    """What holds for all examples, as ids of a batch of one."""
    return (value.row if isinstance(value, ForAll) else value)[None]
