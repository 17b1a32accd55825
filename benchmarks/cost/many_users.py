"""Times an update of a user's adapter: many users mixed in one run, or one by one.

A user-step is one update of one user's adapter by one batch of that user's. Run from
the repository's root, once per backend; PEFT's arm needs PyTorch:

    OMP_NUM_THREADS=1 KERAS_BACKEND=torch taskset -c 0 \\
        python -m benchmarks.cost.many_users
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import itertools
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

import keras_flix
from benchmarks.cost.timing import interleaved, paired, quartiles
from benchmarks.cost.workload import TARGETS, Workload
from benchmarks.shared.environment import result_path, write_result

SMALL = Workload(
    layers=4,
    width=128,
    heads=4,
    head_dim=32,
    intermediate=1024,
    length=32,
    batch=16,
    rank=4,
)
"""About the size of the Gemma that the guides train."""
ARMS = {
    "flix": "one run, users mixed in batches of 16: `enable_flix`, `LazyAdam` that "
    "counts by value",
    "lora": "apart: KerasHub's `enable_lora`, a model and an Adam of each user's own",
    "peft": "one at a time: PEFT, all adapters in one model, `set_adapter`, an Adam of "
    "each user's own",
}
METHOD = (
    "CPU time of 16 user-steps of each arm per round, over 16, all arms in one "
    "process, every other round in reverse order, after warm-up; a ratio is the median "
    "of the rounds' ratios, with quartiles. The same examples are seen in all arms: a "
    "mixed batch of 16 is 16 user-steps of one example, or 4 of four. Making models, "
    "adapters and optimizers, and compiling, is left out: apart, each user pays that "
    "anew. The LoRA's arm trains one model again and again, as any takes its time."
)
EXAMPLES = (1, 4)
GROUP = 16

Step = Callable[[], None]


def flix(workload: Workload, users: int, examples: int) -> Step:
    """So many user-steps as a mixed batch has, in one step."""
    model = workload.model()
    names = [f"user_{i:05d}" for i in range(users)]
    keras_flix.enable_flix(
        model, {"user": names}, rank=workload.rank, targets=TARGETS, seed=0
    )
    model.compile(keras_flix.LazyAdam(1e-4, step_counts="value"), loss=loss())
    x, y = workload.data(None)
    order = turns(users)

    def step() -> None:
        chosen = list(itertools.islice(order, workload.batch // examples))
        ids = np.repeat(np.asarray(chosen, "int32"), examples)
        model.train_on_batch({**x, "user": ids}, y)

    return step


def lora(workload: Workload, users: int, examples: int) -> Step:
    """One user-step."""
    model = workload.model()
    model.backbone.enable_lora(workload.rank)
    model.compile(keras.optimizers.Adam(1e-4), loss=loss())
    x, y = one_user(workload, examples)
    return lambda: model.train_on_batch(x, y)


@functools.cache
def peft_model(workload: Workload, users: int) -> Any:
    """PEFT's model with all adapters, layer by layer.

    `add_adapter` walks the whole model for each, and took over 17 minutes for 1,000.
    """
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    from benchmarks.cost.peer_arms import base_directory
    from benchmarks.shared.torch_gemma import load_base

    base = load_base(base_directory(workload))
    config = LoraConfig(
        r=workload.rank,
        lora_alpha=workload.rank,
        target_modules=["q_proj", "v_proj"],
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base, config, adapter_name="user_0")
    layers = [one for one in model.modules() if isinstance(one, LoraLayer)]
    for i in range(1, users):
        model.peft_config[f"user_{i}"] = config
        for layer in layers:
            layer.update_layer(
                f"user_{i}", workload.rank, lora_alpha=workload.rank, config=config
            )
    return model.train()


def peft(workload: Workload, users: int, examples: int) -> Step:
    """One user-step, another user's each time."""
    import torch

    from benchmarks.shared.torch_gemma import integers

    model = peft_model(workload, users)
    x, y = one_user(workload, examples)
    inputs, targets = integers(x), torch.tensor(y.astype("int64"))
    optimizers: dict[int, Any] = {}
    order = turns(users)

    def step() -> None:
        user = next(order)
        model.set_adapter(f"user_{user}")
        if user not in optimizers:
            own = [p for p in model.parameters() if p.requires_grad]
            optimizers[user] = torch.optim.Adam(own, lr=1e-4)
        logits = model(**inputs, use_cache=False).logits
        value = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten()
        )
        value.backward()
        optimizers[user].step()
        optimizers[user].zero_grad()

    return step


MAKERS = {"flix": flix, "lora": lora, "peft": peft}


def loss() -> keras.losses.Loss:
    """What the arms of Keras minimize."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def one_user(workload: Workload, examples: int) -> tuple[dict[str, Any], np.ndarray]:
    """The first examples of the batch."""
    x, y = workload.data(None)
    return {name: value[:examples] for name, value in x.items()}, y[:examples]


def turns(users: int) -> Iterator[int]:
    """Users in random order, each as often as any other, in rounds of all."""
    random = np.random.default_rng(0)
    while True:
        # Warm-up and timing then meet users of all rounds alike.
        yield from random.permutation(min(users, 64)).tolist()


def timed(step: Step, calls: int) -> Callable[[], tuple[float, ...]]:
    """Seconds of a user-step: CPU time, and the wall clock."""

    def seconds() -> tuple[float, ...]:
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(calls):
            step()
        return (
            (time.process_time() - cpu) / GROUP,
            (time.perf_counter() - wall) / GROUP,
        )

    return seconds


def measure(
    workload: Workload, users: int, examples: int, rounds: int, arms: list[str]
) -> dict[str, Any]:
    """Milliseconds of a user-step in each arm, and the others over FLix."""
    calls: dict[str, Callable[[], tuple[float, ...]]] = {}
    for name in arms:
        step = MAKERS[name](workload, users, examples)
        # As many examples in each group: the mixed batch is 16 of one, or 4 of four.
        count = GROUP * examples // workload.batch if name == "flix" else GROUP
        calls[name] = timed(step, count)
        # Each of the users that take turns has its optimizer then.
        for _ in range(1 + 64 // GROUP):
            calls[name]()
    samples = interleaved(calls, rounds)
    cpu = {name: [one[0] for one in found] for name, found in samples.items()}
    return {
        "milliseconds": {
            n: round(float(np.median(s)) * 1e3, 3) for n, s in cpu.items()
        },
        "wall_milliseconds": {
            n: round(float(np.median([one[1] for one in s])) * 1e3, 3)
            for n, s in samples.items()
        },
        "over_flix": {
            name: quartiles(paired(cpu, (name,), ("flix",)))
            for name in arms
            if name != "flix"
        },
    }


def available() -> list[str]:
    """The arms that this backend, and what is installed, can run."""
    names = ["flix", "lora"]
    has = all(map(importlib.util.find_spec, ("peft", "transformers")))
    return [*names, "peft"] if has and keras.config.backend() == "torch" else names


def main() -> None:
    """Runs all arms of the current backend."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=available())
    parser.add_argument("--label", help="part of the result file's name")
    parser.add_argument("--output", type=pathlib.Path, help="result file")
    options = parser.parse_args()
    found = {
        str(examples): measure(
            SMALL, options.users, examples, options.rounds, options.arms
        )
        for examples in EXAMPLES
    }
    result = {
        "method": METHOD,
        "workload": SMALL.as_arguments(),
        "users": options.users,
        "rounds": options.rounds,
        "arms": {name: ARMS[name] for name in options.arms},
        "by_examples": found,
    }
    write_result(options.output or result_path("many_users", options.label), result)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
