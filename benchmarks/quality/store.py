"""Where results of trials lie: one JSON file each, so that a run can go on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from benchmarks.shared.places import RESULTS

# The environment carries the folder to the worker processes.
VARIABLE = "FLIX_EVIDENCE"
SEARCH = "FLIX_EVIDENCE_SEARCH"
DEFAULT = RESULTS / "evidence"


def use(place: str) -> None:
    """Keeps results in another folder, in this process and its workers."""
    os.environ[VARIABLE] = str(Path(place).resolve())


def search_anew() -> None:
    """Lets `known` forget the repository's results."""
    os.environ[SEARCH] = "1"


def known(size: str, key: str) -> dict[str, Any] | None:
    """A result of this folder, or else of the repository: for learning rates."""
    found = load(size, key)
    file = DEFAULT / size / f"{key}.json"
    if found is None and SEARCH not in os.environ and file.exists():
        found = json.loads(file.read_text())
    return found


def folder(size: str) -> Path:
    """Where the results of a size lie."""
    return Path(os.environ.get(VARIABLE, DEFAULT), size)


def path(size: str, key: str) -> Path:
    """The file of one trial."""
    return folder(size) / f"{key}.json"


def load(size: str, key: str) -> dict[str, Any] | None:
    """A result, or `None` where the trial was not run yet."""
    file = path(size, key)
    return json.loads(file.read_text()) if file.exists() else None
