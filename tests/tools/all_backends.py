"""Runs every check of the project: linters, and the tests on three backends.

    python tests/tools/all_backends.py                  # before a change is merged
    python tests/tools/all_backends.py --daily          # without the tests marked slow
    python tests/tools/all_backends.py --full           # every night, and for a release
    python tests/tools/all_backends.py --write-support  # makes guides/support.md anew

The first runs on PyTorch all tests, on JAX and TensorFlow what can differ there (see
`short_form.py`), the quickstart, the core tests on the oldest versions, unless these
are the ones under test, and the wheel. `--full` runs the whole matrix and all guides,
resolves every extra (so does a job of its own for each change), and compares the
support table with the results. `next_versions.py`, which may fail for known reasons, is
a run of its own.

Two test runs go side by side, each on one core.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import difflib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import support

ROOT = Path(__file__).parents[2]
BACKENDS = ("torch", "jax", "tensorflow")
"""The one that takes longest first: what follows fills the other core."""
SUPPORT = ROOT / "guides" / "support.md"
PYTEST = ("-m", "pytest", "--durations=25", "--numprocesses=0")
ONE_CORE = {
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def check(name: str, command: list[str], **environment: str) -> bool:
    """Runs one command and prints what it printed, once it is done."""
    start = time.monotonic()
    # Else every process that a test starts compiles Keras and TensorFlow anew.
    keep = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    result = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**keep, **environment},
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


def check_support(reports: list[Path], write: bool) -> bool:
    """Makes the support table of the tests' results, or compares it with them."""
    missing = [str(report) for report in reports if not report.exists()]
    if missing:
        print(f"===== support table: FAILED, no results in {missing}")
        return False
    results = [r for report in reports for r in json.loads(report.read_text())]
    page = support.page(results)
    if write:
        SUPPORT.write_text(page)
        print(f"===== support table: written to {SUPPORT.relative_to(ROOT)}")
        return True
    old = SUPPORT.read_text()
    if old == page:
        print("===== support table: ok")
        return True
    lines = (old.splitlines(), page.splitlines(), "committed", "from the tests")
    print("===== support table: FAILED, make it anew with --write-support")
    print("\n".join(difflib.unified_diff(*lines, lineterm="", n=0)))
    return False


def main() -> int:
    """Runs all checks; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument(
        "--daily", "--fast", action="store_true", help="leave slow tests out"
    )
    extent.add_argument("--full", action="store_true", help="the whole matrix")
    extent.add_argument(
        "--write-support", action="store_true", help="write the table of a full run"
    )
    parser.add_argument("--jobs", type=int, default=2, help="test runs side by side")
    parser.add_argument("--backends", nargs="*", default=BACKENDS, choices=BACKENDS)
    options = parser.parse_args()
    full = options.full or options.write_support
    pytest = [*PYTEST, *(["--full"] if full else [])]
    # First what is under test: every run says so.
    results = [
        check("versions", ["tests/tools/versions.py"]),
        check("ruff check", ["-m", "ruff", "check", "."]),
        check("ruff format", ["-m", "ruff", "format", "--check", "."]),
    ]
    chosen = "not slow and not guide" if options.daily else "not guide"
    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ThreadPoolExecutor(options.jobs) as pool,
    ):
        reports = {name: Path(folder, f"{name}.json") for name in options.backends}
        runs = [
            pool.submit(
                check,
                f"tests on {name}",
                [*pytest, "-m", chosen, f"--support-report={report}"],
                KERAS_BACKEND=name,
                **ONE_CORE,
            )
            for name, report in reports.items()
        ]
        if not options.daily:
            guides = [*pytest, "-m", "guide", "-s"]
            environment = {"KERAS_BACKEND": "jax", **ONE_CORE}
            runs.append(pool.submit(check, "guides on jax", guides, **environment))
            # The short ones last: they fill what is left of one core's time.
            oldest = ["tests/tools/oldest_versions.py"]
            oldest += [] if full else ["--unless-here"]
            runs.append(pool.submit(check, "oldest versions", oldest, **ONE_CORE))
            runs.append(pool.submit(check, "wheel", ["tests/tools/built_wheel.py"]))
        if full:
            extras = ["tests/tools/versions.py", "--extras"]
            runs.append(pool.submit(check, "versions of extras", extras))
        runs.append(pool.submit(check, "mypy", ["-m", "mypy"]))
        results += [run.result() for run in runs]
        if full and set(reports) == set(BACKENDS):
            write = options.write_support
            results.append(check_support(list(reports.values()), write))
    print(f"{sum(results)} checks passed, {len(results) - sum(results)} failed")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
