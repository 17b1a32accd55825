"""Runs the core tests on the oldest Keras and KerasHub that pyproject.toml admits.

    python tests/tools/oldest_versions.py
    python tests/tools/oldest_versions.py --unless-here  # but where they are around it

In a virtual environment of its own, in a temporary folder, on PyTorch, which is the
fastest backend for small tests. What Keras could not do then stands in
`oldest_versions.toml`. Where the environment around it holds these very versions, its
own tests are the same ones.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import core_tests

OLDEST = ("keras", "keras-hub")
KNOWN = Path(__file__).with_suffix(".toml")


def lower_bounds() -> dict[str, str]:
    """The oldest admitted version of each of `OLDEST`."""
    text = (core_tests.ROOT / "pyproject.toml").read_text()
    bounds = dict(
        re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement).groups()
        for requirement in tomllib.loads(text)["project"]["dependencies"]
    )
    return {name: bounds[name] for name in OLDEST}


def are_here() -> bool:
    """Whether these versions are installed around this, too."""
    return all(
        importlib.metadata.version(name) == version
        for name, version in lower_bounds().items()
    )


def main() -> int:
    """Installs the versions and runs the tests; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--unless-here", action="store_true", help="not where they are installed"
    )
    if parser.parse_args().unless_here and are_here():
        print(f"Under test already, on torch, are the oldest ones: {lower_bounds()}")
        return 0
    pins = [f"{name}=={version}" for name, version in lower_bounds().items()]
    with core_tests.environment(pins) as python:
        shown = core_tests.versions(python, [*OLDEST, "torch", "numpy"])
        print(f"Core tests on torch with {shown}", flush=True)
        return core_tests.run(python, "torch", KNOWN)


if __name__ == "__main__":
    sys.exit(main())
