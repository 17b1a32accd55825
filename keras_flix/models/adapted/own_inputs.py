"""What an input dict may hold next to the features, told before any batch is made."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import keras_hub
import numpy as np

from keras_flix import _compat
from keras_flix._utils.near_names import hint
from keras_flix.features.columns import described, stacked_numbers
from keras_flix.features.missing import is_missing
from keras_flix.models.adapted import prompts

TEXTS = ("prompts", "responses", *prompts.PLAIN_KEYS, "encoder_text", "decoder_text")
"""Entries that hold a text per row."""

READ = {
    *TEXTS,
    *("images", "videos", "audio", "audios", "encoder_audio"),
    *("pixel_values", "pixel_position_ids", "audio_mel", "audio_mel_mask"),
    *("boxes", "box_labels", "negative_prompts"),
}
"""What any preprocessor of KerasHub reads."""

TRAINING_KEYS = ("prompts", "responses", *prompts.PLAIN_KEYS)
GENERATE_KEYS = ("prompts", *prompts.PLAIN_KEYS)


def checked_columns(model: Any, own: Any, rows: Any, features: Sequence[str]) -> Any:
    """A whole data set's own columns, checked; lists of numbers become arrays.

    Args:
        model: The adapted model.
        own: Its input dict without the features, or what is no dict.
        rows: Their `leading_size`.
        features: The names of the features.
    """
    if isinstance(own, Mapping) and rows == 0:
        raise ValueError(
            "A table must have at least one row. Received: "
            f"{described(own)}, and no row. Look at how it was selected."
        )
    preprocessor = getattr(model, "preprocessor", None)
    if isinstance(model, keras_hub.models.Task) and preprocessor is not None:
        check_entries(preprocessor, own, features)
        check_texts(own)
        return own
    if not isinstance(own, Mapping):
        return own
    # Checks the names.
    model._own_inputs(own)
    if len(own) > 1 and _compat.is_functional(model) and len(model.inputs) == 1:
        raise ValueError(
            "The model takes one input, and the input dict must hold one entry next "
            f"to the features {list(features)}. Received: {list(own)}. Leave "
            "superfluous ones out, and join columns of numbers, such as "
            "`frame[[...]].to_numpy()`; labels go into `y`."
        )
    found = dict(own)
    for name, column in own.items():
        found[name] = as_input(name, column)
    return found


def as_input(name: str, column: Any) -> Any:
    """A column as an array; a list of arrays may be one entry for several inputs."""
    if isinstance(column, (list, tuple)):
        column = stacked_numbers(column)
    if not isinstance(column, list):
        return column
    if all(isinstance(text, str) for text in column):
        return np.asarray(column, dtype="object")
    first = column[0]
    while isinstance(first, (list, tuple)) and first:
        first = first[0]
    if first is None or isinstance(first, (str, numbers.Number, list, tuple)):
        raise ValueError(
            "A column that the model reads must hold numbers, equally many in every "
            f"row. Received: {name} with {described(column[0])} at row 0, in "
            f"{len(column)} rows. Fill, cut or pad the rows."
        )
    return column


def check_entries(
    preprocessor: Any, own: Any, features: Sequence[str], generates: bool = False
) -> None:
    """Raises where an input dict holds what a task's preprocessor does not read.

    A preprocessor of the user's own may read anything.

    Args:
        preprocessor: That of the task, or `None`.
        own: The input dict without its features, or what is no dict.
        features: The names of the features.
        generates: Whether it is to generate, and not to train or to score.
    """
    if not isinstance(own, Mapping) or not _is_stock(preprocessor):
        return
    read = list(_read(preprocessor, generates))
    superfluous = [name for name in own if name not in read]
    if generates and superfluous == ["responses"]:
        raise ValueError(
            "`generate` takes prompts and features. Received: an entry 'responses' "
            "besides. It answers the prompts itself: leave the responses out, or call "
            "`keras_flix.evaluation.evaluate(model, data)` to compare with them."
        )
    if superfluous:
        few = len(read) <= len(TRAINING_KEYS)
        raise ValueError(
            f"The input dict must hold what the task reads{f' {read}' if few else ''} "
            f"and the features {list(features)}. Received: {superfluous} besides."
            f"{hint(superfluous[0], read) if few else ''} Leave out what is neither"
            f"{'' if few else '; labels go into `y`'}."
        )


def check_texts(own: Any) -> None:
    """Raises where a row of a text column has no text, as read from a table."""
    if not isinstance(own, Mapping):
        return
    for name in TEXTS:
        column = own.get(name)
        if isinstance(column, np.ndarray) and column.dtype.kind in "Of":
            column = column.tolist()
        if not isinstance(column, list):
            continue
        # A row may also hold several texts, or tokens.
        missing = [i for i, text in enumerate(column) if is_missing(text)]
        if missing:
            raise ValueError(
                f"Every row must have a text in the column {name!r}. Received: "
                f"{column[missing[0]]!r} at row {missing[0]}, and {len(missing)} such "
                f"rows of {len(column)}. Fill them, or leave the rows out."
            )


def _is_stock(preprocessor: Any) -> bool:
    return type(preprocessor).__module__.partition(".")[0] == "keras_hub"


def _read(preprocessor: Any, generates: bool) -> Sequence[str] | set[str]:
    if not prompts.takes_plain_strings(preprocessor):
        return READ
    return GENERATE_KEYS if generates else TRAINING_KEYS
