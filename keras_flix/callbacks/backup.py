"""A backup of training that no kill can break."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import keras

from keras_flix import _compat
from keras_flix._utils.atomic_files import whole_file
from keras_flix.models.adapted.devices import creation_scope

NAME = re.compile(r"epoch-(\d+)\.weights\.h5")
TEMPORARY = re.compile(r"\..*\.tmp\.epoch-\d+\.weights\.h5")
TRIES = 10
"""How often a backup is written again whose folder another process has removed."""


class BackupAndRestore(keras.callbacks.Callback):
    """As Keras' `BackupAndRestore` after each epoch, and safe at any moment.

    Keras writes the weights, and then the epoch they are of to another file. Killed
    between the two, it trains an epoch twice; killed within the second one, it cannot
    go on. Here one file holds both, since its name says the epoch, and takes its name
    only when it is complete. What is killed at any moment goes on from the last epoch
    that ended, with the state of the optimizer and of feature dropout.

    The order of the data must follow from the number of the epoch, as with
    `shuffle=False`, for the resumed training to be the same as an uninterrupted one.

    Processes that train one model together may share the directory: each writes all
    of the model, under another name until it is complete, and none removes what
    another one writes.

    Args:
        backup_dir: A directory for nothing else, made if there is none.
        delete_checkpoint: Whether to delete the backups once training has ended, and
            the directory if nothing else is in it.

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
        if self.backup_dir.is_file():
            # Before an epoch of training, not after.
            raise FileExistsError(
                "`backup_dir` must be a directory. Received: the file "
                f"{str(self.backup_dir)!r}. Pass another one."
            )
        # What was killed left them. Of a process that still writes its own, see
        # `_write`.
        _remove(self._files(TEMPORARY))
        while backups := self._backups():
            epoch = max(backups)
            optimizer = self.model.optimizer
            if optimizer is not None and not optimizer.built:
                with creation_scope(self.model):
                    optimizer.build(self.model.trainable_variables)
            try:
                self.model.load_weights(backups[epoch])
            except (OSError, ValueError):
                if backups[epoch].exists():
                    raise
                # Another process has put a newer one in its place.
                continue
            _compat.begin_at_epoch(self.model, epoch)
            return

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._write(epoch + 1)
        _remove(path for n, path in self._backups().items() if n <= epoch)

    def on_train_end(self, logs: Any = None) -> None:
        _compat.begin_at_epoch(self.model, None)
        if self.delete_checkpoint:
            _remove(self._backups().values())
            # Not what another process is writing.
            with contextlib.suppress(OSError):
                self.backup_dir.rmdir()

    def _write(self, epoch: int) -> None:
        """Writes the backup of so many epochs, unless there is a newer one.

        The folder may be shared by processes that train together. One that has ended
        removes it, and one that begins removes what looks left behind.
        """
        for left in reversed(range(TRIES)):
            if max(self._backups(), default=0) > epoch:
                return
            try:
                self.backup_dir.mkdir(parents=True, exist_ok=True)
                with whole_file(self._path(epoch)) as temporary:
                    self.model.save_weights(temporary)
                return
            except OSError:
                # HDF5 and `mkdir` have other words than FileNotFoundError for a file
                # or folder that is removed while they look at it.
                if not left:
                    raise

    def _path(self, epoch: int) -> Path:
        return self.backup_dir / f"epoch-{epoch}.weights.h5"

    def _backups(self) -> dict[int, Path]:
        """The backups by the number of epochs."""
        return {int(NAME.fullmatch(p.name)[1]): p for p in self._files(NAME)}  # type: ignore[index]

    def _files(self, pattern: re.Pattern[str]) -> list[Path]:
        if not self.backup_dir.is_dir():
            return []
        try:
            return [p for p in self.backup_dir.iterdir() if pattern.fullmatch(p.name)]
        except FileNotFoundError:
            # Gone since it was looked for.
            return []


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
