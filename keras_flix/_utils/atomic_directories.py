"""A directory that is written completely or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from keras_flix._utils.atomic_files import MissingFileError, beside, sync


def check_new(directory: str | os.PathLike[str]) -> Path:
    """The directory as a path; raises unless it can be made there."""
    path = Path(directory)
    if path.is_dir() and any(path.iterdir()):
        raise ValueError(
            "`directory` must be new or empty, so that nothing of an earlier export "
            f"stays among its files. Received: directory={str(path)!r}, which holds "
            f"{sorted(p.name for p in path.iterdir())[:3]}. Remove it, or choose "
            "another."
        )
    if path.exists() and not path.is_dir():
        raise ValueError(
            "`directory` must be new or empty. Received: directory="
            f"{str(path)!r}, which is a file. Choose another."
        )
    if not path.absolute().parent.is_dir():
        raise MissingFileError(
            "`directory` must be in an existing folder. Received: directory="
            f"{str(path)!r}. Make the folder first."
        )
    return path


@contextlib.contextmanager
def new_directory(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary directory that takes its place once the block has ended.

    Args:
        directory: Where it shall be: nothing, or an empty directory. If the block
            raises, that is as it was.
    """
    path = check_new(directory).absolute()
    # In the same folder, so that it can take its place at once.
    temporary = beside(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                sync(file)
        if path.is_dir():
            path.rmdir()
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
