"""Runs the core tests on the oldest Keras and KerasHub that pyproject.toml admits.

    python tests/tools/oldest_versions.py

In a virtual environment of its own, in a temporary folder, on PyTorch, which is the
fastest backend for small tests.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
OLDEST = ("keras", "keras-hub")
CORE = (
    "tests/layers",
    "tests/features",
    "tests/models",
    "tests/files/test_saving.py",
)


def lower_bounds() -> dict[str, str]:
    """The oldest admitted version of each of `OLDEST`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = dict(
        re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement).groups()
        for requirement in project["dependencies"]
    )
    return {name: bounds[name] for name in OLDEST}


def main() -> int:
    """Installs the versions and runs the tests; returns the exit status."""
    pins = [f"{name}=={version}" for name, version in lower_bounds().items()]
    # The very build that the surrounding environment has.
    torch = f"torch=={importlib.metadata.version('torch').partition('+')[0]}"
    print(f"Core tests with {', '.join(pins)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = f"{folder}/bin/python"
        install = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, torch], check=True)
        subprocess.run(
            [*install, ".", *pins, "pytest", "pytest-xdist", "sentencepiece"],
            check=True,
            cwd=ROOT,
        )
        tests = [python, "-m", "pytest", "-q", "-n", "0", "-m", "not slow", *CORE]
        environment = {**os.environ, "KERAS_BACKEND": "torch"}
        return subprocess.run(tests, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
