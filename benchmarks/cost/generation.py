"""Times `generate` on batches that mix combinations of values, in one process.

Run from the repository's root, once per backend:

    OMP_NUM_THREADS=1 KERAS_BACKEND=jax taskset -c 0 \\
        python -m benchmarks.cost.generation
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import keras
import keras_hub
import numpy as np

import keras_flix
from benchmarks.cost.timing import interleaved, paired, quartiles
from benchmarks.cost.workload import AXES, TARGETS, Workload
from benchmarks.shared.environment import result_path, write_result

ARMS = {
    "merged": "plain KerasHub Gemma, kernels merged with one combination",
    "merged_again": "another copy of it: how far equal work differs by placement alone",
    "flix": "`enable_flix`, 2 axes; the batch holds so many distinct combinations",
    "hf_merged": "transformers' Gemma, kernels merged with the same combination",
    "peft": "PEFT, one LoRA per combination, `generate(adapter_names=[...])`",
}
KERAS_ARMS = ("merged", "merged_again", "flix")
METHOD = (
    "Greedy `generate` with a KV cache, all arms in one process, after warm-up "
    "(compilation) in rounds of one call per arm, every other round in reverse order. "
    "All sequences get the same number of new tokens, without a stop token. Tokens per "
    "second are new tokens of the whole batch over the median of seconds, the prompts' "
    "pass included; a ratio is the median of the rounds' ratios of seconds, with their "
    "quartiles. `cpu` is the same from the process' CPU time, which a busy machine "
    "distorts less."
)


@dataclasses.dataclass(frozen=True)
class Sizes(Workload):
    """Sizes of the model, the batch and the adapters.

    Attributes:
        length: Of the sequences in the end: prompts and new tokens.
        new_tokens: Tokens that each example gets.
    """

    batch: int = 32
    length: int = 64
    new_tokens: int = 32

    @property
    def prompt(self) -> int:
        """Tokens of each prompt."""
        return self.length - self.new_tokens

    def adapted_model(self) -> keras_hub.models.GemmaCausalLM:
        """An adapted random Gemma whose tables are random too."""
        model = self.model()
        random = np.random.default_rng(0)
        # The stock initial embeddings are so small that a token says little.
        embeddings = model.backbone.token_embedding.embeddings
        embeddings.assign(random.normal(size=embeddings.shape) * self.width**-0.5)
        keras_flix.enable_flix(
            model,
            self.features(self.values),
            rank=self.rank // len(AXES),
            targets=TARGETS,
            seed=0,
        )
        for variable in model.trainable_variables:
            variable.assign(random.normal(size=variable.shape) * 0.05)
        model.compile(sampler="greedy")
        return model

    def combinations(self, count: int) -> list[dict[str, str]]:
        """Distinct combinations; fewer of them are a part of more."""
        pairs = list(itertools.product(range(self.values), repeat=len(AXES)))
        chosen = np.random.default_rng(0).permutation(len(pairs))[:count]
        return [
            {axis: f"{axis}_{value}" for axis, value in zip(AXES, pairs[i])}
            for i in chosen
        ]

    def prompts(self) -> np.ndarray:
        """Random tokens, int32 `(batch, prompt)`."""
        shape = (self.batch, self.prompt)
        return np.random.default_rng(0).integers(
            1, self.vocabulary, size=shape, dtype="int32"
        )


Generate = Callable[[], np.ndarray]
"""Generates once; returns the new tokens, `(batch, new_tokens)`."""


def keras_arms(sizes: Sizes, model: Any, counts: list[int]) -> dict[str, Generate]:
    """KerasHub's `generate`: the merged model, and batches of `counts` combinations."""
    tokens = np.zeros((sizes.batch, sizes.length), "int32")
    tokens[:, : sizes.prompt] = sizes.prompts()
    mask = np.zeros_like(tokens)
    mask[:, : sizes.prompt] = 1
    inputs = {"token_ids": tokens, "padding_mask": mask}

    def arm(model: Any, features: dict[str, list[str]]) -> Generate:
        def generate() -> np.ndarray:
            # No preprocessor: without stop tokens every sequence runs to the end.
            output = model.generate({**inputs, **features}, stop_token_ids=None)
            return np.asarray(output["token_ids"])[:, sizes.prompt :]

        return generate

    arms = {}
    for name in ("merged", "merged_again"):
        merged = keras_flix.merge_features(model, sizes.combinations(1)[0])
        merged.compile(sampler="greedy")
        arms[name] = arm(merged, {})
    for count in counts:
        chosen = sizes.combinations(count)
        rows = [chosen[i % count] for i in range(sizes.batch)]
        features = {axis: [row[axis] for row in rows] for axis in AXES}
        arms[f"flix_{count}"] = arm(model, features)
    return arms


