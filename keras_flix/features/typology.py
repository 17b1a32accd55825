"""How far apart languages are by what they are like: their syntax and their sounds."""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_flix._utils.optional_packages import needed

KINDS: Mapping[str, tuple[str, ...]] = {
    "syntax": ("S_",),
    "phonology": ("P_",),
    "inventory": ("INV_",),
    "typology": ("S_", "P_", "INV_"),
}
"""By kind of distance, how the names of URIEL's features begin that it compares."""

WHAT = "A typological distance of languages"

NO_LANGUAGES = frozenset({"mis", "mul", "und", "zxx"})
"""ISO 639-3's special codes (uncoded, multiple, undetermined, no linguistic content),
which have rows in URIEL's table, too."""


def typological_distance(one: str, other: str, kind: str) -> float:
    """1 less the cosine of what two languages have, by URIEL's features.

    Args:
        one: An ISO 639-3 code that `is_known`.
        other: Likewise.
        kind: Of `KINDS`.
    """
    if one == other:
        return 0.0
    u, v = _features(one, kind), _features(other, kind)
    cosine = u @ v / np.sqrt((u @ u) * (v @ v))
    # What rounding leaves of 0.
    return float(np.clip(1 - cosine, 0.0, 1.0))


def is_known(code: str | None) -> bool:
    """Whether URIEL has a language, by its ISO 639-3 code."""
    return code in _table()[0] and code not in NO_LANGUAGES


def _features(code: str, kind: str) -> np.ndarray:
    """0 and 1 for each feature of a kind."""
    rows, names, values = _table()
    return values[rows[code], [name.startswith(KINDS[kind]) for name in names]]


@functools.cache
def _table() -> tuple[dict[str, int], list[str], np.ndarray]:
    """The rows of languages, the names of features, and `(languages, features)`."""
    package = needed("lang2vec", WHAT, "typology")
    # Not its module, which needs a setuptools that is no longer.
    path = importlib.resources.files(package) / "data" / "feature_predictions.npz"
    with path.open("rb") as file, np.load(file, allow_pickle=False) as table:
        values: Any = table["data"][:, :, 0].astype("float64")
        rows = {str(code): row for row, code in enumerate(table["langs"])}
        return rows, [str(name) for name in table["feats"]], values
