"""The folder that a training writes into, and how one that was stopped goes on.

While it trains, `unfinished/` holds its settings and its backups. A run that finds them
goes on if its settings are the same; at the end they are removed.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_flix._utils.atomic_files import MissingFileError, write_whole
from keras_flix.command_line.options import ADAPTERS, OPTIONS

SCORES, CARD, SETTINGS = "scores.json", "README.md", "run.yaml"
WRITTEN = (ADAPTERS, SCORES, CARD, SETTINGS)
"""What a training leaves in its folder."""
UNFINISHED, BEGUN = "unfinished", "begun.json"


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Where a training writes.

    Attributes:
        path: The folder; it need not exist, its own one must.
        overwrite: Whether what another training left there may be replaced.
    """

    path: Path
    overwrite: bool = False

    @property
    def backups(self) -> Path:
        """Where the backups are."""
        return self.path / UNFINISHED / "backups"

    def check(self, begun: Mapping[str, Any]) -> bool:
        """Whether a training that was stopped can go on here.

        Args:
            begun: What it began with, of JSON types, as far as it is known by now.

        Raises:
            ValueError: If that would overwrite something, or it began with something
                else.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(
                "--output must be a folder. Received: "
                f"{str(self.path)!r}, which is a file. Choose another."
            )
        if not self.path.absolute().parent.is_dir():
            raise MissingFileError(
                "--output must be in an existing folder. Received: "
                f"{str(self.path)!r}. Make the folder first."
            )
        before = self._begun()
        if before is None:
            there = [name for name in WRITTEN if (self.path / name).exists()]
            if there and not self.overwrite:
                raise ValueError(
                    "--output must hold nothing that a training writes. Received: "
                    f"{str(self.path)!r}, which holds {', '.join(there)}. Choose "
                    "another, or pass --overwrite."
                )
            return False
        changed = [
            f"{_typed(name)} {value!r} instead of {before[name]!r}"
            for name, value in begun.items()
            if name in before and before[name] != value
        ]
        if changed and not self.overwrite:
            raise ValueError(
                "A training that was stopped goes on with what it began with. "
                f"Received: {', '.join(changed)}, in {str(self.path)!r}. Give it the "
                "same, choose another --output, or begin anew with --overwrite."
            )
        return not changed

    def begin(self, begun: Mapping[str, Any]) -> bool:
        """Makes the folder ready; whether a training that was stopped goes on."""
        resumed = self.check(begun)
        if not resumed:
            shutil.rmtree(self.path / UNFINISHED, ignore_errors=True)
        self.backups.mkdir(parents=True, exist_ok=True)
        self.write(f"{UNFINISHED}/{BEGUN}", json.dumps(begun))
        return resumed

    def write(self, name: str, text: str) -> None:
        """Writes a file as a whole."""
        write_whole(self.path / name, text.encode())

    def finish(self) -> None:
        """Removes what only a stopped training needs."""
        shutil.rmtree(self.path / UNFINISHED)

    def _begun(self) -> dict[str, Any] | None:
        """What a training here began with; `None` if none was stopped."""
        path = self.path / UNFINISHED / BEGUN
        if not path.is_file():
            return None
        return dict(json.loads(path.read_text(encoding="utf-8")))


def _typed(name: str) -> str:
    return OPTIONS[name].flag if name in OPTIONS else name
