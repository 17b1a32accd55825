"""Times training steps of FLix against its peers and its floor, in one process.

Run from the repository's root, once per backend:

    OMP_NUM_THREADS=1 KERAS_BACKEND=jax taskset -c 0 \\
        python -m benchmarks.cost.train_step

On PyTorch the peers outside of Keras take part as far as they are installed:
`pip install '.[torch,peers]'`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from typing import Any

import keras
import numpy as np

from benchmarks.cost.arm import Arm, ArmSpec
from benchmarks.cost.build_arm import build_arm
from benchmarks.cost.keras_arms import KERAS_ARMS
from benchmarks.cost.peer_arms import PEER_ARMS, available_peers
from benchmarks.cost.profiling import profile
from benchmarks.cost.timing import Ratios, timings
from benchmarks.cost.workload import Workload
from benchmarks.shared.environment import result_path, write_result

PEERS = [name for name in PEER_ARMS if name != "hf_floor"]
RATIOS: Ratios = {
    "flix_over_floor": (("flix",), ("floor",)),
    "lora_over_floor": (("lora",), ("floor",)),
    "flix_over_lora": (("flix",), ("lora",)),
    "hf_floor_over_floor": (("hf_floor",), ("floor",)),
    **{f"{name}_over_hf_floor": ((name,), ("hf_floor",)) for name in PEERS},
    **{f"flix_over_{name}": (("flix",), (name,)) for name in PEERS},
    # Each over the frozen base of its own framework.
    **{
        f"flix_over_{name}_over_floors": (("flix", "hf_floor"), ("floor", name))
        for name in PEERS
    },
}


def default_arms() -> list[str]:
    """All arms of the current backend that can run here."""
    peers = available_peers() if keras.config.backend() == "torch" else []
    return [*KERAS_ARMS, *peers]


def check_arms(arms: dict[str, Arm], layers: int) -> dict[str, float]:
    """Raises unless all arms adapt the same layers of the same model.

    Returns:
        The first loss of each, which no adapter has changed yet.
    """
    adapted = {n: a.adapted_layers() for n, a in arms.items() if "floor" not in n}
    keras_paths = {tuple(p) for n, p in adapted.items() if n in KERAS_ARMS}
    others = {tuple(p) for n, p in adapted.items() if n not in KERAS_ARMS}
    sizes = {len(paths) for paths in adapted.values()}
    if len(keras_paths) > 1 or len(others) > 1 or sizes - {2 * layers}:
        raise RuntimeError(f"The arms adapt different layers: {adapted}.")
    losses = {name: arm.step() for name, arm in arms.items()}
    if not np.allclose([*losses.values()], next(iter(losses.values())), rtol=1e-2):
        raise RuntimeError(f"The arms start from different losses: {losses}.")
    return losses


def run(
    options: argparse.Namespace, workload: Workload, arms: dict[str, Arm]
) -> dict[str, Any]:
    """All timings of one workload, as they go to the result file."""
    for arm in arms.values():
        arm.use(workload)
    result = {
        "workload": dataclasses.asdict(workload),
        "arms": {name: arm.facts() for name, arm in arms.items()},
        "left_out": sorted({*KERAS_ARMS, *PEER_ARMS} - set(arms)),
        "first_loss": check_arms(arms, workload.layers),
    }
    eager = not workload.compiled and keras.config.backend() == "torch"
    result["time"] = timings(
        arms, RATIOS, options.rounds, options.warm_up, eager, options.steps
    )
    if options.profile:
        folder = options.profile / str(workload.length)
        result["profile"] = profile(arms, folder)
    return result


def main() -> None:
    """Runs the benchmark of the current backend."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    Workload.add_arguments(parser)
    parser.add_argument("--lengths", type=int, nargs="+", help="a result per length")
    parser.add_argument("--tokens", type=int, help="of a step: gives each its batch")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1, help="timed at once, by `fit`")
    parser.add_argument("--arms", nargs="+", default=default_arms())
    parser.add_argument("--profile", type=pathlib.Path, help="a folder for traces")
    parser.add_argument("--label", help="part of the result file's name")
    parser.add_argument("--output", type=pathlib.Path, help="result file")
    options = parser.parse_args()
    workload = Workload.from_arguments(options)
    arms = {name: build_arm(ArmSpec.parse(name), workload) for name in options.arms}
    for length in options.lengths or [None]:
        if length:
            batch = options.tokens // length if options.tokens else workload.batch
            workload = dataclasses.replace(workload, length=length, batch=batch)
        result = run(options, workload, arms)
        labels = [options.label, length] if length else [options.label]
        write_result(options.output or result_path("train_step", *labels), result)
        time = result["time"]
        print(json.dumps({clock: time[clock] for clock in ("wall", "cpu")}, indent=2))


if __name__ == "__main__":
    main()
