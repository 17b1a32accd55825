"""Counts the calls into the package in the first step of `fit`, and where they go.

    KERAS_BACKEND=torch python -m benchmarks.cost.calls

A *move* is a call into another file of the package than the call before. Both cost a
reader more than they cost the machine: whoever follows a step goes through them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import keras
import keras_hub
import numpy as np

import keras_flix

PACKAGE = str(Path(keras_flix.__file__).parent)
FEATURES = {"task": ["qa", "parse"], "language": ["en", "sw"]}
ENTRIES = {
    "task": ["qa", "parse", None, "qa"],
    "language": ["en", "sw", "en", None],
}


class Count(NamedTuple):
    """What was counted: calls, moves between files, and the files."""

    calls: int
    moves: int
    files: int


def count(function: Callable[[], Any]) -> Count:
    """Counts the calls into the package while a function runs."""
    entered: list[str] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            entered.append(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    moves = sum(one != other for one, other in zip(entered, entered[1:]))
    return Count(len(entered), moves, len(set(entered)))


def two_layers() -> tuple[keras.Model, dict[str, Any], np.ndarray]:
    """A model of two Dense layers with its batch."""
    keras.utils.set_random_seed(0)
    x = keras.Input((8,), name="x")
    hidden = keras.layers.Dense(6, activation="tanh", name="hidden")(x)
    model = keras.Model({"x": x}, keras.layers.Dense(4, name="head")(hidden))
    keras_flix.enable_flix(model, FEATURES, rank=2, targets="all-linear")
    return model, {"x": np.ones((4, 8), "float32")}, np.zeros((4, 4), "float32")


def small_gemma() -> tuple[keras.Model, dict[str, Any], np.ndarray]:
    """A Gemma of two blocks, eight adapted layers, with its batch."""
    model = keras_hub.models.GemmaBackbone(
        vocabulary_size=40,
        num_layers=2,
        num_query_heads=4,
        num_key_value_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        head_dim=6,
    )
    keras_flix.enable_flix(model, FEATURES, rank=2)
    tokens = {name: np.ones((4, 6), "int32") for name in ("token_ids", "padding_mask")}
    return model, tokens, np.zeros((4, 6, 16), "float32")


def first_step(make: Callable[[], tuple[keras.Model, dict[str, Any], Any]]) -> Count:
    """Counts the first step of `fit`: one batch, from values to updated weights."""
    model, x, y = make()
    model.compile("adam", "mse")
    return count(lambda: model.fit({**x, **ENTRIES}, y, batch_size=4, verbose=0))


def main() -> None:
    """Prints a line per model."""
    for make in (two_layers, small_gemma):
        found = first_step(make)
        print(f"{keras.config.backend()} {make.__name__}: {found}")


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main()
