"""Peak memory and FLOPs of training steps: what does not depend on the clock.

Run from the repository's root, once per backend:

    OMP_NUM_THREADS=1 KERAS_BACKEND=jax python -m benchmarks.cost.footprint
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
from typing import Any

import keras

from benchmarks.cost import step_flops
from benchmarks.cost.arm import ArmSpec
from benchmarks.cost.build_arm import build_arm
from benchmarks.cost.keras_arms import OPTIMIZERS
from benchmarks.cost.memory import last_line_of, measure_memory, method
from benchmarks.cost.train_step import default_arms
from benchmarks.cost.values import VALUES
from benchmarks.cost.workload import Workload
from benchmarks.shared.environment import result_path, write_result


def measure(spec: ArmSpec, workload: Workload, warm_up: int) -> dict[str, Any]:
    """Memory and FLOPs of one arm, in this process."""
    arm = build_arm(spec, workload)
    memory = measure_memory(arm, warm_up)
    # Without an optimizer there is no step of Keras' that could be counted.
    counted = step_flops.count(arm) if spec.optimizer != "none" else {}
    return {**arm.facts(), **memory, **counted}


def default_specs() -> list[str]:
    """The arms of `train_step`, and those of `values` with each optimizer."""
    swept = [
        str(ArmSpec("flix", count, optimizer))
        for optimizer in OPTIMIZERS
        for count in VALUES
        if optimizer != "none"
    ]
    return [*default_arms(), *swept]


def main() -> None:
    """Measures the arms of the current backend, each in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    Workload.add_arguments(parser)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--arms", nargs="+", help="`name`, or `flix:values:optimizer`")
    parser.add_argument("--one", help="measure one arm, in this process")
    parser.add_argument("--label", help="part of the result file's name")
    parser.add_argument("--output", type=pathlib.Path, help="result file")
    options = parser.parse_args()
    workload = Workload.from_arguments(options)
    if options.one:
        spec = ArmSpec.parse(options.one)
        print(json.dumps(measure(spec, workload, options.warm_up)))
        return
    arms = {}
    for spec in options.arms or default_specs():
        command = [*(sys.executable, "-m", "benchmarks.cost.footprint", "--one", spec)]
        command += ["--warm-up", str(options.warm_up), *workload.as_arguments()]
        arms[spec] = last_line_of(command)
        print(spec, arms[spec], flush=True)
        # After every arm: each takes long, and is a result of its own.
        write_result(
            options.output or result_path("footprint", options.label),
            {
                "workload": dataclasses.asdict(workload),
                "memory": method(),
                "flops": step_flops.METHODS[keras.config.backend()],
                "arms": arms,
            },
        )


if __name__ == "__main__":
    main()
