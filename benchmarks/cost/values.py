"""Times training steps of FLix with 2 to 4096 values per feature, in one process.

Run from the repository's root, once per backend and optimizer (`none` is the forward
and backward pass alone):

    OMP_NUM_THREADS=1 KERAS_BACKEND=jax taskset -c 0 \\
        python -m benchmarks.cost.values --optimizer adam
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib

import keras

from benchmarks.cost.arm import ArmSpec
from benchmarks.cost.build_arm import build_arm
from benchmarks.cost.keras_arms import OPTIMIZERS
from benchmarks.cost.timing import Ratios, timings
from benchmarks.cost.workload import Workload
from benchmarks.shared.environment import result_path, write_result

VALUES = (2, 8, 64, 512, 1024, 4096)


def ratios(values: list[int]) -> Ratios:
    """Each number of values over the lowest."""
    first = str(values[0])
    return {f"{count}_over_{first}": ((str(count),), (first,)) for count in values[1:]}


def main() -> None:
    """Runs the sweep of the current backend."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    Workload.add_arguments(parser)
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adam")
    parser.add_argument("--counts", type=int, nargs="+", default=list(VALUES))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--label", help="part of the result file's name")
    parser.add_argument("--output", type=pathlib.Path, help="result file")
    options = parser.parse_args()
    workload = Workload.from_arguments(options)
    arms = {
        str(count): build_arm(ArmSpec("flix", count, options.optimizer), workload)
        for count in options.counts
    }
    eager = keras.config.backend() == "torch" and options.optimizer != "none"
    compared = ratios(options.counts)
    result = {
        "workload": dataclasses.asdict(workload),
        "optimizer": options.optimizer,
        "arms": {name: arm.facts() for name, arm in arms.items()},
        "time": timings(arms, compared, options.rounds, options.warm_up, eager),
    }
    labels = (options.optimizer, options.label)
    write_result(options.output or result_path("values", *labels), result)
    time = result["time"]
    print(json.dumps({clock: time[clock] for clock in ("wall", "cpu")}, indent=2))


if __name__ == "__main__":
    main()
