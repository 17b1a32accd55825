"""What is measured: one random Gemma, adapted in several ways."""

from __future__ import annotations

import argparse
import dataclasses
import time
from typing import Any

import keras
import keras_hub
import numpy as np

import keras_flix

TARGETS = ["query", "value"]
"""What KerasHub's `enable_lora` adapts in a Gemma."""

AXES = ("task", "language")

ARMS = {
    "floor": "frozen Gemma, one norm scale below all layers trains",
    "lora": "KerasHub `enable_lora(rank=8)`",
    "flix": "`enable_flix`, 2 axes of 8 values, rank 4 each",
    "flix_many": "`enable_flix`, 2 axes of 512 values, rank 4 each",
}


@dataclasses.dataclass(frozen=True)
class Workload:
    """Sizes of the model, the batch and the adapters.

    The model has the proportions of Gemma 2B at a quarter of its width.

    Attributes:
        rank: Active rank of an example, and the LoRA's rank.
        values: Values per axis.
        many_values: Values per axis of the arm with many.
    """

    layers: int = 4
    width: int = 512
    heads: int = 8
    key_value_heads: int = 1
    head_dim: int = 64
    intermediate: int = 8192
    vocabulary: int = 1024
    batch: int = 16
    length: int = 128
    rank: int = 8
    values: int = 8
    many_values: int = 512

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Adds one option per size."""
        for field in dataclasses.fields(cls):
            name = "--" + field.name.replace("_", "-")
            parser.add_argument(name, type=int, default=field.default)

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Workload:
        """Reads the options of `add_arguments`."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: getattr(arguments, name) for name in names})

    def as_arguments(self) -> list[str]:
        """The options that give this workload."""
        return [
            f"--{name.replace('_', '-')}={value}"
            for name, value in dataclasses.asdict(self).items()
        ]

    def model(self) -> keras_hub.models.GemmaCausalLM:
        """A Gemma with weights that are the same in all arms."""
        keras.utils.set_random_seed(0)
        backbone = keras_hub.models.GemmaBackbone(
            vocabulary_size=self.vocabulary,
            num_layers=self.layers,
            num_query_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            hidden_dim=self.width,
            intermediate_dim=self.intermediate,
            head_dim=self.head_dim,
            dtype="float32",
        )
        return keras_hub.models.GemmaCausalLM(backbone=backbone, preprocessor=None)

    def arm(self, name: str) -> Arm:
        """The model of one arm, adapted and compiled."""
        model = self.model()
        values = self.values
        if name == "floor":
            model.trainable = False
            scale = model.backbone.transformer_layers[0].pre_attention_norm
            scale.trainable = model._trainable = model.backbone._trainable = True
        elif name == "lora":
            model.backbone.enable_lora(rank=self.rank)
        else:
            values = self.many_values if name == "flix_many" else self.values
            features = {axis: [f"{axis}_{i}" for i in range(values)] for axis in AXES}
            keras_flix.enable_flix(
                model, features, rank=self.rank // len(AXES), targets=TARGETS, seed=0
            )
        model.compile(
            optimizer=keras.optimizers.Adam(1e-4),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        return Arm(name, model, *self.data(values if "flix" in name else None))

    def data(self, values: int | None) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """A batch of random tokens; with `values`, of mixed features."""
        random = np.random.default_rng(0)
        shape = (self.batch, self.length)
        x = {
            "token_ids": random.integers(self.vocabulary, size=shape, dtype="int32"),
            "padding_mask": np.ones(shape, "int32"),
        }
        y = random.integers(self.vocabulary, size=shape, dtype="int32")
        if values is not None:
            for axis in AXES:
                x[axis] = random.integers(values, size=self.batch, dtype="int32")
        return x, y


@dataclasses.dataclass
class Arm:
    """A compiled model and its batch."""

    name: str
    model: keras.Model
    x: dict[str, np.ndarray]
    y: np.ndarray
    optimizer_seconds: float = 0.0

    def watch_optimizer(self) -> None:
        """Sums up CPU time of `optimizer.apply`; tells only when run eagerly."""
        apply = self.model.optimizer.apply

        def watched(*args: Any, **kwargs: Any) -> None:
            start = time.process_time()
            apply(*args, **kwargs)
            self.optimizer_seconds += time.process_time() - start

        self.model.optimizer.apply = watched

    def step(self) -> float:
        """One training step of Keras, which waits for its loss."""
        loss = float(np.ravel(self.model.train_on_batch(self.x, self.y))[0])
        if not np.isfinite(loss):
            raise RuntimeError(f"Arm {self.name!r} has a loss of {loss}.")
        return loss

    def timed_step(self) -> tuple[float, float, float]:
        """Seconds of one step: by wall clock, of CPU time, and of it outside of
        the optimizer (where that is watched)."""
        self.optimizer_seconds = 0.0
        wall, cpu = time.perf_counter(), time.process_time()
        self.step()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return wall, cpu, cpu - self.optimizer_seconds

    def adapted_layers(self) -> list[str]:
        """Paths of the layers that have trainable variables."""
        layers = self.model._flatten_layers(include_self=False)
        return sorted(
            layer.path for layer in layers if any(v.trainable for v in own(layer))
        )

    def facts(self) -> dict[str, Any]:
        """What the arm is."""
        size = sum(int(np.prod(v.shape)) for v in self.model.trainable_variables)
        return {
            "what": ARMS[self.name],
            "jit_compile": self.model.jit_compile,
            "trainable_parameters": size,
        }


def own(layer: keras.layers.Layer) -> list[keras.Variable]:
    """A layer's variables without those of its sublayers."""
    return layer._trainable_variables + layer._non_trainable_variables
