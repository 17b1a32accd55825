"""The arms: feature schemas of the library, and what is done to their ids."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

import keras_flix

ADDRESSED = ("task", "language", "family", "cell")
"""Features whose values the data states; `shared` is always on."""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way of adapting the base.

    Attributes:
        name: Unique in the tables.
        ranks: By axis.
        dropout: By axis; axes it leaves out have none.
        rescale, per_batch: See `keras_flix.FeatureDropout`.
        alpha: By axis; the scale is `alpha / rank`, 1 where it is left out.
        initial: What the library's initial `A` is multiplied with.
        targets: As in `enable_flix`.
        labels: `"true"`, or `"shuffled"`: each axis' values change places among
            the examples in training, so that ids tell nothing.
        apart: Whether each axis is trained in a model of its own, and their
            updates are added afterwards.
        outside: Trains PEFT's `"lora"` or `"poly"` instead of this library, or a
            hypernetwork, `"hyper"`, that makes this library's adapters.
        b_rate: How much faster than `A` every `B` learns (LoRA+).
        decay: Weight decay of the tables, decoupled from Adam.
        ema: Momentum of the average of the weights over the steps, which is scored
            instead of the last weights; 0 for none.
        blocks: By axis, the transformer blocks that it adapts; all where left out.
        stop: Whether the weights are those of the tenth of training after which
            *held-out* validation examples were answered best, instead of the last.
        one_a: Axes whose values share one trained `A`; each has its own `B`.
    """

    name: str
    ranks: dict[str, int]
    dropout: dict[str, float] = dataclasses.field(default_factory=dict)
    rescale: bool = False
    per_batch: bool = False
    alpha: dict[str, float] = dataclasses.field(default_factory=dict)
    initial: float = 1.0
    targets: str | None = "all-linear"
    labels: str = "true"
    apart: bool = False
    outside: str | None = None
    b_rate: float = 1.0
    decay: float = 0.0
    ema: float = 0.0
    blocks: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    stop: bool = False
    one_a: list[str] = dataclasses.field(default_factory=list)

    def axes(self) -> list[str]:
        """The features that the data states."""
        return [axis for axis in self.ranks if axis in ADDRESSED]

    def schema(self, values: dict[str, list[str]]) -> keras_flix.FeatureSchema:
        """The schema.

        Args:
            values: The values that occur in training, by axis.
        """
        features = []
        for axis, rank in self.ranks.items():
            dropout = keras_flix.FeatureDropout(
                self.dropout.get(axis, 0.0), self.rescale, self.per_batch
            )
            kind: dict[str, Any] = {"always": True}
            if axis in ADDRESSED:
                kind = {"values": values[axis]}
            features.append(
                keras_flix.Feature(
                    axis, rank=rank, dropout=dropout, alpha=self.alpha.get(axis), **kind
                )
            )
        return keras_flix.FeatureSchema(features)

    def ids(
        self, schema: keras_flix.FeatureSchema, examples: dict[str, Any]
    ) -> dict[str, np.ndarray]:
        """Ids by feature; -1 where training showed no such value."""
        entries = {axis: list(examples[axis]) for axis in self.axes()}
        return schema.encode(entries, unknown="absent") if entries else {}

    @property
    def active_rank(self) -> int:
        """What an example pays for."""
        return sum(self.ranks.values())


def shuffled(ids: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """The same ids, in an order that has nothing to do with the examples."""
    generator = np.random.default_rng(seed)
    return {axis: generator.permutation(entries) for axis, entries in ids.items()}


def random_values(
    schema: keras_flix.FeatureSchema, ids: dict[str, np.ndarray], seed: int
) -> dict[str, np.ndarray]:
    """A random value for each example and feature."""
    generator = np.random.default_rng(seed)
    return {
        axis: generator.integers(len(schema[axis].values), size=len(entries)).astype(
            "int32"
        )
        for axis, entries in ids.items()
    }


def absent(ids: dict[str, np.ndarray], axis: str) -> dict[str, np.ndarray]:
    """The same ids without one feature."""
    return {**ids, axis: np.full_like(ids[axis], -1)}
