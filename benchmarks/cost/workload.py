"""What is measured: one random Gemma and one batch."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import keras
import keras_hub
import numpy as np

TARGETS = ["query", "value"]
"""What KerasHub's `enable_lora` adapts in a Gemma."""

AXES = ("task", "language")

SIZES: dict[str, dict[str, int]] = {
    "quarter": {},
    "2b": {
        "layers": 18,
        "width": 2048,
        "head_dim": 256,
        "intermediate": 32768,
        "vocabulary": 256000,
        "batch": 4,
        "length": 512,
    },
}
"""Proportions of Gemma 2B at a quarter of its width, and Gemma 2B."""


@dataclasses.dataclass(frozen=True)
class Workload:
    """Sizes of the model, the batch and the adapters.

    Attributes:
        rank: Active rank of an example, and the LoRA's rank.
        values: Values per feature.
        dtype: Of weights and activations; adapters' tables stay in float32.
        compiled: Whether PyTorch compiles its steps; JAX always does.
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
    dtype: str = "float32"
    compiled: bool = False

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Adds one option per size, and one for all of them."""
        parser.add_argument("--preset-size", choices=SIZES, default="quarter")
        for field in dataclasses.fields(cls):
            name = "--" + field.name.replace("_", "-")
            if isinstance(field.default, bool):
                parser.add_argument(name, action="store_const", const=True)
            else:
                parser.add_argument(name, type=type(field.default))

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Workload:
        """Reads the options of `add_arguments`."""
        sizes: dict[str, Any] = dict(SIZES[arguments.preset_size])
        for field in dataclasses.fields(cls):
            given = getattr(arguments, field.name)
            if given is not None:
                sizes[field.name] = given
        return cls(**sizes)

    def as_arguments(self) -> list[str]:
        """The options that give this workload."""
        return [
            f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
            for name, value in dataclasses.asdict(self).items()
            if value is not False
        ]

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.batch * self.length

    def model(self) -> keras_hub.models.GemmaCausalLM:
        """A Gemma with weights that are the same in all arms, up to rounding."""
        if self.dtype != "float32":
            # Initializers draw other numbers in other dtypes.
            exact = dataclasses.replace(self, dtype="float32").model().get_weights()
            model = self._random_model()
            model.set_weights(exact)
            return model
        return self._random_model()

    def _random_model(self) -> keras_hub.models.GemmaCausalLM:
        keras.utils.set_random_seed(0)
        backbone = keras_hub.models.GemmaBackbone(
            vocabulary_size=self.vocabulary,
            num_layers=self.layers,
            num_query_heads=self.heads,
            num_key_value_heads=self.key_value_heads,
            hidden_dim=self.width,
            intermediate_dim=self.intermediate,
            head_dim=self.head_dim,
            dtype=self.dtype,
        )
        return keras_hub.models.GemmaCausalLM(backbone=backbone, preprocessor=None)

    def features(self, values: int) -> dict[str, list[str]]:
        """Both features, with this many values each."""
        return {axis: [f"{axis}_{i}" for i in range(values)] for axis in AXES}

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
