"""One trial on the real base: trains one arm once, and scores it in every cell."""

from __future__ import annotations

import functools
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import keras
import torch

import keras_flix
from benchmarks.quality import evidence_arms
from benchmarks.quality.smollm import outside, sequences
from benchmarks.quality.smollm.fast_llama import FastLlama
from benchmarks.quality.smollm.fast_training import Training, mean_of, scores
from benchmarks.quality.smollm.real_settings import Trial
from benchmarks.quality.words import build
from benchmarks.shared import smollm
from keras_flix.models.adapted.adaptation import adaptation_of

CURVE = 6
"""Into how many parts training is cut, each followed by a look at validation."""

CURVE_EXAMPLES = 2
"""Validation examples of each seen cell in that look; at the end all count."""


@functools.cache
def mix_of(tasks: int, languages: int, examples: int) -> Any:
    """The mixture; all trials have the same, whatever their seed."""
    return build(tasks=tasks, languages=languages, examples=examples)


def values_of(mix: Any) -> dict[str, list[str]]:
    """The values that occur in training, by feature."""
    trained = sequences.columns(mix.splits["train"], mix.languages)
    return {
        name: list(dict.fromkeys(trained[name])) for name in evidence_arms.ADDRESSED
    }


def adapted(trial: Trial, mix: Any, folder: pathlib.Path) -> Any:
    """The base with the trial's adapters, not trained yet."""
    keras.utils.set_random_seed(trial.seed)
    model = smollm.load(folder)
    model.preprocessor.sequence_length = sequences.LENGTH
    schema = trial.arm.schema(values_of(mix))
    keras_flix.enable_flix(model, schema, targets=trial.arm.targets, seed=trial.seed)
    for variable in model.trainable_variables:
        if variable.name.endswith("_a") and trial.arm.initial != 1.0:
            variable.assign(variable * trial.arm.initial)
    return model


def tokenized(
    trial: Trial, mix: Any, model: Any, answers: Sequence[str]
) -> dict[str, sequences.Sequences]:
    """All splits; `"train"` in the order in which the trial sees it.

    `"outside"` are prompts outside the mixture, with what the base answers.
    """
    schema = adaptation_of(model).schema

    def of(examples: dict[str, Any], labels: str = "true") -> sequences.Sequences:
        ids = trial.arm.ids(schema, examples)
        if labels == "shuffled":
            ids = evidence_arms.shuffled(ids, trial.seed)
        return sequences.tokenize(model.preprocessor, examples, ids)

    found = {
        split: of(sequences.columns(examples, mix.languages))
        for split, examples in mix.splits.items()
        if examples and split != "train"
    }
    found["outside"] = of(outside.columns(answers)).without_end()
    if trial.steps:
        training = sequences.mixture(mix, trial.temperature)
        count = trial.steps * trial.batch_size
        found["train"] = of(training.sample(count, seed=trial.seed), trial.arm.labels)
    return found


def run(trial: Trial, folder: pathlib.Path, saved: pathlib.Path) -> dict[str, Any]:
    """Trains and scores.

    Args:
        trial: What to train.
        folder: Of the base.
        saved: Where a run that is stopped leaves off, and a later one goes on.

    Returns:
        JSON types: the trial, digests of base and mixture, a curve of nats per answer
        in seen validation cells, scores by split and cell, and processor seconds.
    """
    start = time.process_time()
    mix = mix_of(trial.tasks, trial.languages, trial.examples)
    model = adapted(trial, mix, folder)
    found = tokenized(trial, mix, model, outside.answers_of(folder))
    fast = FastLlama(model, getattr(torch, trial.dtype))

    def seen(cell: str) -> bool:
        task, _, language = cell.partition("/")
        return mix.cells[task, language] == "seen"

    look = found["validation"].first_of_cells(CURVE_EXAMPLES, seen)
    curve: list[dict[str, float]] = []
    spent = {"train": 0.0, "total": 0.0}
    losses: list[float] = []
    if trial.steps:
        training = Training(
            fast,
            found["train"],
            steps=trial.steps,
            batch_size=trial.batch_size,
            rate=trial.learning_rate,
        )
        if saved.exists():
            state = training.restore(saved)
            curve, spent = state["curve"], state["spent"]
        for part in range(1, CURVE + 1):
            step = trial.steps * part // CURVE
            if step <= training.adam.done:
                continue
            begin = time.process_time()
            training.until(step)
            spent["train"] += time.process_time() - begin
            cells = scores(fast, look)
            curve.append({"step": step, "nats": mean_of(cells, "nats")})
            print(f"  step {step}: {curve[-1]['nats']:.3f} nats", flush=True)
            spent["total"] += time.process_time() - start
            start = time.process_time()
            if part < CURVE:
                training.save(saved, curve=curve, spent=spent)
        losses = training.losses
    result = {
        split: scores(fast, examples)
        for split, examples in found.items()
        if split != "train"
    }
    last = losses[-max(len(losses) // 10, 1) :]
    saved.unlink(missing_ok=True)
    return {
        "trial": trial.config(),
        "arm": trial.arm.name,
        "seed": trial.seed,
        "learning_rate": trial.learning_rate,
        "base": smollm.source_of(folder),
        "mixture": {"digest": mix.digest, "versions": mix.versions},
        "trainable_parameters": sum(table.numel() for table in fast.tables),
        "loss": sum(last) / len(last) if last else None,
        "validation": mean_of(result["validation"], "nats", seen),
        "products": str(fast.products).removeprefix("torch."),
        "curve": curve,
        "groups": {f"{t}/{n}": group for (t, n), group in mix.cells.items()},
        "scores": result,
        "processor_seconds": {
            "train": round(spent["train"], 1),
            "total": round(spent["total"] + time.process_time() - start, 1),
        },
    }
