"""`bench`: what adapters cost on this machine, in pairs of steps."""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Callable
from typing import Any

import keras
import keras_hub
import numpy as np

from keras_flix import _compat
from keras_flix.command_line.output import Answer, Table, progress
from keras_flix.models.enable import enable_flix

AXES = {name: [f"{name}{i}" for i in range(8)] for name in ("task", "language")}
WARM_UP = 2


def bench(arguments: argparse.Namespace) -> Answer:
    """Times FLix against the plain base, and against a LoRA of the same active rank."""
    for name in ("batch", "length", "rounds", "rank"):
        if getattr(arguments, name) < 1:
            raise ValueError(
                f"--{name} must be at least 1. Received: {getattr(arguments, name)}. "
                "Pass a positive integer."
            )
    with progress(3 + 2 * (WARM_UP + arguments.rounds)) as begin:
        begin("building three models")
        base, lora, flix = (_model(arguments) for _ in range(3))
        lora.backbone.enable_lora(len(AXES) * arguments.rank)
        targets = [
            re.escape(layer.path)
            for layer in _compat.flatten_layers(lora.backbone)
            if getattr(layer, "lora_enabled", False)
        ]
        enable_flix(flix, AXES, rank=arguments.rank, targets=targets)
        for model in (lora, flix):
            model.compile(
                keras.optimizers.Adam(1e-3),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            )
        x, ids, y = _batch(base, arguments)
        forward = _paired(
            arguments,
            begin,
            "forward",
            lambda: flix.predict_on_batch({**x, **ids}),
            lambda: base.predict_on_batch(x),
        )
        train = _paired(
            arguments,
            begin,
            "train",
            lambda: flix.train_on_batch({**x, **ids}, y),
            lambda: lora.train_on_batch(x, y),
        )
    results = {"forward": forward, "train": train}
    others = {"forward": "base", "train": "LoRA"}
    backend = keras.config.backend()
    rows = [["step", "FLix", "compared with", "ratio", "quartiles"]]
    for name, result in results.items():
        low, high = result["quartiles"]
        other = f"{others[name]} {result['other_seconds'] * 1e3:.1f} ms"
        own = f"{result['flix_seconds'] * 1e3:.1f} ms"
        rows.append(
            [name, own, other, f"{result['ratio']:.3f}", f"{low:.3f}-{high:.3f}"]
        )
    title = (
        f"{backend}, {base.count_params() / 1e6:,.1f} M parameters, batch "
        f"{arguments.batch} x {arguments.length}, active rank "
        f"{len(AXES) * arguments.rank}: medians of {arguments.rounds} paired steps"
    )
    data = {
        "backend": backend,
        "preset": arguments.preset,
        "parameters": base.count_params(),
        "batch": arguments.batch,
        "length": arguments.length,
        "rank": arguments.rank,
        "rounds": arguments.rounds,
        **results,
    }
    return Answer(data, [Table(title, rows)])


def _model(arguments: argparse.Namespace) -> Any:
    if arguments.preset is not None:
        return keras_hub.models.CausalLM.from_preset(
            arguments.preset, preprocessor=None
        )
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=1024,
        num_layers=2,
        num_query_heads=4,
        num_key_value_heads=1,
        hidden_dim=256,
        intermediate_dim=2048,
        head_dim=64,
    )
    return keras_hub.models.GemmaCausalLM(backbone=backbone, preprocessor=None)


def _batch(model: Any, arguments: argparse.Namespace) -> tuple[Any, Any, Any]:
    generator = np.random.default_rng(0)
    shape = (arguments.batch, arguments.length)
    tokens = generator.integers(3, model.backbone.vocabulary_size, shape)
    x = {"token_ids": tokens.astype("int32"), "padding_mask": np.ones(shape, "int32")}
    ids = {
        name: (np.arange(arguments.batch) % len(values)).astype("int32")
        for name, values in AXES.items()
    }
    return x, ids, np.roll(x["token_ids"], -1, axis=1)


def _paired(
    arguments: argparse.Namespace,
    begin: Callable[[str], None],
    name: str,
    flix: Callable[[], Any],
    other: Callable[[], Any],
) -> dict[str, Any]:
    """Medians of two kinds of steps, taken in turn, and of their ratios."""
    times: list[list[float]] = [[], []]
    for index in range(WARM_UP + arguments.rounds):
        begin(f"{name}: {'warm-up' if index < WARM_UP else 'step'}")
        order = [(0, flix), (1, other)]
        for which, step in order if index % 2 == 0 else order[::-1]:
            start = time.perf_counter()
            step()
            if index >= WARM_UP:
                times[which].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(*times)]
    low, high = np.quantile(ratios, [0.25, 0.75]).tolist()
    return {
        "flix_seconds": statistics.median(times[0]),
        "other_seconds": statistics.median(times[1]),
        "ratio": statistics.median(ratios),
        "quartiles": [low, high],
    }


def add_bench_command(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "bench",
        parents=[common],
        help="what adapters cost on this machine: a forward pass against the base, "
        "a training step against KerasHub's LoRA",
    )
    parser.add_argument("--preset", help="a causal LM (default: a small random Gemma)")
    parser.add_argument("--rank", type=int, default=4, help="of each of two features")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.set_defaults(run=bench)
