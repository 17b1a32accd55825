"""Times what a step and a prediction cost with 2 and with 100,000 values.

The model is small, so what the host does for each batch is much of the time. A batch of
32 examples has 2 values in the one, and 32 in the other. So two cases hold the number
of values in the batch: 32 in both models (which takes 64 values to be drawn from, not
2), and 2 in both. Run from the repository's root, once per backend:

    OMP_NUM_THREADS=1 KERAS_BACKEND=jax taskset -c 0 \\
        python -m benchmarks.cost.many_values
"""

from __future__ import annotations

import argparse
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import keras_flix
from benchmarks.cost.timing import interleaved, paired, quartiles
from benchmarks.shared.environment import result_path, write_result

CASES: dict[str, str] = {
    "ids": "the batch holds ids",
    "strings": "the batch holds values",
    "alpha": "one alpha for all values",
    "ranks": "an alpha, and two ranks, by turns",
    "one_trains": "`set_trainable` of one value",
    "half_trains": "`set_trainable` of every other value",
    "half_trains_alpha": "the same, with an alpha",
    "all_differ": "ids, 32 values in both batches",
    "two_occur": "ids, 2 values in both batches",
}
METHOD = (
    "CPU time of one call with many values over that with few, both models in one "
    "process, after warm-up in rounds of some calls each, every other round in reverse "
    "order; medians of the rounds' ratios, with their quartiles. `step` is "
    "`train_on_batch` under LazyAdam, `predict` is `predict_on_batch`."
)
CALLS = 5


def adapted(
    count: int, case: str, width: int, layers: int, batch: int, length: int
) -> Any:
    """A model of some dense layers, and its batch."""
    keras.utils.set_random_seed(0)
    x = y = keras.Input((length, width), name="x")
    for index in range(layers):
        y = keras.layers.Dense(width, activation="tanh", name=f"dense_{index}")(y)
    model = keras.Model({"x": x}, y)
    users = [f"user_{i:06d}" for i in range(count)]
    rank: Any = 2
    if case == "ranks":
        rank = {"user": {user: 1 + i % 2 for i, user in enumerate(users)}}
    alpha = 8.0 if case in ("alpha", "ranks", "half_trains_alpha") else None
    keras_flix.enable_flix(
        model, {"user": users}, rank=rank, alpha=alpha, targets="all-linear", seed=0
    )
    if case == "one_trains":
        keras_flix.set_trainable(model, {"user": users[:1]})
    elif case.startswith("half_trains"):
        keras_flix.set_trainable(model, {"user": users[::2]})
    model.compile(keras_flix.LazyAdam(1e-3), "mse")
    random = np.random.default_rng(0)
    ids = random.integers(0, count, batch).astype("int32")
    if case == "all_differ":
        ids = random.permutation(count)[:batch].astype("int32")
    elif case == "two_occur":
        ids = np.where(np.arange(batch) % 2, 0, count - 1).astype("int32")
    inputs = {"x": random.normal(size=(batch, length, width)).astype("float32")}
    inputs["user"] = ids if case != "strings" else [users[i] for i in ids]
    return model, inputs, np.zeros((batch, length, width), "float32")


def timed(
    call: Callable[[], Any], calls: int = CALLS
) -> Callable[[], tuple[float, ...]]:
    """CPU seconds of so many calls."""

    def seconds() -> tuple[float, ...]:
        start = time.process_time()
        for _ in range(calls):
            call()
        return (time.process_time() - start,)

    return seconds


def measure(case: str, counts: list[int], rounds: int, sizes: dict[str, int]) -> Any:
    """Ratios and milliseconds of one case."""
    if case == "all_differ":
        counts = [max(counts[0], 2 * sizes["batch"]), counts[1]]
    calls: dict[str, dict[str, Callable[[], Any]]] = {"step": {}, "predict": {}}
    for count in counts:
        model, inputs, y = adapted(count, case, **sizes)
        calls["step"][str(count)] = lambda m=model, x=inputs, y=y: m.train_on_batch(
            x, y
        )
        calls["predict"][str(count)] = lambda m=model, x=inputs: m.predict_on_batch(x)
    result: dict[str, Any] = {"what": CASES[case], "counts": counts}
    few, many = map(str, counts)
    for name, by_count in calls.items():
        for call in by_count.values():
            for _ in range(3):
                call()
        samples = interleaved({n: timed(c) for n, c in by_count.items()}, rounds)
        seconds = {n: [one for (one,) in s] for n, s in samples.items()}
        result[name] = {
            "ratio": quartiles(paired(seconds, (many,), (few,))),
            "milliseconds": {
                n: round(float(np.median(s)) * 1e3 / CALLS, 3)
                for n, s in seconds.items()
            },
        }
    return result


def main() -> None:
    """Runs all cases on the current backend."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--counts", type=int, nargs=2, default=[2, 100_000])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--label", help="part of the result file's name")
    parser.add_argument("--output", type=pathlib.Path, help="result file")
    options = parser.parse_args()
    sizes = {
        name: getattr(options, name) for name in ("width", "layers", "length", "batch")
    }
    cases = {
        case: measure(case, options.counts, options.rounds, sizes)
        for case in options.cases
    }
    result = {
        "method": METHOD,
        "sizes": sizes,
        "counts": options.counts,
        "rounds": options.rounds,
        "cases": cases,
    }
    write_result(options.output or result_path("many_values", options.label), result)
    for case, found in cases.items():
        ratios = {name: found[name]["ratio"]["median"] for name in ("step", "predict")}
        print(case, json.dumps(ratios))


if __name__ == "__main__":
    main()
