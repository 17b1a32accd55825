"""Errors in adapter files, which all name the file and say the same."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors

MAX_MESSAGE = 500
"""So many characters of an error about what a file says are shown."""


@contextlib.contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """Whatever is wrong in a file raises the same error, which names the file."""
    try:
        yield
    # Among them what parsers raise for numbers too large, and for lists too deep.
    except (
        safetensors.SafetensorError,
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise ValueError(
            "An adapter file must have been written by `save_adapters` and be "
            f"whole. Received: path={str(path)!r}, which cannot be read "
            f"({type(error).__name__}: {shown(error)}). Save it again."
        ) from error


def shown(what: Any) -> str:
    """What a file says, in a length and in characters that can be printed."""
    text = str(what).encode(errors="backslashreplace").decode()
    return text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]}..."


def check_header_size(path: Path, most: int) -> None:
    """Raises if a file has a header of more bytes than `most`."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if most < size < path.stat().st_size:
        raise ValueError(f"Its header has {size:,} bytes, of at most {most:,}.")
