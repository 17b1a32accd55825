"""Times answers with many combinations: llama.cpp with a file per value, and others.

Run from the repository's root, once `python -m benchmarks.quality.smollm.base` has
made the base:

    OMP_NUM_THREADS=1 KERAS_BACKEND=jax taskset -c 0 \\
        python -m benchmarks.cost.serving
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import functools
import importlib.metadata
import itertools
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import keras_flix
from benchmarks.cost.llama_server import CONTEXT, SLOTS, LlamaServer, serving
from benchmarks.cost.timing import interleaved, paired, quartiles
from benchmarks.shared import smollm
from benchmarks.shared.environment import result_path, write_result

ARMS = {
    "values": "llama.cpp, the base and one file per value, added up per request",
    "merged": "llama.cpp, a server and a merged model for each combination",
    "keras": "KerasHub's `generate` of the adapted model, all requests in one batch",
}
METHOD = (
    "All requests of a round, spread evenly over the combinations; servers get as many "
    "at a time as a server has slots. Arms take turns in rounds, every other round in "
    "reverse order, after one round to warm up. Requests per second are those of a "
    "round over the median of its seconds. The first token is that of the answer, "
    "from when the request is sent, the median over requests and rounds: "
    "`first_token` under that load, `first_token_alone` with one request at a time; "
    "`generate` streams nothing, and gives all tokens at the end. Memory is of the "
    "servers' processes "
    "after the rounds (PSS, so what they share is counted once), without the client. "
    "llama.cpp is in float16, KerasHub in float32; its memory is not compared."
)
FEATURES = {
    "task": [f"task_{i}" for i in range(8)],
    "language": [f"language_{i}" for i in range(8)],
}
RANK = 4


@dataclasses.dataclass(frozen=True)
class Load:
    """What is asked for in a round.

    Attributes:
        requests: How many.
        prompt, answer: Their tokens.
    """

    requests: int = 32
    prompt: int = 32
    answer: int = 32

    def prompts(self, vocabulary: int) -> np.ndarray:
        """Random tokens, all prompts different: int32 `(requests, prompt)`."""
        shape = (self.requests, self.prompt)
        return np.random.default_rng(0).integers(
            vocabulary // 2, vocabulary - 3, shape, dtype="int32"
        )


def combinations(count: int) -> list[dict[str, str]]:
    """Distinct combinations; fewer of them are a part of more."""
    pairs = list(itertools.product(*FEATURES.values()))
    chosen = np.random.default_rng(0).permutation(len(pairs))[:count]
    return [dict(zip(FEATURES, pairs[i])) for i in chosen]


def adapted(base_folder: pathlib.Path, dtype: str) -> Any:
    """The base with random adapters."""
    model = smollm.load(base_folder, dtype)
    keras_flix.enable_flix(model, FEATURES, rank=RANK, targets="all-linear", seed=0)
    random = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(random.normal(size=variable.shape) * 0.02)
    model.compile(sampler="greedy")
    return model


def export(base_folder: pathlib.Path, folder: pathlib.Path, count: int) -> None:
    """Writes the base, a file per value, and merged models of `count` combinations."""
    model = adapted(base_folder, "float16")
    keras_flix.export_base(model, folder / "base.gguf")
    keras_flix.export_values(model, folder / "values", format="gguf")
    for index, combination in enumerate(combinations(count)):
        merged = keras_flix.merge_features(model, combination)
        keras_flix.export_base(merged, folder / f"merged_{index}.gguf")


Ask = Callable[[int], tuple[float, float, int]]
"""Sends the request of an index; see `LlamaServer.complete`."""


class Asked:
    """An arm of servers.

    Args:
        ask: Sends one request.
        load: What is asked for.
    """

    def __init__(self, ask: Ask, load: Load) -> None:
        self.ask, self.load = ask, load
        self.first: list[float] = []
        self.alone: list[float] = []

    def round(self) -> tuple[float]:
        """Seconds of a round."""
        start = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(SLOTS) as pool:
            answers = list(pool.map(self.ask, range(self.load.requests)))
        seconds = time.perf_counter() - start
        short = [count for _, _, count in answers if count != self.load.answer]
        if short:
            raise ValueError(f"Answers must have {self.load.answer} tokens: {short}")
        self.first += [first for first, _, _ in answers]
        self.alone += [self.ask(index)[0] for index in range(SLOTS)]
        return (seconds,)

    def forget(self) -> None:
        """Leaves the rounds so far out."""
        self.first, self.alone = [], []


def ask_server(
    servers: list[LlamaServer],
    requests: list[dict[str, Any]],
    prompts: np.ndarray,
    load: Load,
    index: int,
) -> tuple[float, float, int]:
    """Asks the server that has the index' combination, or the one that has all."""
    return servers[index % len(servers)].complete(
        prompt=prompts[index].tolist(),
        n_predict=load.answer,
        temperature=0.0,
        ignore_eos=True,
        return_tokens=True,
        **requests[index % len(requests)],
    )


