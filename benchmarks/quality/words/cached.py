"""What takes long to read from a package, in the user's cache."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import pathlib
import tempfile
from collections.abc import Iterable
from typing import Any


def place(kind: str, language: str, code: str, packages: Iterable[str]) -> pathlib.Path:
    """The file of a language's facts.

    Its name holds the packages' versions and the code that read them, so that nothing
    stale is found.

    Args:
        kind: What the file holds.
        language: Code of the language.
        code: The source file that reads the packages.
        packages: Names of distributions.
    """
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    content = pathlib.Path(code).read_bytes() + "\n".join(versions).encode()
    name = f"{kind}-{language}-{hashlib.sha256(content).hexdigest()[:16]}.json"
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache, "keras_flix", "words", name)


def read(file: pathlib.Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def write(file: pathlib.Path, content: object) -> None:
    """Whole or not at all: trials may run side by side."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=file.parent, delete=False
    ) as part:
        json.dump(content, part, ensure_ascii=False)
    os.replace(part.name, file)
