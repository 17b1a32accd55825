"""Writing a file so that it is there as a whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def check_folder(path: Path) -> None:
    """Raises unless the folder that a file is to be written into exists."""
    if not path.parent.is_dir():
        raise ValueError(
            f"`path` must be in an existing folder. Received: path={str(path)!r}. "
            "Make the folder first."
        )


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file, which takes the place of another only when it is complete."""
    check_folder(path)
    # In the same folder, so that it can take the file's place at once.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
