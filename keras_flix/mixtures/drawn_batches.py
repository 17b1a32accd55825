"""Batches of a mixture, as Keras takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_flix.mixtures.sampling import Batch


class DrawnBatches(keras.utils.PyDataset):
    """Batches that are drawn anew in every epoch: what `Mixture.batches` returns.

    Args:
        draw: Draws the places of a number of examples.
        take: Makes a batch of the examples at some places.
        batch_size: Examples per batch.
        steps: Batches per epoch.
        seed: Epoch and seed determine what is drawn.
        labels: Entries that follow the inputs in a batch that is a tuple; `None` for
            one that there is not.
    """

    def __init__(
        self,
        draw: Callable[[np.random.SeedSequence, int], np.ndarray],
        take: Callable[[np.ndarray], Batch],
        batch_size: int,
        steps: int,
        seed: int,
        labels: Sequence[str | None],
    ) -> None:
        super().__init__()
        self.draw = draw
        self.take = take
        self.batch_size = batch_size
        self.steps = steps
        self.seed = seed
        self.labels = tuple(labels)
        self.ends = 0
        self._drawn: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self.steps:
            raise IndexError(f"There are {self.steps} batches. Received: {index}.")
        rows = slice(index * self.batch_size, (index + 1) * self.batch_size)
        batch = self.take(self._places()[rows])
        parts = [name and batch.pop(name) for name in self.labels]
        return (batch, *parts) if any(self.labels) else batch

    def on_epoch_end(self) -> None:
        self.ends += 1

    @property
    def epoch(self) -> int:
        """The running epoch, from 0 in the first `fit`, or that with which it begins.

        Keras ends an epoch before the first one too, whether or not it read a
        batch to build the model with.
        """
        return max(0, self.ends - 1)

    def _places(self) -> np.ndarray:
        # All batches of an epoch come from one draw.
        drawn = self._drawn
        if drawn is None or drawn[0] != self.epoch:
            epoch = self.epoch
            seed = np.random.SeedSequence(self.seed, spawn_key=(epoch,))
            drawn = epoch, self.draw(seed, self.steps * self.batch_size)
            self._drawn = drawn
        return drawn[1]
