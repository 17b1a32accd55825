"""One trial: trains one arm once and scores it in every cell."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import keras
import keras_hub
import numpy as np

import keras_flix
from benchmarks.quality import cldr_mix, evidence_arms, keys, training
from benchmarks.quality.scoring import (
    Cells,
    by_cell,
    generated,
    inputs,
    mean_score,
    measured,
    scores,
)


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
        details: Whether to record nats per answer, and scores of validation examples
            of held-out cells, too.
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
    details: bool = False

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


def values_of(trial: Trial) -> dict[str, list[str]]:
    """The values that occur in training, by feature."""
    mixture = cldr_mix.training_mixture(trial.data, trial.base)
    return {feature.name: list(feature.values) for feature in mixture.schema()}


def adapted(
    trial: Trial, values: dict[str, list[str]] | None = None
) -> tuple[keras_hub.models.GemmaCausalLM, keras_flix.FeatureSchema]:
    """The base with the trial's adapters, not trained yet.

    Args:
        trial: The trial.
        values: By feature, where they are not those that occur in training.
    """
    keras.utils.set_random_seed(trial.seed)
    model = keras_hub.models.GemmaCausalLM.from_preset(
        cldr_mix.base_folder(trial.base), dtype="float32"
    )
    model.preprocessor = cldr_mix.preprocessor(trial.base)
    schema = trial.arm.schema(values or values_of(trial))
    keras_flix.enable_flix(model, schema, targets=trial.arm.targets, seed=trial.seed)
    for variable in model.trainable_variables:
        if variable.name.endswith("_a") and trial.arm.initial != 1.0:
            variable.assign(variable * trial.arm.initial)
        if variable.name in training.shared_tables(trial.arm):
            # With the same gradient in every step, they stay the same.
            first = np.array(variable)[:1]
            variable.assign(np.broadcast_to(first, variable.shape))
    for axis, blocks in trial.arm.blocks.items():
        kept = tuple(f"decoder_block_{block}/" for block in blocks)
        for variable in model.trainable_variables:
            if f"flix_{axis}_" in variable.path and not any(
                block in variable.path for block in kept
            ):
                # Its `B` stays zero, so it adds nothing.
                variable.trainable = False
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
        optimizer=training.optimizer(trial.learning_rate, trial.steps, trial.arm),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        sampler="greedy",
    )
    # Between parts of training, weights are looked at.
    parts = 10 if trial.arm.stop else 1
    best = BestWeights(model)
    for rows in np.array_split(np.arange(len(y)), parts):
        losses = training.LossesOfSteps()
        model.fit(
            {name: value[rows] for name, value in x.items()},
            y[rows],
            sample_weight=weight[rows],
            batch_size=trial.batch_size,
            shuffle=False,
            verbose=0,
            callbacks=[losses],
        )
        if trial.arm.stop:
            best.keep(-held_out_nats(model, trial, schema))
    if trial.arm.stop:
        best.restore()
    model.preprocessor = preprocessor
    return model, schema, losses.means[-1] if trial.arm.stop else losses.at_end()


def held_out_nats(model: Any, trial: Trial, schema: keras_flix.FeatureSchema) -> float:
    """Nats per answer on validation examples of held-out cells."""
    examples = cldr_mix.held_out_validation(trial.data, trial.base)
    return float(measured(model, examples, trial.arm.ids(schema, examples))[1].mean())


class BestWeights:
    """Keeps a model's trained weights of the moment with the best score."""

    def __init__(self, model: Any) -> None:
        self.variables = model.trainable_variables
        self.best, self.values = -np.inf, []

    def keep(self, score: float) -> None:
        """Keeps the weights as they are now, if the score is the best so far."""
        if score > self.best:
            self.best = score
            self.values = [np.array(variable) for variable in self.variables]

    def restore(self) -> None:
        """Gives the model the weights of the best score."""
        for variable, value in zip(self.variables, self.values):
            variable.assign(value)


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
        "babel": cldr_mix.BABEL,
        "trainable_parameters": sum(
            int(np.prod(v.shape)) for v in model.trainable_variables
        ),
        "loss": loss,
        "train_seconds": round(seconds, 1),
    }
    if trial.details:
        result |= detailed(model, trial, lambda of: trial.arm.ids(schema, of))
    else:
        own = trial.arm.ids(schema, validation)
        result["validation"] = mean_score(scores(model, validation, own))
        result["scores"] = {v: scores(model, test, i) for v, i in views.items()}
    if trial.generate:
        result |= generated(model, test, ids)
    result["seconds"] = round(time.time() - start, 1)
    return result


def detailed(
    model: Any,
    trial: Trial,
    ids_of: Callable[[dict[str, Any]], dict[str, np.ndarray]],
) -> dict[str, Any]:
    """Exact match and nats, of seen and of held-out cells, for choices and for tests.

    Without new languages: `base_instructed` has met them.

    Args:
        model: That was trained.
        trial: The trial.
        ids_of: Makes the ids of examples.
    """

    def both(examples: dict[str, Any]) -> tuple[Cells, Cells]:
        hits, nats = measured(model, examples, ids_of(examples))
        names = examples["name"]
        return by_cell(names, 100.0 * hits), by_cell(names, nats)

    seen = both(cldr_mix.validation_examples(trial.data, trial.base))
    held_out = both(cldr_mix.held_out_validation(trial.data, trial.base))
    test = both(cldr_mix.test_examples(trial.data, trial.base, new_languages=False))
    return {
        "validation": mean_score(seen[0]),
        "validation_nats": mean_score(seen[1]),
        "validation_held_out": mean_score(held_out[0]),
        "validation_held_out_nats": mean_score(held_out[1]),
        "scores": {"true": test[0]},
        "nats": test[1],
    }
