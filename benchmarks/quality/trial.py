"""One trial: trains one arm once and scores it in every cell."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import keras
import keras_hub
import numpy as np

import keras_flix
from benchmarks.quality import cldr_mix, evidence_arms, keys
from keras_flix import text_metrics
from keras_flix.evaluation import forced_exact_match

Cells = dict[str, float]
"""Exact match in percent by cell, `task/language`."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """What fixes a trial.

    Its defaults, and those of `Arm` and `Data`, must stay what they are, since stored
    results leave out what is as usual.

    Attributes:
        arm: The arm.
        data: The part of CLDR-mix.
        learning_rate: The peak, after a warm-up of a tenth of the steps; from
            there it falls to zero on a cosine.
        seed: Of the initial tables, the order of the examples and dropout.
        steps, batch_size: Of training.
        ablate: Whether to score with each axis absent and with random ids too.
        generate: Whether to generate the answers too, for their chrF.
        base: Folder of the base, beside this module.
    """

    arm: evidence_arms.Arm
    learning_rate: float
    data: cldr_mix.Data = cldr_mix.Data()
    seed: int = 0
    steps: int = 300
    batch_size: int = 32
    ablate: bool = False
    generate: bool = False
    base: str = "base"

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Trial:
        """The trial that `config` described."""
        config = dict(config)
        config["arm"] = evidence_arms.Arm(**config["arm"])
        config["data"] = cldr_mix.Data(**config.get("data", {}))
        return cls(**config)

    def config(self) -> dict[str, Any]:
        """The trial as JSON types, without what is as usual."""
        return keys.unusual(self)

    @property
    def key(self) -> str:
        """A file name: the arm, and a digest of all that fixes the trial."""
        return keys.key_of(self.arm.name, self.config())


def inputs(
    examples: dict[str, Any], ids: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """`(x, y, sample_weight)` of `fit`."""
    x = {name: examples[name] for name in ("token_ids", "padding_mask")}
    return {**x, **ids}, examples["labels"], examples["weight"]


def optimizer(learning_rate: float, steps: int) -> keras.optimizers.Optimizer:
    """Adam with warm-up and cosine decay, clipped by the global norm."""
    warmup = max(steps // 10, 1)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        warmup_target=learning_rate,
        warmup_steps=warmup,
        decay_steps=max(steps - warmup, 1),
    )
    return keras.optimizers.Adam(schedule, global_clipnorm=1.0)


def values_of(trial: Trial) -> dict[str, list[str]]:
    """The values that occur in training, by feature."""
    mixture = cldr_mix.training_mixture(trial.data, trial.base)
    return {feature.name: list(feature.values) for feature in mixture.schema()}


def adapted(
    trial: Trial,
) -> tuple[keras_hub.models.GemmaCausalLM, keras_flix.FeatureSchema]:
    """The base with the trial's adapters, not trained yet."""
    keras.utils.set_random_seed(trial.seed)
    model = keras_hub.models.GemmaCausalLM.from_preset(
        cldr_mix.base_folder(trial.base), dtype="float32"
    )
    model.preprocessor = cldr_mix.preprocessor(trial.base)
    schema = trial.arm.schema(values_of(trial))
    keras_flix.enable_flix(model, schema, targets=trial.arm.targets, seed=trial.seed)
    for variable in model.trainable_variables:
        if variable.name.endswith("_a") and trial.arm.initial != 1.0:
            variable.assign(variable * trial.arm.initial)
    return model, schema


def train(trial: Trial) -> tuple[Any, keras_flix.FeatureSchema, float]:
    """Trains; returns the model, its schema and the mean loss at the end."""
    model, schema = adapted(trial)
    mixture = cldr_mix.training_mixture(trial.data, trial.base)
    examples = mixture.sample(trial.steps * trial.batch_size, seed=trial.seed)
    ids = trial.arm.ids(schema, examples)
    if trial.arm.labels == "shuffled":
        ids = evidence_arms.shuffled(ids, trial.seed)
    x, y, weight = inputs(examples, ids)
    # The arrays hold tokens already, so that no arm pays for tokenizing.
    model.preprocessor, preprocessor = None, model.preprocessor
    model.compile(
        optimizer=optimizer(trial.learning_rate, trial.steps),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        sampler="greedy",
    )
    losses = LossesOfSteps()
    model.fit(
        x,
        y,
        sample_weight=weight,
        batch_size=trial.batch_size,
        shuffle=False,
        verbose=0,
        callbacks=[losses],
    )
    model.preprocessor = preprocessor
    return model, schema, losses.at_end()


