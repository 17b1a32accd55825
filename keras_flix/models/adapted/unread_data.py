"""Data that Keras cannot read, named without what is in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from keras_flix import _compat
from keras_flix.features.columns import described

ARGUMENTS = ("y", "sample_weight", "validation_data")


def name_without_rows(
    error: ValueError, features: Sequence[str], x: Any, options: Mapping[str, Any]
) -> None:
    """Raises in place of Keras where that prints all data, for one list among it.

    Args:
        error: What Keras raised; any other error is left to the caller.
        features: The names of the model's features.
        x: What the user passed to `fit` and its kin.
        options: Their other arguments by name.
    """
    if not _compat.cannot_read_data(error):
        return
    given = [f"x={described(x)}"]
    given += [
        f"{name}={described(options[name])}"
        for name in ARGUMENTS
        if options.get(name) is not None
    ]
    raise ValueError(
        f"Keras must be able to read the data. Received: {', '.join(given)}. Pass the "
        f"model's inputs and its features {list(features)} by name in one dict or "
        "table, and labels and weights as arrays, as `numpy.asarray` makes them."
    ) from None
