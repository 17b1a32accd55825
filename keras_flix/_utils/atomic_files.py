"""Writing a file so that it is there as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


class MissingFileError(FileNotFoundError, ValueError):
    """There is no such file or folder. A `ValueError` too, as it was in 0.1."""


def check_folder(path: Path) -> None:
    """Raises unless the folder that a file is to be written into exists."""
    if not path.parent.is_dir():
        raise MissingFileError(
            f"`path` must be in an existing folder. Received: path={str(path)!r}. "
            "Make the folder first."
        )


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file, which takes the place of another only when it is complete."""
    check_folder(path)
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A name to write a file under, which takes its own name once the block has ended.

    If the block raises, what was there is as it was, and nothing is left. If the
    process is killed, what was written stays behind, beside the file, under a hidden
    name that ends in `.tmp.` and the file's name.

    Args:
        path: Where the file shall be. A link there stays, and what it leads to is
            replaced.
    """
    target = Path(os.path.realpath(path))
    temporary = beside(target)
    try:
        yield temporary
        # Else a loss of power could leave the name without the content.
        sync(temporary)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def beside(path: Path) -> Path:
    """A new name in the same folder, from where a file or directory can be moved.

    It is drawn at random: process ids are the same in all containers, and a process
    that was killed may have left a file.
    """
    return path.with_name(f".{secrets.token_hex(4)}.tmp.{path.name}")


def sync(path: Path) -> None:
    """Waits until a file's content is on the disk."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
