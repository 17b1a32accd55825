"""Makes statements of the package tell that they are reached."""

from __future__ import annotations

import ast
import builtins
import importlib.machinery
import itertools
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from mutants import FUNCTIONS, Mutant, key_of

BODIES = ("body", "orelse", "finalbody")


def watched_by(project: Path, mutants: Iterable[Mutant]) -> dict[str, list[str]]:
    """Which keys each place of the package tells, once it is reached.

    A place is a statement of a function, or a file, of which any function is reached.
    What a mutant changes in a function tells its own key. What runs on import shows in
    its file and where it was imported from there.
    """
    on_import = {m.path for m in mutants if m.statement is None}
    watched = {m.statement: [m.statement] for m in mutants if m.statement is not None}
    for path in sorted((project / "keras_flix").rglob("*.py")):
        name = path.relative_to(project).as_posix()
        used = {name, *imported(ast.parse(path.read_bytes()))} & on_import
        if used:
            watched[name] = sorted(used)
    return watched


def imported(tree: ast.Module) -> set[str]:
    """The files that a module may import from, wherever it does."""
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
            modules.update(f"{node.module}.{alias.name}" for alias in node.names)
    paths = {module.replace(".", "/") for module in modules}
    return {f"{path}.py" for path in paths} | {f"{path}/__init__.py" for path in paths}


def note_entered(
    project: Path,
    watched: dict[str, list[str]],
    entered: set[str],
    on_import: set[str],
    folder: Path,
    process: int | None,
) -> None:
    """Makes the package tell what is reached of it, once it is imported.

    Args:
        project: Where the package is.
        watched: What `watched_by` returns.
        entered: Where keys are noted.
        on_import: Where those are noted that a file reaches which is imported, other
            than a file of tests: it is imported for one test, and used by others.
        folder: Where other processes than `process` note them, in files.
        process: The process that reads `entered`, if it is this one.
    """

    def note(*keys: str) -> None:
        if entered.issuperset(keys):
            return
        new = set(keys) - entered
        entered.update(new)
        if os.getpid() != process:
            with open(folder / str(os.getpid()), "a") as file:
                file.write("".join(f"{key}\n" for key in new))
        elif _is_imported(project):
            on_import.update(new)

    usual = importlib.machinery.SourceFileLoader.get_code

    def get_code(loader, fullname):
        path = Path(loader.path)
        if not path.is_relative_to(project / "keras_flix"):
            return usual(loader, fullname)
        name = path.relative_to(project).as_posix()
        tree = telling(name, path.read_bytes(), watched)
        return compile(tree, loader.path, "exec")

    builtins.__entered__ = note
    importlib.machinery.SourceFileLoader.get_code = get_code


def customize(project: Path, watched: dict[str, list[str]], folder: Path) -> Path:
    """Writes what Python imports at the start of the processes that a test starts."""
    path = project / "sitecustomize.py"
    path.write_text(
        f"import sys\nsys.path.append({str(project / 'tests/tools')!r})\n"
        "from entered import Path, json, note_entered\nsys.path.pop()\n"
        f"note_entered(Path({str(project)!r}), json.loads({json.dumps(watched)!r}), "
        f"set(), set(), Path({str(folder)!r}), None)\n"
    )
    return path


def telling(path: str, source: bytes, watched: dict[str, list[str]]) -> ast.Module:
    """A module in which what is watched tells its keys."""
    tree = ast.parse(source)
    _tell_in(tree, path, watched, inside=False)
    return tree


def _tell_in(node: ast.AST, path: str, watched: dict, inside: bool) -> None:
    function = isinstance(node, FUNCTIONS)
    inside = inside or function
    for child in ast.iter_child_nodes(node):
        _tell_in(child, path, watched, inside)
    if not inside:
        return
    for name in BODIES:
        body = getattr(node, name, None)
        if isinstance(body, list):
            told = [
                [*_tell(watched.get(key_of(path, statement)), statement), statement]
                for statement in body
            ]
            body[:] = itertools.chain(*told)
    if function:
        # A docstring stays the first.
        start = int(ast.get_docstring(node, clean=False) is not None)
        keys = [*watched.get(path, []), *watched.get(key_of(path, node), [])]
        node.body[start:start] = _tell(keys, node.body[0])


def _tell(keys: list[str] | None, at: ast.stmt) -> list[ast.stmt]:
    if not keys:
        return []
    call = ast.parse(f"__entered__(*{keys!r})").body[0]
    for part in ast.walk(call):
        ast.copy_location(part, at)
    return [call]


def _is_imported(project: Path) -> bool:
    """Whether a file other than one of tests is being imported."""
    places = (project / "keras_flix", project / "tests")
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "<module>":
            path = Path(frame.f_code.co_filename)
            if any(map(path.is_relative_to, places)) and path.name[:5] != "test_":
                return True
        frame = frame.f_back
    return False
