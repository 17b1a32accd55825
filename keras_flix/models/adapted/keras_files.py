"""Keras' own files of a model: written whole or not at all, and errors in them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import keras

from keras_flix import _compat
from keras_flix._utils.atomic_files import whole_file

WEIGHTS = ".weights.h5"
MARK = b"keras_flix digest "
"""After it, at the end of a weights file, is the digest of all before it.

HDF5 has none of its own in Keras' files, and ignores what comes after its end.
"""
DIGITS = 32
CHUNK = 2**20
ROOM, ROOM_PER_VARIABLE = 2**18, 2**12
"""Bytes that a file may take besides the variables, and besides each of them."""


class DamagedFileError(ValueError, OSError):
    """A weights file that is not as it was saved.

    An `OSError` too, as Keras' `BackupAndRestore(double_checkpoint=True)` then takes
    the backup before it.
    """


def save_whole(
    model: keras.Model,
    save: Callable[..., None],
    filepath: Any,
    suffix: str | None,
    overwrite: bool,
) -> None:
    """Saves under another name, which takes the file's place once it is complete.

    Keras empties an existing file before it writes to it.

    Args:
        model: What is saved.
        save: Keras' own `save` or `save_weights`; takes a path and `overwrite`.
        filepath: Where to save. What is not a path in an existing local folder is
            left to Keras: it refuses some, and copies others to where they lead.
        suffix: What the name of a single file ends in; `None` leaves all to Keras.
        overwrite: Whether to replace a file without asking.
    """
    path = str(filepath)
    folder = os.path.dirname(os.path.abspath(path))
    if (
        suffix is None
        or not path.endswith(suffix)
        or not os.path.isdir(folder)
        or os.path.isdir(path)
    ):
        save(filepath, overwrite=overwrite)
    elif overwrite or not os.path.exists(path) or _compat.may_overwrite(path):
        with whole_file(path) as temporary:
            _check_room(temporary, model)
            save(str(temporary), overwrite=True)
            if suffix == WEIGHTS:
                _append_digest(temporary)


def check_undamaged(filepath: Any) -> None:
    """Raises if a file has a digest, or checksums, and they are not of its content."""
    path = Path(str(filepath))
    if path.name.endswith(".keras") and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            check_archive(archive)
    elif path.name.endswith(WEIGHTS) and path.is_file():
        _check(path, _with_a_wrong_digest(path))


def check_archive(archive: zipfile.ZipFile) -> None:
    """Raises if a checksum in an archive is not of the file it is of."""
    _check(archive.filename, archive.testzip())


def _check(path: Any, damaged: str | None) -> None:
    if damaged is not None:
        raise DamagedFileError(
            f"A weights file must be as it was saved. Received: {str(path)!r}, of "
            f"which {damaged!r} is damaged. Save it again."
        )


def _check_room(path: Path, model: keras.Model) -> None:
    """Raises `OSError` if the disk has no room for a model's variables.

    HDF5 ends the whole process if it runs out of it on the way (h5py's issue 914).
    """
    if not hasattr(os, "posix_fallocate"):
        return
    variables = _compat.training_state(model)
    size = _compat.memory_of(variables) + ROOM + ROOM_PER_VARIABLE * len(variables)
    with open(path, "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            # Some file systems cannot tell.
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise OSError(error.errno, error.strerror, str(path)) from error


def _append_digest(path: Path) -> None:
    with open(path, "rb+") as file:
        size = file.seek(0, os.SEEK_END)
        digest = _digest(file, size)
        file.write(MARK + digest)


def _with_a_wrong_digest(path: Path) -> str | None:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END) - len(MARK) - DIGITS
        file.seek(max(size, 0))
        mark, digest = file.read(len(MARK)), file.read(DIGITS)
        wrong = mark == MARK and digest != _digest(file, size)
    return path.name if wrong else None


def _digest(file: BinaryIO, size: int) -> bytes:
    """The digest of the first bytes of a file, which is then at their end."""
    found = hashlib.blake2b(digest_size=DIGITS // 2)
    file.seek(0)
    for start in range(0, size, CHUNK):
        found.update(file.read(min(CHUNK, size - start)))
    return found.hexdigest().encode()


@contextlib.contextmanager
def errors_name_the_file(filepath: Any) -> Iterator[None]:
    """Turns what parsers raise for a damaged file into one error that names it."""
    try:
        yield
    # These are about the place, not about what is in the file, or say it already.
    except (
        *(FileNotFoundError, IsADirectoryError, PermissionError),
        DamagedFileError,
    ):
        raise
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        OSError,
        RuntimeError,
        TypeError,
        EOFError,
        zipfile.BadZipFile,
    ) as error:
        raise DamagedFileError(
            "A weights file must be whole, and of a model with the same layers. "
            f"Received: {str(filepath)!r}, which cannot be read "
            f"({type(error).__name__}: {error}). Save it again."
        ) from error
