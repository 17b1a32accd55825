"""The whole performance report: measures, draws the figures, writes the tables.

Run from the repository's root:

    OMP_NUM_THREADS=1 taskset -c 0 python -m benchmarks.cost.report
    python -m benchmarks.cost.report --write-only
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys

from benchmarks.cost import cost_figures, cost_tables
from benchmarks.cost.stored_results import BACKENDS

SWEEPS = ("none", "sgd", "lazy_sgd", "adam", "lazy_adam")
STEPS: dict[str, list[list[str]]] = {
    "train_step": [[]],
    "values": [["--optimizer", optimizer] for optimizer in SWEEPS],
    "footprint": [[]],
    "generation": [[]],
    "kernels": [[]],
}
"""The modules, each run with every one of these lists of options."""


def main() -> None:
    """Runs the modules that exist, each in a process of its own per backend."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=[*BACKENDS])
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=[*STEPS])
    parser.add_argument(
        "--write-only", action="store_true", help="only draw and write what is stored"
    )
    options, passed_on = parser.parse_known_args()
    failed = []
    if not options.write_only:
        for backend in options.backends:
            for step in options.steps:
                failed += run(backend, step, passed_on)
    for path in cost_figures.draw():
        print(f"drew {path}")
    cost_tables.write()
    print(f"wrote {cost_tables.README}")
    if failed:
        sys.exit(f"These failed, and their earlier results stand: {failed}")


def run(backend: str, step: str, passed_on: list[str]) -> list[str]:
    """Runs one module on one backend; options that are not the report's go to it.

    Returns:
        The commands that failed.
    """
    module = f"benchmarks.cost.{step}"
    if importlib.util.find_spec(module) is None:
        return []
    failed = []
    for arguments in STEPS[step]:
        command = [sys.executable, "-m", module, *arguments, *passed_on]
        print(f"KERAS_BACKEND={backend} {' '.join(command[1:])}", flush=True)
        done = subprocess.run(command, env={**os.environ, "KERAS_BACKEND": backend})
        if done.returncode:
            failed.append(f"{backend} {' '.join([step, *arguments])}")
    return failed


if __name__ == "__main__":
    main()
