"""Trials of a hypernetwork: one network makes the adapters of every task and language.

The idea of Hyper-X (arXiv 2205.12148), with LoRA's updates for its bottlenecks: a small
network of a task's, a language's and a block's embedding gives `A` and `B` of every
adapted layer. All pairs share it, so that one it never saw has an adapter, too.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import keras
import numpy as np
from keras import ops

import keras_flix
from benchmarks.quality import cldr_mix, training, trial as trials
from benchmarks.quality.scoring import inputs
from benchmarks.quality.trial import Trial

EMBEDDING, HIDDEN = 32, 64
"""Widths of an embedding, and of what all heads read."""


class Hypernetwork(keras.layers.Layer):
    """Makes the tables of an adapted model, a row for each pair.

    Args:
        tables: The variables that it makes, `(pairs, ...)`.
        tasks, languages: How many there are.
        language: A layer that gives their embeddings by id; `None` for free ones.
    """

    def __init__(
        self,
        tables: list[keras.Variable],
        tasks: int,
        languages: int,
        language: keras.layers.Layer | None = None,
    ) -> None:
        super().__init__()
        self.places = [place_of(table) for table in tables]
        blocks = 1 + max(block for block, _ in self.places)
        self.task = keras.layers.Embedding(tasks, EMBEDDING, "normal")
        self.language = language or keras.layers.Embedding(
            languages, EMBEDDING, "normal"
        )
        self.block = keras.layers.Embedding(blocks, EMBEDDING, "normal")
        self.inner = keras.layers.Dense(HIDDEN, activation="gelu")
        self.shapes = [tuple(table.shape[1:]) for table in tables]
        self.heads: dict[str, keras.layers.Dense] = {}
        self.first: list[keras.Variable] = []
        for table, (_, kind), shape in zip(tables, self.places, self.shapes):
            if kind not in self.heads:
                # No update yet, as ever: every `B` is zero, and all pairs have one `A`.
                self.heads[kind] = keras.layers.Dense(
                    int(np.prod(shape)), use_bias=False, kernel_initializer="zeros"
                )
            value = ops.convert_to_numpy(table)[0]
            first = self.add_weight(shape=shape, initializer="zeros")
            first.assign(value)
            self.first.append(first)

    def build(self, input_shape: Any) -> None:
        for layer in (self.task, self.language, self.block):
            layer.build((None,))
        self.inner.build((None, 3 * EMBEDDING))
        for head in self.heads.values():
            head.build((None, HIDDEN))

    def call(self, pairs: Any) -> list[Any]:
        """The tables of `pairs`: int `(rows, 2)`, a task and a language."""
        return self.made(self.task(pairs[:, 0]), self.language(pairs[:, 1]))

    def made(self, tasks: Any, languages: Any) -> list[Any]:
        """The tables of pairs by their embeddings, `(rows, EMBEDDING)` each."""
        hidden = {}
        for block in {block for block, _ in self.places}:
            where = ops.broadcast_to(self.block(ops.array([block])), ops.shape(tasks))
            known = ops.concatenate([tasks, languages, where], axis=-1)
            hidden[block] = self.inner(known)
        tables = []
        for (block, kind), shape, first in zip(self.places, self.shapes, self.first):
            rows = self.heads[kind](hidden[block])
            tables.append(ops.reshape(rows, (-1, *shape)) + first)
        return tables


def place_of(table: keras.Variable) -> tuple[int, str]:
    """The block that a table is in, and what is alike in all blocks."""
    _, _, after = table.path.partition("decoder_block_")
    block, _, kind = after.partition("/")
    if not after:
        raise ValueError(
            "A hypernetwork makes tables of transformer blocks only. Received: "
            f"{table.path!r}. Leave that layer out of the targets."
        )
    return int(block), kind


class Projection(keras.layers.Layer):
    """Embeddings that are a linear map of features, so that a new id has one, too.

    Args:
        features: `(ids, features)`, of mean 0.
    """

    def __init__(self, features: np.ndarray) -> None:
        super().__init__()
        # Adam then moves an embedding about as far in a step as it does a free one.
        self.scale = 1.0 / np.abs(features).sum(axis=1).mean()
        self.features = (self.scale * features).astype("float32")
        size = np.sqrt((self.features**2).sum(axis=1).mean())
        self.dense = keras.layers.Dense(
            EMBEDDING,
            use_bias=False,
            # As large as a free one at first.
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.05 / size),
        )

    def build(self, input_shape: Any) -> None:
        self.dense.build((None, self.features.shape[1]))

    def call(self, ids: Any) -> Any:
        return self.dense(ops.take(ops.array(self.features), ids, axis=0))

    def of(self, features: np.ndarray) -> Any:
        """Embeddings of others, by features of theirs."""
        return self.dense(ops.array((self.scale * features).astype("float32")))


class Hyper(keras.Model):
    """The frozen base, with the adapters that a hypernetwork makes.

    Args:
        adapted: The model, its only feature the pair.
        pairs: Int `(pairs, 2)`: task and language of every value of that feature.
        language: As `Hypernetwork` takes it.
    """

    def __init__(
        self,
        adapted: Any,
        pairs: np.ndarray,
        language: keras.layers.Layer | None = None,
    ) -> None:
        super().__init__()
        # Hidden from Keras, for which its variables would train and be saved.
        self._adapted = lambda: adapted
        self.pairs = pairs
        tasks, languages = (int(count) + 1 for count in pairs.max(axis=0))
        self.network = Hypernetwork(
            adapted.trainable_variables, tasks, languages, language
        )
        self.network.build(None)

    def build(self, input_shape: Any) -> None:
        self.built = True

    def call(self, x: dict[str, Any]) -> Any:
        """The logits."""
        adapted = self._adapted()
        logits, _ = adapted.stateless_call(
            self.tables(),
            [variable.value for variable in adapted.non_trainable_variables],
            x,
        )
        return logits

    def tables(self) -> list[Any]:
        """Those of all pairs."""
        return self.network(ops.convert_to_tensor(self.pairs))

    def give(self) -> None:
        """Assigns the tables of all pairs to the adapted model."""
        adapted = self._adapted()
        for variable, table in zip(adapted.trainable_variables, self.tables()):
            variable.assign(table)


def run(trial: Trial) -> dict[str, Any]:
    """Trains and scores, as `trial.run` does; `details` must be on."""
    if not trial.details or keras.config.backend() != "jax":
        raise ValueError(
            "A hypernetwork is tried with details, on JAX. Received: "
            f"details={trial.details}, {keras.config.backend()!r}. Set KERAS_BACKEND."
        )
    start = time.time()
    data = trial.data
    tasks, languages = data.chosen_tasks, data.chosen_languages
    names = [f"{task}/{language}" for task in tasks for language in languages]
    # Held-out pairs are values like the others; what trains is the network.
    named = dataclasses.replace(trial, arm=dataclasses.replace(trial.arm, outside=None))
    model, schema = trials.adapted(named, {"cell": names})
    pairs = np.array(
        [(t, n) for t in range(len(tasks)) for n in range(len(languages))], "int32"
    )
    hyper = Hyper(model, pairs)
    examples = cldr_mix.training_mixture(data, trial.base).sample(
        trial.steps * trial.batch_size, seed=trial.seed
    )
    x, y, weight = inputs(examples, ids_of(schema, examples))
    hyper.compile(
        optimizer=training.optimizer(trial.learning_rate, trial.steps, trial.arm),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    losses = training.LossesOfSteps()
    hyper.fit(
        x,
        y,
        sample_weight=weight,
        batch_size=trial.batch_size,
        shuffle=False,
        verbose=0,
        callbacks=[losses],
    )
    seconds = time.time() - start
    hyper.give()
    trials.compile_for_scoring(model)
    return {
        "trial": trial.config(),
        "seed": trial.seed,
        "babel": cldr_mix.BABEL,
        "trainable_parameters": hyper.network.count_params(),
        "loss": losses.at_end(),
        "train_seconds": round(seconds, 1),
        **trials.detailed(model, trial, lambda examples: ids_of(schema, examples)),
        "seconds": round(time.time() - start, 1),
    }


def ids_of(
    schema: keras_flix.FeatureSchema, examples: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Ids of the pairs, held-out ones too."""
    return schema.encode({"cell": list(examples["name"])})
