"""`FeatureTensorBoard`: logs, scores and norms of updates for TensorBoard."""

from __future__ import annotations

import os
from typing import Any

import keras
import numpy as np

from keras_flix._utils.optional_packages import needed
from keras_flix.analysis.sources import norms_by_feature, updates_of
from keras_flix.callbacks.epochs import checked_epochs
from keras_flix.models.adapted.adaptation import adaptation_of


class FeatureTensorBoard(keras.callbacks.Callback):
    """Writes logs, scores by feature value and norms of updates for TensorBoard.

    Each entry of an epoch's logs becomes a scalar of its name, on every backend:
    losses, metrics and, if a `FeatureScores` comes earlier in the list, its scores.
    The norm of each value's update over all layers is `update_norm/language=sw`.

    Args:
        log_dir: The folder for the event files.
        norms: Whether to write norms; for adapted models only.
        every: Write norms every so many epochs.

    Raises:
        ImportError: When training begins, if `tensorboard` is not installed.
        ValueError: Then, if there are no updates to measure.

    Example:

    ```python
    callbacks = [FeatureScores(validation), FeatureTensorBoard("logs")]
    gemma.fit(train, epochs=2, callbacks=callbacks)
    ```
    """

    def __init__(
        self, log_dir: str | os.PathLike[str], *, norms: bool = True, every: int = 1
    ) -> None:
        super().__init__()
        self.log_dir = os.fspath(log_dir)
        self.norms, self.every = norms, checked_epochs(every)

    def on_train_begin(self, logs: Any = None) -> None:
        if self.norms:
            adaptation_of(self.model)
        # TensorBoard's own writer needs numpy only, and keeps names as they are.
        summary = needed("tensorboard.summary", "FeatureTensorBoard", "tensorboard")
        self.writer = summary.Writer(self.log_dir)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        for name, value in (logs or {}).items():
            if np.ndim(value) == 0:
                self.writer.add_scalar(name, value, epoch)
        if self.norms and not (epoch + 1) % self.every:
            for name, value in self._norms().items():
                self.writer.add_scalar(name, value, epoch)
        self.writer.flush()

    def on_train_end(self, logs: Any = None) -> None:
        self.writer.close()

    def _norms(self) -> dict[str, float]:
        schema, layers = updates_of(self.model)
        return {
            f"update_norm/{feature}={value}": float(np.linalg.norm(row))
            for feature, norms in norms_by_feature(schema, layers).items()
            for value, row in zip(schema[feature].values, norms)
        }
