"""Makes the package's functions tell that they are entered."""

from __future__ import annotations

import ast
import builtins
import importlib.machinery
import os
from pathlib import Path

from mutants import FUNCTIONS, function_key


def note_entered(
    project: Path, entered: set[str], folder: Path, process: int | None
) -> None:
    """Makes the package's functions tell that they are entered, once imported.

    Args:
        project: Where the package is.
        entered: Where the keys of functions are noted.
        folder: Where other processes than `process` note them, in files.
        process: The process that reads `entered`, if it is this one.
    """

    def note(key: str) -> None:
        if key not in entered:
            entered.add(key)
            if os.getpid() != process:
                with open(folder / str(os.getpid()), "a") as file:
                    file.write(f"{key}\n")

    usual = importlib.machinery.SourceFileLoader.get_code

    def get_code(loader, fullname):
        path = Path(loader.path)
        if not path.is_relative_to(project / "keras_flix"):
            return usual(loader, fullname)
        name = path.relative_to(project).as_posix()
        return compile(_telling(name, path.read_bytes()), loader.path, "exec")

    builtins.__entered__ = note
    importlib.machinery.SourceFileLoader.get_code = get_code


def _telling(path: str, source: bytes) -> ast.Module:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS):
            tell = ast.parse(f"__entered__({function_key(path, node)!r})").body[0]
            for part in ast.walk(tell):
                ast.copy_location(part, node.body[0])
            documented = ast.get_docstring(node, clean=False) is not None
            node.body.insert(int(documented), tell)
    return tree
