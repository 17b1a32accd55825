"""Times a step of LazyAdam over one of Adam, in models of very many small tables.

The layers are so small that what a step costs is what each table costs. Run from the
repository's root, once per backend:

    OMP_NUM_THREADS=1 KERAS_BACKEND=torch taskset -c 0 \\
        python -m benchmarks.cost.many_tables
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import keras_flix
from benchmarks.cost.many_values import timed
from benchmarks.cost.timing import interleaved, paired, quartiles
from benchmarks.shared.environment import result_path, write_result

CASES: dict[str, tuple[str, int]] = {
    "few": ("features of 3 values: each of a table's rows is in the batch", 3),
    "more": ("features of 64 values: a batch has 8 rows of each table", 64),
}
METHOD = (
    "CPU time of `train_on_batch` under LazyAdam over that under Adam, both models in "
    "one process, after warm-up in rounds of some calls each, every other round in "
    "reverse order; medians of the rounds' ratios, with their quartiles."
)
BATCH = WIDTH = 8
CALLS = 5


def step(optimizer: keras.Optimizer, values: int, layers: int) -> Callable[[], Any]:
    """A training step of a model of dense layers with two features."""
    keras.utils.set_random_seed(0)
    x = y = keras.Input((WIDTH,), name="x")
    for _ in range(layers):
        y = keras.layers.Dense(WIDTH)(y)
    model = keras.Model({"x": x}, y)
    features = {"task": values, "language": values}
    names = {name: [f"{name}_{i}" for i in range(n)] for name, n in features.items()}
    keras_flix.enable_flix(model, names, rank=2, targets="all-linear", seed=0)
    model.compile(optimizer, "mse")
    ids = {name: np.arange(BATCH, dtype="int32") % n for name, n in features.items()}
    inputs = {"x": np.ones((BATCH, WIDTH), "float32"), **ids}
    y = np.zeros((BATCH, WIDTH), "float32")
    return lambda: model.train_on_batch(inputs, y)


def measure(case: str, layers: int, rounds: int) -> dict[str, Any]:
    """The ratio and milliseconds of one case."""
    what, values = CASES[case]
    steps = {
        "adam": step(keras.optimizers.Adam(1e-3), values, layers),
        "lazy_adam": step(keras_flix.LazyAdam(1e-3), values, layers),
    }
    for call in steps.values():
        for _ in range(3):
            call()
    samples = interleaved({n: timed(c, CALLS) for n, c in steps.items()}, rounds)
    seconds = {name: [one for (one,) in s] for name, s in samples.items()}
    return {
        "what": what,
        "ratio": quartiles(paired(seconds, ("lazy_adam",), ("adam",))),
        "milliseconds": {
            name: round(float(np.median(s)) * 1e3 / CALLS, 3)
            for name, s in seconds.items()
        },
    }


def main() -> None:
    """Runs all cases on the current backend."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--layers", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=pathlib.Path, help="result file")
    options = parser.parse_args()
    result = {
        "method": METHOD,
        "tables": 4 * options.layers,
        "rounds": options.rounds,
        "cases": {
            case: measure(case, options.layers, options.rounds)
            for case in options.cases
        },
    }
    write_result(options.output or result_path("many_tables"), result)
    for case, found in result["cases"].items():
        print(case, json.dumps(found["ratio"]))


if __name__ == "__main__":
    main()
