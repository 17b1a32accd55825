"""Runs the core tests on the oldest Keras and KerasHub that pyproject.toml admits.

    python tests/tools/oldest_versions.py

In a virtual environment of its own, in a temporary folder, on PyTorch, which is the
fastest backend for small tests.
"""

from __future__ import annotations

import re
import sys
import tomllib

import core_tests

OLDEST = ("keras", "keras-hub")


def lower_bounds() -> dict[str, str]:
    """The oldest admitted version of each of `OLDEST`."""
    text = (core_tests.ROOT / "pyproject.toml").read_text()
    bounds = dict(
        re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement).groups()
        for requirement in tomllib.loads(text)["project"]["dependencies"]
    )
    return {name: bounds[name] for name in OLDEST}


def main() -> int:
    """Installs the versions and runs the tests; returns the exit status."""
    pins = [f"{name}=={version}" for name, version in lower_bounds().items()]
    with core_tests.environment(pins) as python:
        shown = core_tests.versions(python, [*OLDEST, "torch", "numpy"])
        print(f"Core tests on torch with {shown}", flush=True)
        return core_tests.run(python, "torch")


if __name__ == "__main__":
    sys.exit(main())
