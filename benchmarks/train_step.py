"""Times training steps of FLix against KerasHub's LoRA, in one process.

Run from the repository's root, once per backend:

    OMP_NUM_THREADS=1 KERAS_BACKEND=jax taskset -c 0 python -m benchmarks.train_step
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import pathlib
import statistics
from typing import Any

import keras

from benchmarks.environment import RESULTS, write_result
from benchmarks.memory import compare_memory, measure_memory
from benchmarks.workload import ARMS, Arm, Workload

RATIOS = {
    "flix_over_lora": ("flix", "lora"),
    "flix_many_over_flix": ("flix_many", "flix"),
    "lora_over_floor": ("lora", "floor"),
    "flix_over_floor": ("flix", "floor"),
}
METHOD = (
    "`train_on_batch` (forward, backward, Adam) of all arms in one process, after "
    "warm-up in rounds of one step per arm, every other round in reverse order. "
    "Seconds are medians; a ratio is the median of the rounds' ratios, with their "
    "quartiles. `cpu` is the same from the process' CPU time, which a busy "
    "machine distorts less; `cpu_without_optimizer` (PyTorch, which runs eagerly) "
    "leaves `optimizer.apply` out."
)


def time_arms(arms: dict[str, Arm], rounds: int, warm_up: int) -> dict[str, list]:
    """Wall-clock and CPU seconds of each arm's steps, round by round."""
    for arm in arms.values():
        for _ in range(warm_up):
            arm.step()
    seconds: dict[str, list] = {name: [] for name in arms}
    for index in range(rounds):
        names = list(arms) if index % 2 == 0 else list(arms)[::-1]
        for name in names:
            gc.collect()
            seconds[name].append(arms[name].timed_step())
    return seconds


def summary(seconds: dict[str, list], clock: int) -> dict[str, Any]:
    """Medians per arm and paired ratios, by one of `Arm.timed_step`'s clocks."""
    times = {name: [clocks[clock] for clocks in s] for name, s in seconds.items()}
    ratios = {}
    for name, (above, below) in RATIOS.items():
        if above not in times or below not in times:
            continue
        paired = [a / b for a, b in zip(times[above], times[below])]
        low, median, high = statistics.quantiles(paired, n=4)
        ratios[name] = {
            "median": round(median, 4),
            "quartiles": [round(low, 4), round(high, 4)],
        }
    medians = {name: round(statistics.median(t), 4) for name, t in times.items()}
    return {"seconds": medians, "ratios": ratios}


def check_arms(arms: dict[str, Arm]) -> None:
    """Raises unless the arms adapt the same layers and active parameters."""
    adapted = {n: a.adapted_layers() for n, a in arms.items() if n != "floor"}
    if len({tuple(paths) for paths in adapted.values()}) > 1:
        raise RuntimeError(f"The arms adapt different layers: {adapted}.")


def run(workload: Workload, rounds: int, warm_up: int, names: list[str]) -> dict:
    """All timings, as they go to the result file."""
    arms = {name: workload.arm(name) for name in names}
    check_arms(arms)
    eager = keras.config.backend() == "torch"
    if eager:
        for arm in arms.values():
            arm.watch_optimizer()
    seconds = time_arms(arms, rounds, warm_up)
    without = {"cpu_without_optimizer": summary(seconds, 2)} if eager else {}
    return {
        "workload": dataclasses.asdict(workload),
        "arms": {name: arm.facts() for name, arm in arms.items()},
        "time": {
            "method": METHOD,
            "rounds": rounds,
            "warm_up": warm_up,
            "wall": summary(seconds, 0),
            "cpu": summary(seconds, 1),
            **without,
            "samples": {
                name: [[round(t, 4) for t in clocks[:2]] for clocks in steps]
                for name, steps in seconds.items()
            },
        },
    }


def main() -> None:
    """Runs the benchmark of the current backend."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    Workload.add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument(
        "--memory-arm", choices=ARMS, help="only measure the memory of this arm"
    )
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--output", type=pathlib.Path, help="result file")
    arguments = parser.parse_args()
    workload = Workload.from_arguments(arguments)
    if arguments.memory_arm:
        arm = workload.arm(arguments.memory_arm)
        print(json.dumps(measure_memory(arm, arguments.warm_up)))
        return
    # Memory first: its processes must not run beside this one's models.
    memory = compare_memory(workload, arguments.warm_up) if arguments.memory else None
    result = run(workload, arguments.rounds, arguments.warm_up, arguments.arms)
    if memory is not None:
        result["memory"] = memory
    backend = keras.config.backend()
    output = arguments.output or RESULTS / f"train_step_{backend}.json"
    write_result(output, result)
    shown = {clock: result["time"][clock] for clock in ("wall", "cpu")}
    print(json.dumps({**shown, "memory": memory}, indent=2))


if __name__ == "__main__":
    main()