def peft_arms(sizes: Sizes, model: Any, counts: list[int]) -> dict[str, Generate]:
    """PEFT with the same weights: every combination as a LoRA of its own."""
    from benchmarks.shared.torch_gemma import export_base, load_base, optional

    torch, peft = optional("torch"), optional("peft")
    chosen = sizes.combinations(max(counts))
    names = [f"adapter_{i}" for i in range(len(chosen))]
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)

        def base(features: dict[str, str | None]) -> Any:
            plain = keras_flix.merge_features(model, features)
            return load_base(export_base(plain, root / str(features[AXES[0]])))

        merged = base(chosen[0])
        adapted = base(dict.fromkeys(AXES))
        keras_flix.export_loras(model, chosen, root / "loras")
        index = json.loads((root / "loras" / "index.json").read_text())
        folders = [root / "loras" / a["directory"] for a in index["adapters"]]
        adapted = peft.PeftModel.from_pretrained(adapted, folders[0], names[0])
        for name, directory in zip(names[1:], folders[1:]):
            adapted.load_adapter(directory, name)
    where = "cuda" if torch.cuda.is_available() else "cpu"
    prompts = torch.tensor(sizes.prompts().astype("int64"), device=where)
    options = {
        "attention_mask": torch.ones_like(prompts),
        "do_sample": False,
        "use_cache": True,
        "min_new_tokens": sizes.new_tokens,
        "max_new_tokens": sizes.new_tokens,
        "pad_token_id": 0,
        "eos_token_id": None,
    }

    def arm(model: Any, **adapters: Any) -> Generate:
        model.to(where, getattr(torch, sizes.dtype)).eval()

        def generate() -> np.ndarray:
            with torch.inference_mode():
                tokens = model.generate(input_ids=prompts, **options, **adapters)
            return tokens[:, sizes.prompt :].cpu().numpy()

        return generate

    arms = {"hf_merged": arm(merged)}
    for count in counts:
        rows = [names[i % count] for i in range(sizes.batch)]
        arms[f"peft_{count}"] = arm(adapted, adapter_names=rows)
    return arms


def check_tokens(sizes: Sizes, arms: dict[str, Generate]) -> dict[str, float]:
    """Runs each arm once; how much of its tokens are those of its counterpart.

    Rounding may turn a near tie of two tokens, after which a sequence goes on
    differently; more than a few such sequences are an error.
    """
    tokens = {name: generate() for name, generate in arms.items()}
    agreement = {}
    for name, found in tokens.items():
        if found.shape != (sizes.batch, sizes.new_tokens):
            raise RuntimeError(f"Arm {name!r} gave tokens of shape {found.shape}.")
        other = name.replace("peft", "flix").replace("hf_", "")
        other = "merged" if name in ("merged_again", "flix_1") else other
        if other != name:
            agreement[f"{name} = {other}"] = round(
                float(np.mean(found == tokens[other])), 4
            )
    if min(agreement.values(), default=1.0) < 0.9:
        raise RuntimeError(f"Arms must give the same tokens, but: {agreement}.")
    return agreement


def timed(generate: Generate) -> tuple[float, float]:
    """Wall-clock and CPU seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    generate()
    return time.perf_counter() - wall, time.process_time() - cpu


def summary(
    seconds: dict[str, list[float]], counts: list[int], tokens: int
) -> dict[str, Any]:
    """Tokens per second of each arm, and paired ratios, by one clock."""
    pairs = [("merged_again", "merged")] + [
        (f"{arm}_{count}", below.format(count))
        for arm, below in (
            ("flix", "merged"),
            ("peft", "hf_merged"),
            ("peft", "flix_{}"),
        )
        for count in counts
    ]
    return {
        "tokens_per_second": {
            name: round(tokens / statistics.median(times), 1)
            for name, times in seconds.items()
        },
        "ratios": {
            f"{above} / {below}": quartiles(paired(seconds, (above,), (below,)))
            for above, below in pairs
            if above in seconds
        },
    }


def run(
    sizes: Sizes, counts: list[int], rounds: int, warm_up: int, peft: bool
) -> dict[str, Any]:
    """All timings, as they go to the result file."""
    model = sizes.adapted_model()
    arms = keras_arms(sizes, model, counts)
    if peft:
        arms |= peft_arms(sizes, model, counts)
    agreement = check_tokens(sizes, arms)
    for generate in arms.values():
        for _ in range(warm_up):
            generate()
    calls = {name: functools.partial(timed, arm) for name, arm in arms.items()}
    samples = interleaved(calls, rounds)
    tokens = sizes.batch * sizes.new_tokens
    return {
        "sizes": dataclasses.asdict(sizes),
        "new_tokens_per_call": tokens,
        "arms": {a: ARMS[a] for a in (ARMS if peft else KERAS_ARMS)},
        "jit_compile": bool(model.jit_compile),
        "same_tokens": agreement,
        "method": METHOD,
        "rounds": rounds,
        "warm_up": warm_up,
        **{
            clock: summary(
                {name: [times[i] for times in s] for name, s in samples.items()},
                counts,
                tokens,
            )
            for i, clock in enumerate(("wall", "cpu"))
        },
        "samples": {
            name: [[round(t, 4) for t in times] for times in s]
            for name, s in samples.items()
        },
    }


def main() -> None:
    """Runs the benchmark of the current backend."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    Sizes.add_arguments(parser)
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 4, 32])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--peft", action=argparse.BooleanOptionalAction)
    parser.add_argument("--label", help="part of the result file's name")
    parser.add_argument("--output", type=pathlib.Path, help="result file")
    arguments = parser.parse_args()
    sizes = Sizes.from_arguments(arguments)
    backend = keras.config.backend()
    peft = backend == "torch" if arguments.peft is None else arguments.peft
    result = run(sizes, arguments.counts, arguments.rounds, arguments.warm_up, peft)
    write_result(arguments.output or result_path("generation", arguments.label), result)
    shown = ("same_tokens", "wall", "cpu")
    print(json.dumps({key: result[key] for key in shown}, indent=2))


if __name__ == "__main__":
    main()
