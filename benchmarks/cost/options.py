"""Times a training step with the options of `enable_flix`, over one without.

Each is timed against the same model with the nearest other setting. Run from the
repository's root, once per backend:

    OMP_NUM_THREADS=1 KERAS_BACKEND=torch taskset -c 0 \\
        python -m benchmarks.cost.options
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import keras
import keras_hub
import numpy as np

import keras_flix
from benchmarks.cost.many_users import SMALL
from benchmarks.cost.timing import Ratios, interleaved, paired, quartiles
from benchmarks.cost.workload import TARGETS, Workload
from benchmarks.shared.environment import result_path, write_result

WORKLOAD = dataclasses.replace(SMALL, layers=2, values=32)
MANY = 1000
"""Values of each feature where the lazy optimizer is timed."""
EXPERTS = 8
EMBEDDING = [*TARGETS, "token_embedding"]
BY_LAYER = {".*_0/.*": 2, ".*_1/.*": 6}
"""As many ranks in all as with 4 in each layer."""
WHOLE = "decoder_block_1/ffw_linear"
RATES: dict[str, Any] = {
    "factors": {"task": {"task_0": 0.5, "task_1": 0, "*": 1}, "language": 2},
    "b": 4,
}
"""By value (one of them is frozen), by feature, and of `B`."""
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer_ranks": {"layer_ranks": BY_LAYER},
    "embedding": {"targets": EMBEDDING},
    "trainable_tokens": {"trainable_tokens": list(range(8))},
    "whole_layer": {"train": [WHOLE]},
    "rates": {"rates": RATES},
    "lazy": {"optimizer": "all"},
    "lazy_by_value": {"optimizer": "value"},
    "lazy_rates": {"optimizer": "all", "rates": RATES},
    "attention": {"mixture": True},
    "shared": {"mixture": True, "experts": "shared"},
    "each": {"mixture": True, "experts": "each"},
}
RATIOS: Ratios = {
    "layer_ranks_over_plain": (("layer_ranks",), ("plain",)),
    "embedding_over_plain": (("embedding",), ("plain",)),
    "trainable_tokens_over_plain": (("trainable_tokens",), ("plain",)),
    "whole_layer_over_plain": (("whole_layer",), ("plain",)),
    "rates_over_plain": (("rates",), ("plain",)),
    "lazy_by_value_over_lazy": (("lazy_by_value",), ("lazy",)),
    "lazy_rates_over_lazy": (("lazy_rates",), ("lazy",)),
    "shared_over_attention": (("shared",), ("attention",)),
    "each_over_shared": (("each",), ("shared",)),
}
METHOD = (
    "CPU time of `train_on_batch` in each case, all models in one process, after "
    "warm-up in rounds of some steps each, every other round in reverse order; a "
    "ratio is the median of the rounds' ratios, with quartiles. Queries and values of "
    "a small Gemma are adapted, with two features of 32 values and rank 4, under Adam; "
    "those of experts are a small Mixtral's, with 8 experts of which a token "
    "takes 2. `layer_ranks`: 2 in one layer and 6 in the other. `whole_layer`: the "
    "second feed-forward kernel of a block, by `train=`. `rates`: "
    "`set_learning_rates` by value, by feature and of `B`. `lazy`: `LazyAdam` with "
    "1,000 values."
)


def mixture(workload: Workload) -> keras.Model:
    """A small Mixtral."""
    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.MixtralBackbone(
        vocabulary_size=workload.vocabulary,
        num_layers=workload.layers,
        num_query_heads=workload.heads,
        num_key_value_heads=workload.key_value_heads,
        hidden_dim=workload.width,
        intermediate_dim=2 * workload.width,
        num_experts=EXPERTS,
        top_k=2,
    )
    return keras_hub.models.MixtralCausalLM(backbone=backbone, preprocessor=None)


def step_of(workload: Workload, case: str) -> Callable[[], Any]:
    """A training step of a case."""
    options = {"targets": TARGETS, **CASES[case]}
    lazy = options.pop("optimizer", None)
    rates = options.pop("rates", None)
    is_mixture = options.pop("mixture", False)
    model: Any = mixture(workload) if is_mixture else workload.model()
    values = workload.values if lazy is None else MANY
    keras_flix.enable_flix(
        model, workload.features(values), rank=workload.rank, seed=0, **options
    )
    model.compile(
        optimizer=(
            keras.optimizers.Adam(1e-4)
            if lazy is None
            else keras_flix.LazyAdam(1e-4, step_counts=lazy)
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    if rates is not None:
        keras_flix.set_learning_rates(model, **rates)
    x, y = workload.data(values)

    def step() -> None:
        loss = model.train_on_batch(x, y, return_dict=True)["loss"]
        if not np.isfinite(loss):
            raise RuntimeError(f"Case {case!r} has a loss of {loss}.")

    return step


def timed(step: Callable[[], Any], count: int) -> Callable[[], tuple[float, ...]]:
    """CPU seconds of a step."""

    def seconds() -> tuple[float, ...]:
        start = time.process_time()
        for _ in range(count):
            step()
        return ((time.process_time() - start) / count,)

    return seconds


def measure(
    workload: Workload, cases: list[str], rounds: int, steps: int
) -> dict[str, Any]:
    """Milliseconds of a step by case, and ratios of cases."""
    calls = {case: timed(step_of(workload, case), steps) for case in cases}
    for call in calls.values():
        call()
    samples = interleaved(calls, rounds)
    cpu = {name: [one[0] for one in found] for name, found in samples.items()}
    return {
        "milliseconds": {
            name: round(float(np.median(found)) * 1e3, 2) for name, found in cpu.items()
        },
        "ratios": {
            name: quartiles(paired(cpu, above, below))
            for name, (above, below) in RATIOS.items()
            if {*above, *below} <= cpu.keys()
        },
    }


def main() -> None:
    """Runs all cases on the current backend."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--steps", type=int, default=3, help="timed at once")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--output", type=pathlib.Path, help="result file")
    options = parser.parse_args()
    found = measure(WORKLOAD, options.cases, options.rounds, options.steps)
    result = {
        "method": METHOD,
        "workload": WORKLOAD.as_arguments(),
        "rounds": options.rounds,
        "steps_at_once": options.steps,
        **found,
    }
    write_result(options.output or result_path("options"), result)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