class LossesOfSteps(keras.callbacks.Callback):
    """Keeps the running mean of the loss, of which `at_end` is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.means: list[float] = []

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        self.means.append(float((logs or {})["loss"]))

    def at_end(self) -> float:
        """The mean loss of the last tenth of the steps."""
        sums = np.array(self.means) * np.arange(1, len(self.means) + 1)
        last = max(len(sums) // 10, 1)
        before = sums[-last - 1] if len(sums) > last else 0.0
        return float((sums[-1] - before) / last)


def added(
    trial: Trial, validation: dict[str, Any]
) -> tuple[Any, keras_flix.FeatureSchema, float]:
    """Task arithmetic: trains each feature alone, then adds their updates.

    What the sum is multiplied with is chosen on validation examples.
    """
    tables: dict[str, np.ndarray] = {}
    losses = []
    for axis, rank in trial.arm.ranks.items():
        arm = dataclasses.replace(trial.arm, ranks={axis: rank}, apart=False)
        model, _, loss = train(dataclasses.replace(trial, arm=arm))
        losses.append(loss)
        tables |= {v.path: np.array(v) for v in model.trainable_variables}
    model, schema = adapted(trial)
    compile_for_scoring(model)

    def multiply(factor: float) -> None:
        for variable in model.trainable_variables:
            scale = factor if variable.name.endswith("_b") else 1.0
            variable.assign(tables[variable.path] * scale)

    best = (-1.0, 0.0)
    for factor in (1.0, 0.7, 0.5):
        multiply(factor)
        score = mean_score(scores(model, validation, trial.arm.ids(schema, validation)))
        best = max(best, (score, factor))
    multiply(best[1])
    return model, schema, float(np.mean(losses))


def compile_for_scoring(model: Any) -> None:
    """Compiles a model that is not trained."""
    model.compile(
        optimizer=None,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        sampler="greedy",
    )


def scores(model: Any, examples: dict[str, Any], ids: dict[str, np.ndarray]) -> Cells:
    """Exact match in percent by cell."""
    preprocessor, model.preprocessor = model.preprocessor, None
    try:
        hits = forced_exact_match(model, *inputs(examples, ids), batch_size=64)
    finally:
        model.preprocessor = preprocessor
    return by_cell(examples["name"], 100.0 * hits)


def by_cell(names: Any, values: Any) -> Cells:
    """The mean of each cell."""
    groups: dict[str, list[float]] = {}
    for name, value in zip(names, values):
        groups.setdefault(name, []).append(float(value))
    return {name: round(float(np.mean(group)), 3) for name, group in groups.items()}


def mean_score(cells: Cells) -> float:
    """The mean over cells."""
    return float(np.mean(list(cells.values())))


def run(trial: Trial) -> dict[str, Any]:
    """Trains and scores.

    Returns:
        JSON types: the trial, its size, seconds, the loss at the end, the mean
        exact match on validation examples, and the exact match of all test cells in
        `scores["true"]`, besides views with other ids.
    """
    start = time.time()
    validation = cldr_mix.validation_examples(trial.data, trial.base)
    test = cldr_mix.test_examples(trial.data, trial.base)
    if trial.arm.apart:
        model, schema, loss = added(trial, validation)
    else:
        model, schema, loss = train(trial)
    seconds = time.time() - start
    ids = trial.arm.ids(schema, test)
    views = {"true": ids}
    if trial.ablate:
        views["random"] = evidence_arms.random_values(schema, ids, trial.seed)
        views |= {f"without_{axis}": evidence_arms.absent(ids, axis) for axis in ids}
    result = {
        "trial": trial.config(),
        "seed": trial.seed,
        "trainable_parameters": sum(
            int(np.prod(v.shape)) for v in model.trainable_variables
        ),
        "loss": loss,
        "train_seconds": round(seconds, 1),
        "validation": mean_score(
            scores(model, validation, trial.arm.ids(schema, validation))
        ),
        "scores": {view: scores(model, test, ids) for view, ids in views.items()},
    }
    if trial.generate:
        result |= generated(model, test, ids)
    result["seconds"] = round(time.time() - start, 1)
    return result


def generated(
    model: Any, test: dict[str, Any], ids: dict[str, np.ndarray]
) -> dict[str, Cells]:
    """chrF and exact match of the answers that `generate` gives, by cell."""
    names = np.asarray(test["name"])
    answers: list[str] = []
    size = 128
    for start in range(0, len(names), size):
        # The last batch is filled up, so that one function is compiled.
        rows = np.arange(start, start + size) % len(names)
        batch = {"prompts": list(np.asarray(test["prompts"])[rows])}
        batch |= {axis: entries[rows] for axis, entries in ids.items()}
        answers += model.generate(batch, strip_prompt=True)
    answers = answers[: len(names)]
    references = list(test["responses"])
    chrf = {
        name: text_metrics.chrf(
            [answers[i] for i in np.flatnonzero(names == name)],
            [references[i] for i in np.flatnonzero(names == name)],
        )
        for name in dict.fromkeys(names)
    }
    match = [100.0 * (a == r) for a, r in zip(answers, references)]
    return {"chrf": chrf, "generated": by_cell(names, match)}