def generate(model: Any, prompts: np.ndarray, load: Load, count: int) -> tuple[float]:
    """Seconds of KerasHub's `generate`."""
    tokens = np.zeros((load.requests, load.prompt + load.answer), "int32")
    tokens[:, : load.prompt] = prompts
    mask = (np.arange(tokens.shape[1]) < load.prompt).astype("int32")
    asked = combinations(count)
    features = {
        name: [asked[i % count][name] for i in range(load.requests)]
        for name in FEATURES
    }
    inputs = {
        "token_ids": tokens,
        "padding_mask": np.broadcast_to(mask, tokens.shape).copy(),
    }
    start = time.perf_counter()
    model.generate({**inputs, **features}, stop_token_ids=None)
    return (time.perf_counter() - start,)


def measure(
    folder: pathlib.Path, model: Any, load: Load, count: int, rounds: int
) -> dict[str, Any]:
    """All arms with so many distinct combinations."""
    index = keras_flix.serving.read_index(folder / "values")
    files = [folder / "values" / adapter["file"] for adapter in index.adapters]
    prompts = load.prompts(model.backbone.vocabulary_size)
    with contextlib.ExitStack() as stack:
        servers = {
            "values": [stack.enter_context(serving(folder / "base.gguf", files))],
            "merged": [
                stack.enter_context(serving(folder / f"merged_{i}.gguf"))
                for i in range(count)
            ],
        }
        composed = [index.request(one) for one in combinations(count)]
        requests = {"values": composed, "merged": [{"cache_prompt": False}]}
        asked = {
            name: Asked(
                functools.partial(
                    ask_server, servers[name], requests[name], prompts, load
                ),
                load,
            )
            for name in servers
        }
        timed: dict[str, Callable[[], tuple[float, ...]]] = {
            name: one.round for name, one in asked.items()
        }
        timed["keras"] = functools.partial(generate, model, prompts, load, count)
        for call in timed.values():
            call()
        for one in asked.values():
            one.forget()
        times = {
            name: [seconds for (seconds,) in found]
            for name, found in interleaved(timed, rounds).items()
        }
        memory = {
            name: round(sum(server.mebibytes() for server in found))
            for name, found in servers.items()
        }
    return {
        "combinations": count,
        "requests_per_second": {
            name: round(load.requests / statistics.median(found), 3)
            for name, found in times.items()
        },
        "first_token": {
            name: round(statistics.median(one.first), 4) for name, one in asked.items()
        },
        "first_token_alone": {
            name: round(statistics.median(one.alone), 4) for name, one in asked.items()
        },
        "mebibytes": memory,
        "ratios": {
            f"values / {name}": quartiles(paired(times, ("values",), (name,)))
            for name in ("merged", "keras")
        },
        "samples": {n: [round(t, 3) for t in found] for n, found in times.items()},
    }


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", type=pathlib.Path, default=smollm.default_folder())
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    for field in dataclasses.fields(Load):
        parser.add_argument(f"--{field.name}", type=int, default=field.default)
    parser.add_argument("--output", type=pathlib.Path, default=result_path("serving"))
    options = parser.parse_args()
    load = Load(options.requests, options.prompt, options.answer)
    if load.prompt + load.answer > CONTEXT:
        parser.error(f"a prompt and its answer must fit {CONTEXT} tokens")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        export(options.base, folder, max(options.counts))
        keras.backend.clear_session()
        model = adapted(options.base, "float32")
        # Token ids in, token ids out, as the servers get them.
        model.preprocessor = None
        cases = []
        for count in options.counts:
            cases.append(measure(folder, model, load, count, options.rounds))
            print({name: cases[-1][name] for name in list(cases[-1])[:5]}, flush=True)
        sizes = {
            "base": (folder / "base.gguf").stat().st_size,
            "values": sum(f.stat().st_size for f in folder.glob("values/*.gguf")),
        }
    result = {
        "method": METHOD,
        "arms": ARMS,
        "load": dataclasses.asdict(load),
        "slots": SLOTS,
        "xllamacpp": importlib.metadata.version("xllamacpp"),
        "rounds": options.rounds,
        "model": {
            "class": type(model).__name__,
            "parameters": int(
                sum(np.prod(v.shape) for v in model.backbone.non_trainable_variables)
            ),
            "features": FEATURES,
            "rank": RANK,
        },
        "file_mebibytes": {
            name: round(size / 2**20, 1) for name, size in sizes.items()
        },
        "cases": cases,
    }
    write_result(options.output, result)


if __name__ == "__main__":
    main()
