"""Trials of PEFT's LoRA and Poly, on the same base and the same examples."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import keras_hub
import numpy as np

import keras_flix
from benchmarks.quality import cldr_mix
from benchmarks.quality.scoring import by_cell, inputs, mean_score
from benchmarks.quality.trial import Trial, values_of


def run(trial: Trial) -> dict[str, Any]:
    """Trains and scores, as `trial.run` does; Poly's task ids are its one feature."""
    # On use: they need PyTorch, transformers and PEFT.
    from benchmarks.quality import peft_arms

    start = time.time()
    ((axis, rank),) = trial.arm.ranks.items()
    poly = trial.arm.outside == "poly"
    schema = keras_flix.FeatureSchema({axis: values_of(trial).get(axis, [axis])})

    def arrays(examples: dict[str, Any]) -> dict[str, Any]:
        x, y, weight = inputs(examples, {})
        ids = {"task_ids": trial.arm.ids(schema, examples)[axis]} if poly else {}
        return {"x": x, "y": y, "sample_weight": weight, **ids}

    mixture = cldr_mix.training_mixture(trial.data, trial.base)
    examples = mixture.sample(trial.steps * trial.batch_size, seed=trial.seed)
    base = keras_hub.models.GemmaCausalLM.from_preset(
        cldr_mix.base_folder(trial.base), dtype="float32"
    )
    with tempfile.TemporaryDirectory() as folder:
        directory = peft_arms.export_base(base, folder)
        options = {"n_tasks": len(schema[axis].values)} if poly else {}
        model = peft_arms.adapt(
            directory, trial.arm.outside, rank=rank, seed=trial.seed, **options
        )
    losses = peft_arms.train(
        model,
        **arrays(examples),
        learning_rate=trial.learning_rate,
        steps=trial.steps,
        batch_size=trial.batch_size,
        seed=trial.seed,
    )
    seconds = time.time() - start

    def scores(examples: dict[str, Any]) -> dict[str, float]:
        hits = peft_arms.hits(model, **arrays(examples))
        return by_cell(examples["name"], 100.0 * hits)

    last = max(len(losses) // 10, 1)
    validation = cldr_mix.validation_examples(trial.data, trial.base)
    return {
        "trial": trial.config(),
        "seed": trial.seed,
        "babel": cldr_mix.BABEL,
        **peft_arms.facts(model),
        "loss": float(np.mean(losses[-last:])),
        "train_seconds": round(seconds, 1),
        "validation": mean_score(scores(validation)),
        "scores": {"true": scores(cldr_mix.test_examples(trial.data, trial.base))},
        "seconds": round(time.time() - start, 1),
    }
