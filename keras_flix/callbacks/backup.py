"""A backup of training that no kill can break."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import keras

from keras_flix import _compat
from keras_flix._utils.atomic_files import whole_file

NAME = re.compile(r"epoch-(\d+)\.weights\.h5")
TEMPORARY = re.compile(r"\..*\.tmp\.epoch-\d+\.weights\.h5")


class BackupAndRestore(keras.callbacks.Callback):
    """As Keras' `BackupAndRestore` after each epoch, and safe at any moment.

    Keras writes the weights, and then the epoch they are of to another file. Killed
    between the two, it trains an epoch twice; killed within the second one, it cannot
    go on. Here one file holds both, since its name says the epoch, and takes its name
    only when it is complete. What is killed at any moment goes on from the last epoch
    that ended, with the state of the optimizer and of feature dropout.

    The order of the data must follow from the number of the epoch, as with
    `shuffle=False`, for the resumed training to be the same as an uninterrupted one.

    Args:
        backup_dir: A directory for nothing else, made if there is none.
        delete_checkpoint: Whether to delete it once training has ended.

    Example:

    ```python
    backup = keras_flix.callbacks.BackupAndRestore("backup")
    model.fit(train, epochs=2, shuffle=False, callbacks=[backup])
    ```
    """

    def __init__(
        self, backup_dir: str | os.PathLike[str], delete_checkpoint: bool = True
    ) -> None:
        super().__init__()
        if not str(backup_dir):
            raise ValueError(
                "`backup_dir` must be a directory. Received: backup_dir=''. Pass one "
                "that holds nothing else."
            )
        self.backup_dir = Path(backup_dir)
        self.delete_checkpoint = delete_checkpoint

    def on_train_begin(self, logs: Any = None) -> None:
        backups = self._backups()
        if not backups:
            return
        epoch = max(backups)
        optimizer = self.model.optimizer
        if optimizer is not None and not optimizer.built:
            optimizer.build(self.model.trainable_variables)
        self.model.load_weights(backups[epoch])
        _compat.begin_at_epoch(self.model, epoch)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.backup_dir.mkdir(parents=True, exist_ok=True)
        old = [*self._backups().values(), *self._files(TEMPORARY).values()]
        new = self.backup_dir / f"epoch-{epoch + 1}.weights.h5"
        with whole_file(new) as temporary:
            self.model.save_weights(temporary)
        for path in old:
            if path != new:
                path.unlink(missing_ok=True)

    def on_train_end(self, logs: Any = None) -> None:
        if self.delete_checkpoint:
            shutil.rmtree(self.backup_dir, ignore_errors=True)

    def _backups(self) -> dict[int, Path]:
        return {
            int(NAME.fullmatch(name)[1]): path  # type: ignore[index]
            for name, path in self._files(NAME).items()
        }

    def _files(self, pattern: re.Pattern[str]) -> dict[str, Path]:
        if not self.backup_dir.is_dir():
            return {}
        paths = {path.name: path for path in self.backup_dir.iterdir()}
        return {name: path for name, path in paths.items() if pattern.fullmatch(name)}
