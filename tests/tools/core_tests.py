"""The core tests in an environment of its own, with versions of its own."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import subprocess
import tempfile
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path

import built_wheel

ROOT = Path(__file__).parents[2]
CORE = (
    "tests/_compat",
    "tests/callbacks",
    "tests/features",
    "tests/files",
    "tests/layers",
    "tests/models",
)
"""What depends on how Keras and KerasHub work inside.

Folders, not files: so PyTorch runs all of their tests, and JAX and TensorFlow share out
those that ask for no backend (`short_form.py`).
"""
CHOSEN = "not slow and not guide"
NEEDED = (
    "grain",
    "hypothesis",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pytest",
    "pytest-xdist",
    "sentencepiece",
)
"""What these tests import besides: of the extras `test` and `guides`."""


@contextlib.contextmanager
def environment(
    requirements: Sequence[str], replaced: Sequence[tuple[str, str]] = ()
) -> Iterator[str]:
    """A virtual environment in a temporary folder, for the length of a block.

    It gets the package, what it needs, and the build of PyTorch around it.

    Args:
        requirements: What else to install, such as `"keras==3.13.0"`.
        replaced: Packages, and those that take their place: `("keras",
            "keras-nightly")`. Both have files of the same names, so one must have
            gone before the other comes.

    Yields:
        The environment's Python.
    """
    torch = f"torch=={importlib.metadata.version('torch').partition('+')[0]}"
    with tempfile.TemporaryDirectory() as folder:
        venv.create(Path(folder, "env"), with_pip=True)
        python = str(Path(folder, "env", "bin", "python"))

        def pip(command: str, *arguments: str) -> None:
            call = [python, "-m", "pip", "--disable-pip-version-check", command]
            subprocess.run([*call, "--quiet", *arguments], check=True)

        package = str(built_wheel.build(Path(folder)))
        pip("install", torch)
        # With what the replacements need.
        new = [after for _, after in replaced]
        pip("install", package, *requirements, *new, *NEEDED)
        if replaced:
            pip("uninstall", "--yes", *(name for pair in replaced for name in pair))
            pip("install", "--no-deps", *new)
        yield python


def run(
    python: str,
    backend: str,
    known: Path,
    chosen: Sequence[str] = ("-m", CHOSEN, *CORE),
) -> int:
    """Runs the tests on one backend, but for those that are known to fail.

    Args:
        python: The environment's Python.
        backend: The backend.
        known: A file for the plugin `known_failures`.
        chosen: Which tests, as pytest's arguments.

    Returns:
        Pytest's exit status.
    """
    plugin = ["-p", "known_failures", "--known-failures", str(known), "-rfExX"]
    return subprocess.run(
        [python, "-m", "pytest", "-q", "-n", "0", *plugin, *chosen],
        cwd=ROOT,
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "PYTHONPATH": str(Path(__file__).parent),
        },
    ).returncode


def versions(python: str, names: Sequence[str]) -> str:
    """What an environment holds of these packages, in words."""
    code = "import importlib.metadata as m, sys; "
    code += "print(', '.join(f'{n} {m.version(n)}' for n in sys.argv[1:]))"
    command = [python, "-c", code, *names]
    return subprocess.run(
        command, check=True, capture_output=True, text=True
    ).stdout.strip()
