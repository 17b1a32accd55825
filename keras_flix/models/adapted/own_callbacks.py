"""Callbacks of the library's own, beside those that a call is given."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
from keras import tree

from keras_flix.mixtures.drawn_batches import DrawnBatches


@contextlib.contextmanager
def beside(
    options: dict[str, Any], callback: keras.callbacks.Callback
) -> Iterator[dict[str, Any]]:
    """The options of a call, with one more callback for the length of a block."""
    given = options.get("callbacks")
    if not isinstance(given, keras.callbacks.CallbackList):
        yield {**options, "callbacks": [*tree.flatten(given or []), callback]}
        return
    given.append(callback)
    try:
        yield options
    finally:
        given.callbacks.remove(callback)


class ResumedDraws(keras.callbacks.Callback):
    """Where a training begins with a later epoch, that epoch is drawn.

    Args:
        batches: What is trained on.
    """

    def __init__(self, batches: DrawnBatches) -> None:
        super().__init__()
        self.batches = batches
        self.resumed: bool | None = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self.resumed is None:
            self.resumed = epoch > 0
        if self.resumed:
            self.batches.ends = epoch + 1


def resumed_draws(x: Any, options: dict[str, Any]) -> Any:
    """`ResumedDraws` for the length of a block, if this is what is trained on."""
    if not isinstance(x, DrawnBatches):
        return contextlib.nullcontext(options)
    return beside(options, ResumedDraws(x))
