"""Runs the tests of faults under a heavy load and keeps what they counted.

Run from the repository's root, once per backend:

    KERAS_BACKEND=jax python -m benchmarks.robustness.faults --load 50
    python -m benchmarks.robustness.faults --write

The tests are those of `tests/faults`, which the README's test command runs as well,
with fewer cases.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import keras

from benchmarks.shared.environment import git_commit, result_path, write_result
from benchmarks.shared.places import GUIDES, REPOSITORY, RESULTS

PAGE = GUIDES / "faults.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"


def run_tests(load: int, tests: list[str]) -> tuple[dict[str, dict], float]:
    """What the tests counted, and how many seconds they took; raises if one fails."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder, "faults.json")
        options = [f"--load={load}", f"--fault-report={report}"]
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--durations=10", *options, *tests],
            cwd=REPOSITORY,
            env={**os.environ, "KERAS_BACKEND": keras.config.backend()},
            check=True,
        )
        return json.loads(report.read_text()), time.monotonic() - start


def table() -> str:
    """All results as Markdown: a line per test and backend."""
    lines = ["| Fault | Backend | Counted |", "| --- | --- | --- |"]
    rows = []
    for path in sorted(RESULTS.glob("faults_*.json")):
        result = json.loads(path.read_text())
        backend = result["environment"]["backend"]
        for name, facts in result["faults"].items():
            counted = ", ".join(
                f"{key.replace('_', ' ')} {value:,}"
                if isinstance(value, int)
                else f"{key.replace('_', ' ')} {value}"
                for key, value in facts.items()
                if key not in ("test", "load", "commit")
            )
            rows.append(f"| {name} | {backend} | {counted} |")
    return "\n".join([*lines, *sorted(rows)]) + "\n"


def main() -> None:
    """Runs the tests of the current backend, or writes the page's table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--load", type=int, default=1, help="how many times the cases")
    parser.add_argument("--write", action="store_true", help="only write the page")
    parser.add_argument("--keep", action="store_true", help="add to earlier results")
    parser.add_argument("tests", nargs="*", default=["tests/faults"])
    arguments = parser.parse_args()
    if arguments.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        PAGE.write_text(before + BEGIN + table() + END + after)
        return
    path = result_path("faults")
    faults, seconds = run_tests(arguments.load, arguments.tests)
    for facts in faults.values():
        # Of each: with `--keep`, a file holds those of several runs.
        facts |= {"load": arguments.load, "commit": git_commit()}
    if arguments.keep and path.exists():
        faults = {**json.loads(path.read_text())["faults"], **faults}
    write_result(path, {"seconds": round(seconds), "faults": faults})
    print(json.dumps(faults, indent=2))


if __name__ == "__main__":
    main()
