"""Times training steps of this checkout against those of another one, in turns.

Each version runs in a process of its own, and has the arms of `train_step` that it can
have: FLix, and KerasHub's `enable_lora`, which knows no version. From the repository's
root:

    OMP_NUM_THREADS=1 KERAS_BACKEND=jax taskset -c 0 \\
        python -m benchmarks.cost.two_versions path/to/other/checkout

All times are CPU time of the process, after warm-up; a ratio is the median of the
rounds' ratios, with their quartiles.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks.cost.arm import ArmSpec
from benchmarks.cost.keras_arms import keras_arm
from benchmarks.cost.timing import interleaved, paired, quartiles
from benchmarks.cost.workload import Workload

ROOT = pathlib.Path(__file__).parents[2]
ARMS = ("flix", "lora")
RATIOS = {
    "flix, this / other": ("flix this", "flix other"),
    "lora, this / other": ("lora this", "lora other"),
    "flix / lora, this": ("flix this", "lora this"),
    "flix / lora, other": ("flix other", "lora other"),
}


class Version:
    """A process that steps when it is told to."""

    def __init__(self, checkout: pathlib.Path, options: list[str]) -> None:
        # `benchmarks` has no `__init__`, so what only this checkout has is found too.
        path = os.pathsep.join([str(checkout.resolve()), str(ROOT)])
        self.process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, str(checkout.resolve()), *options],
            # Not in a checkout, which Python would look into first.
            cwd=tempfile.gettempdir(),
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.line()

    def line(self) -> str:
        """The next line that the process prints; raises if it ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"A version ended with {self.process.wait()}.")
        return line

    def step(self, arm: str) -> tuple[float, ...]:
        """CPU seconds of a step."""
        print(arm, file=self.process.stdin, flush=True)
        return (float(self.line()),)


def serve(checkout: pathlib.Path, workload: Workload, warm_up: int) -> None:
    """Makes the arms; for each name that is read, takes a step and prints its time."""
    import keras_flix

    found = pathlib.Path(keras_flix.__file__)
    if checkout not in found.parents:
        raise RuntimeError(f"Expected keras_flix in {checkout}. Found: {found}.")
    with contextlib.redirect_stdout(sys.stderr):
        arms = {name: keras_arm(ArmSpec(name), workload) for name in ARMS}
        for arm in arms.values():
            for _ in range(warm_up):
                arm.checked_step()
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.process_time()
        arms[line.strip()].step()
        print(time.process_time() - start, flush=True)


def run(other: pathlib.Path, rounds: int, options: list[str]) -> dict[str, Any]:
    """Medians and ratios of two checkouts."""
    versions = {"this": Version(ROOT, options), "other": Version(other, options)}
    try:
        timed = {
            f"{arm} {name}": functools.partial(version.step, arm)
            for name, version in versions.items()
            for arm in ARMS
        }
        seconds = interleaved(timed, rounds)
    finally:
        for version in versions.values():
            version.process.terminate()
    times = {name: [step for (step,) in steps] for name, steps in seconds.items()}
    return {
        "seconds": {name: quartiles(values) for name, values in times.items()},
        "ratios": {
            name: quartiles(paired(times, (above,), (below,)))
            for name, (above, below) in RATIOS.items()
        },
    }


def main(arguments: list[str]) -> None:
    """Reads the options and prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=pathlib.Path, help="of the other version")
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument(
        "--serve", action="store_true", help="run by the command itself"
    )
    Workload.add_arguments(parser)
    options = parser.parse_args(arguments)
    workload = Workload.from_arguments(options)
    if options.serve:
        serve(options.checkout, workload, options.warm_up)
        return
    passed = ["--serve", f"--warm-up={options.warm_up}", *workload.as_arguments()]
    print(json.dumps(run(options.checkout, options.rounds, passed), indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
