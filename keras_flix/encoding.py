"""From one axis' values, as a person writes them, to an array of ids.

Knows nothing of schemas or backends: it takes the axis' name, the number of its
values and a look-up, and works on Python and numpy data.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Mapping, Set
from typing import Any

import numpy as np

ABSENT = -1
"""The id of an axis that has no value in an example."""


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Encodes the entries of one axis.

    Args:
        name: The axis' name, for errors.
        num_values: The size of its vocabulary.
        id_of: Look-up from a value to its id, which raises on unknown ones.
        multiple: Whether an example may have several values.
        ints_are_ids: Whether integers are ids or values to look up.
    """

    name: str
    num_values: int
    id_of: Callable[[Any], int]
    multiple: bool = False
    ints_are_ids: bool = True

    def __call__(self, entry: Any) -> np.ndarray:
        """Encodes one entry of an input dict.

        Args:
            entry: One value for all examples, or a sequence with one per
                example; an example's own entry may be a list if `multiple`.

        Returns:
            An int32 array: of rank 0 for one value for the whole batch, else
            of shape `(batch,)`, or `(batch, k)` if `multiple`.
        """
        if isinstance(entry, np.ndarray) and entry.ndim and entry.dtype.kind in "iu":
            ids = self._numeric(entry)
        elif isinstance(entry, np.ndarray) and entry.dtype.kind in "fbc":
            raise self._dtype_error(entry.dtype)
        elif _is_scalar(entry):
            return np.asarray(self._one(entry), "int32")
        elif isinstance(entry, (Set, Mapping)):
            raise self._dtype_error(type(entry).__name__)
        else:
            entries = entry.tolist() if isinstance(entry, np.ndarray) else list(entry)
            ids = self._several(entries) if self.multiple else self._each(entries)
        self._check_shape(ids)
        self.check_range(ids)
        return np.asarray(ids, "int32")

    def check_range(self, ids: np.ndarray) -> None:
        """Raises unless all ids are -1 or those of a value."""
        bad = (ids < ABSENT) | (ids >= self.num_values)
        if np.any(bad):
            raise self._range_error(ids[bad][0], int(np.argwhere(bad)[0][0]))

    def _one(self, value: Any, example: int | None = None) -> int:
        if isinstance(value, np.ndarray):
            value = value.item()
        if isinstance(value, bytes):
            value = value.decode("utf-8")
        if isinstance(value, bool) or (
            isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral)
        ):
            raise self._dtype_error(type(value).__name__)
        if isinstance(value, numbers.Integral) and (
            self.ints_are_ids or value == ABSENT
        ):
            if not ABSENT <= int(value) < self.num_values:
                raise self._range_error(value, example)
            return int(value)
        if value is not None and not isinstance(value, (str, numbers.Integral)):
            raise self._dtype_error(type(value).__name__)
        return self.id_of(value)

    def _each(self, entries: list[Any]) -> np.ndarray:
        for entry in entries:
            if isinstance(entry, (list, tuple, np.ndarray)):
                raise ValueError(
                    f"Feature {self.name!r} takes one value per example. "
                    f"Received: {self.name}={entry!r} for one example. Pass a "
                    "single value, or declare the feature with multiple=True."
                )
        ids = [self._one(entry, example) for example, entry in enumerate(entries)]
        return np.asarray(ids, "int64")

    def _several(self, entries: list[Any]) -> np.ndarray:
        rows = [
            [self._one(e, example) for e in entry]
            if isinstance(entry, (list, tuple, np.ndarray))
            else [self._one(entry, example)]
            for example, entry in enumerate(entries)
        ]
        width = max([1, *map(len, rows)])
        return np.asarray(
            [row + [ABSENT] * (width - len(row)) for row in rows], "int64"
        ).reshape(len(rows), width)

    def _numeric(self, ids: np.ndarray) -> np.ndarray:
        if not self.ints_are_ids:
            flat = [self._one(int(value)) for value in ids.ravel()]
            ids = np.asarray(flat, "int64").reshape(ids.shape)
        if self.multiple and ids.ndim == 1:
            ids = ids[:, None]
        # Unsigned and wide integers must not wrap around when narrowed.
        return ids.astype("int64") if ids.dtype.kind != "u" else _from_unsigned(ids)

    def _check_shape(self, ids: np.ndarray) -> None:
        if ids.ndim != (2 if self.multiple else 1):
            wanted = "(batch, k)" if self.multiple else "(batch,)"
            raise ValueError(
                f"The ids of feature {self.name!r} must have the shape {wanted}. "
                f"Received: {self.name} of shape {ids.shape}. Pass one entry per "
                "example."
            )
        if self.multiple and ids.shape[1] > 1:
            ordered = np.sort(ids, axis=1)
            repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != ABSENT)
            if np.any(repeated):
                example = int(np.argwhere(repeated)[0][0])
                raise ValueError(
                    f"An example must have each value of feature {self.name!r} "
                    f"at most once. Received: {self.name}="
                    f"{ids[example].tolist()} (as ids, at example {example}). "
                    "Remove the repeated one."
                )

    def _range_error(self, value: Any, example: int | None) -> ValueError:
        where = "" if example is None else f" (at example {example})"
        return ValueError(
            f"The ids of feature {self.name!r} must be in [0, {self.num_values}), "
            f"or -1 for absent. Received: {self.name}={int(value)}{where}. Encode "
            "values with `schema.encode(...)`."
        )

    def _dtype_error(self, dtype: Any) -> ValueError:
        return ValueError(
            f"The entry of feature {self.name!r} must hold strings, integer ids "
            f"or None. Received: {self.name} of dtype {dtype}. Encode values "
            "with `schema.encode(...)`, or cast ids to int32."
        )


def _is_scalar(entry: Any) -> bool:
    if isinstance(entry, np.ndarray):
        return entry.ndim == 0
    return entry is None or isinstance(entry, (str, bytes, numbers.Number, np.generic))


def _from_unsigned(ids: np.ndarray) -> np.ndarray:
    highest = np.uint64(np.iinfo("int64").max)
    return np.minimum(ids.astype("uint64"), highest).astype("int64")


def broadcast(ids: dict[str, np.ndarray], batch_size: int | None) -> dict:
    """Gives all ids one batch length; those of rank 0 stand for every example.

    Args:
        ids: What the encoders of all axes returned, by axis.
        batch_size: The number of examples, or `None` to read it from the ids.

    Returns:
        The ids with a batch axis each.
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
    return {
        name: value if value.ndim else np.full((length,), value, "int32")
        for name, value in ids.items()
    }
