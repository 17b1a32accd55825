"""Runs every check of the project: linters, and the tests on three backends.

    python tests/all_backends.py            # everything
    python tests/all_backends.py --fast     # without the tests marked slow

Two test runs go side by side, each on one core.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
BACKENDS = ("jax", "tensorflow", "torch")
ONE_CORE = {
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def check(name: str, command: list[str], **environment: str) -> bool:
    """Runs one command and prints what it printed, once it is done."""
    start = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    minutes = (time.monotonic() - start) / 60
    verdict = "ok" if result.returncode == 0 else f"FAILED ({result.returncode})"
    print(
        f"===== {name}: {verdict}, {minutes:.1f} minutes\n{result.stdout}", flush=True
    )
    return result.returncode == 0


def main() -> int:
    """Runs all checks; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="leave slow tests out")
    parser.add_argument("--jobs", type=int, default=2, help="test runs side by side")
    parser.add_argument("--backends", nargs="*", default=BACKENDS, choices=BACKENDS)
    options = parser.parse_args()
    linters = [
        check("ruff check", ["ruff", "check", "."]),
        check("ruff format", ["ruff", "format", "--check", "."]),
        check("mypy", ["mypy"]),
    ]
    pytest = [
        "pytest",
        "--durations=8",
        "-m",
        "not slow" if options.fast else "not guide",
    ]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        runs = [
            pool.submit(
                check, f"tests on {name}", pytest, KERAS_BACKEND=name, **ONE_CORE
            )
            for name in options.backends
        ]
        results = linters + [run.result() for run in runs]
    if not options.fast:
        # The guide is measured, so it has the machine to itself.
        guide = ["pytest", "-m", "guide", "-s"]
        results.append(check("guide on jax", guide, KERAS_BACKEND="jax"))
    print(f"{sum(results)} checks passed, {len(results) - sum(results)} failed")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
