"""The shape of the code: layers of modules, imports, private access, sizes."""

import ast
import functools
import graphlib
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import keras_flix

ROOT = Path(keras_flix.__file__).parent
BACKENDS = ("jax", "tensorflow", "torch")
IMPORT_BACKENDS = {
    "_compat.processes",
    "_compat.eager_ops",
    "_compat.layers",
    "_compat.lazy_rows",
    "_compat.learning_rates",
    "_compat.sparse_rows",
    "_compat.trainers",
    "_compat.value_counts",
    "features.host_values",
    "features.input_entries",
    "models.adapted.data_sources",
    "models.adapted.savedmodel_onnx",
    "models.adapted.tf_batches",
}
"""Modules that may import a backend, inside of functions."""
COMPAT = "keras_flix._compat"
"""The one package that may use what Keras does not document."""
FLOORS = (
    ("_compat", "_utils", "version"),
    ("features",),
    ("layers", "mixtures"),
    ("models",),
    ("evaluation",),
    ("files",),
    ("exports", "analysis"),
    ("callbacks",),
    ("command_line",),
    ("__main__",),
)
"""A room imports only from rooms of the floors before its own, and from itself."""
IN_MODELS = (
    ("adapted", "family_names", "recommended"),
    ("targets",),
    ("model_checks", "multiplied", "places", "stated_rows"),
    ("layer_ranks", "trainable_tokens", "trial", "whole_layers"),
    ("disable", "enable", "merge", "optimizers", "schema_of", "sharding", "summary"),
    ("growing", "restore", "share", "use_features"),
)
"""The floors inside of `models`."""
API = {
    "keras_flix",
    "keras_flix.plots",
    "keras_flix.serving",
    "keras_flix.text_metrics",
    "keras_flix.xtreme_up",
}
"""What is there for users: it imports from anywhere, and nothing imports it."""


def module_name(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in SOURCES.items()}


def imported(node):
    """The modules that a statement imports, as full names; empty for others."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        names = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name if name in SOURCES else node.module for name in names]
    return []


@functools.cache
def imports(name):
    """All imports of a module: at its top level, and those further inside."""
    top = [m for node in TREES[name].body for m in imported(node)]
    everywhere = [m for node in ast.walk(TREES[name]) for m in imported(node)]
    for module in top:
        everywhere.remove(module)
    return top, everywhere


def room_of(name, floors, house="keras_flix"):
    """The room that a module is in, and its floor."""
    for floor, rooms in enumerate(floors):
        for room in rooms:
            if name == f"{house}.{room}" or name.startswith(f"{house}.{room}."):
                return room, floor
    raise AssertionError(f"{name} is in no room of {house}")


def packages(modules):
    return {module.partition(".")[0] for module in modules}


def offences(found, names=SOURCES):
    """What `found` has against each of some modules, where that is anything.

    One test asks all modules: to hand out a test for each costs more than to ask.
    """
    return {name: offence for name in names if (offence := found(name))}


def upwards(floors, house="keras_flix"):
    """Finds what a module imports from a floor that is not below its own."""

    def found(name):
        room, floor = room_of(name, floors, house)
        wrong = []
        for other in {m for m in sum(imports(name), []) if m in SOURCES}:
            if other.startswith(f"{house}."):
                other_room, below = room_of(other, floors, house)
                if other_room != room and below >= floor:
                    wrong.append(other)
        return wrong

    return found


def test_rooms_import_downwards_only():
    assert offences(upwards(FLOORS), set(SOURCES) - API) == {}


def test_rooms_of_models_import_downwards_only():
    names = [name for name in SOURCES if "flix.models." in name]
    assert offences(upwards(IN_MODELS, "keras_flix.models"), names) == {}


def test_nothing_imports_the_api():
    def found(name):
        top, inner = imports(name)
        # Of the package itself only what is inside of it.
        whole = {"keras_flix"} & set(top)
        return whole | {m for m in top + inner if m in API - {"keras_flix"}}

    assert offences(found, set(SOURCES) - API) == {}


def test_modules_import_each_other_in_no_circle():
    graph = {
        name: {m for m in imports(name)[0] if m in SOURCES and m != name}
        for name in SOURCES
        if name not in API
    }
    assert set(graphlib.TopologicalSorter(graph).static_order()) >= set(graph)


def test_no_function_imports_the_package():
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)

    def found(name):
        return [
            module
            for function in ast.walk(TREES[name])
            if isinstance(function, functions)
            for node in ast.walk(function)
            for module in imported(node)
            if module.partition(".")[0] == "keras_flix"
        ]

    assert offences(found) == {}


def test_small_helpers_know_no_keras():
    def found(name):
        return packages(sum(imports(name), [])) & {"keras", "keras_hub"}

    names = [name for name in SOURCES if "._utils" in name]
    assert names
    assert offences(found, names) == {}


@pytest.mark.parametrize(
    "name",
    [
        "features.columns",
        "features.encoding",
        "features.feature",
        "features.schema",
        "layers.einsum_split",
    ],
)
def test_vocabularies_and_equations_need_no_backend(name):
    top, inner = imports(f"keras_flix.{name}")
    used = packages(top + inner)
    assert used <= {"__future__", "keras_flix", "numpy"} | set(sys.stdlib_module_names)


def test_backends_are_imported_by_few_and_on_use():
    def found(name):
        top, inner = imports(name)
        few = name.removeprefix("keras_flix.") in IMPORT_BACKENDS
        return packages(top if few else top + inner) & set(BACKENDS)

    assert offences(found) == {}


@pytest.mark.slow
def test_importing_the_package_imports_no_other_backend():
    """Beyond those that Keras and KerasHub import themselves."""
    code = (
        "import json, sys; import keras, keras_hub; before = set(sys.modules); "
        "import keras_flix; new = set(sys.modules) - before; "
        f"print(json.dumps([b for b in {BACKENDS} if b in new]))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KERAS_BACKEND": keras.config.backend()},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(output.stdout.splitlines()[-1]) == []


def own_private_names():
    """Names with a leading underscore that this package itself defines."""
    names = set()
    for name, tree in TREES.items():
        if name.startswith(COMPAT):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
    return {name for name in names if name.startswith("_")}


def test_private_keras_is_used_in_one_module():
    own = own_private_names()

    def found(name):
        private = [
            f"line {node.lineno}: .{node.attr}"
            for node in ast.walk(TREES[name])
            if isinstance(node, ast.Attribute)
            and node.attr.startswith("_")
            and not node.attr.startswith("__")
            and node.attr not in own
        ]
        return private + [".src"] * (".src" in SOURCES[name].read_text())

    names = [name for name in SOURCES if not name.startswith(COMPAT)]
    assert offences(found, names) == {}


def test_files_are_short():
    lengths = {n: len(path.read_text().splitlines()) for n, path in SOURCES.items()}
    assert offences(lambda name: lengths[name] * (lengths[name] > 350)) == {}


def test_modules_say_what_they_are():
    assert offences(lambda name: not ast.get_docstring(TREES[name])) == {}


def test_exports_exist_and_are_sorted():
    assert keras_flix.__all__ == sorted(keras_flix.__all__)
    assert all(hasattr(keras_flix, name) for name in keras_flix.__all__)
