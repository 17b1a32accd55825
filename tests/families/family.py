"""What the tests know of one KerasHub family."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import keras_hub


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of KerasHub models, tiny and with random weights.

    Attributes:
        name: As in KerasHub's class names: `"Gemma3"` of `Gemma3Backbone`.
        build: Makes the backbone; every call gives the same weights.
        inputs: Makes a batch of the given size, as the dict (or, for vision,
            the array) that the backbone takes. Examples differ, and their
            padding does.
        tasks: By kind (`"causal_lm"`, `"seq_2_seq_lm"`, `"text_classifier"`,
            `"image_classifier"`, `"masked_lm"`, `"text_embedder"`), what makes a task,
            without a preprocessor, of a backbone.
        default: Names of the layers that the default targets adapt.
        all_linear: Names of those that `targets="all-linear"` adds.
        experts: Names of the kernels that `experts="shared"` adds.
        refused: Targets that are refused, and a part of the error's text.
        rows: Takes what belongs to single examples, batch first, out of the
            backbone's outputs: of a matrix of images against texts, the diagonal.
        mixes_examples: Why an example alone gives something else than in a
            batch even in the plain model; empty where it does not. Then only
            the merged model on the same batch can tell what is right.
        prompts: Makes a batch for `generate`, where it is not that of `inputs`
            with its last tokens masked.
    """

    name: str
    build: Callable[[], keras.Model]
    inputs: Callable[[int], Any]
    tasks: Mapping[str, Callable[[Any], keras.Model]] = dataclasses.field(
        default_factory=dict
    )
    default: frozenset[str] = frozenset()
    all_linear: frozenset[str] = frozenset()
    experts: frozenset[str] = frozenset()
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)
    rows: Callable[[Any], Any] = lambda outputs: outputs
    mixes_examples: str = ""
    prompts: Callable[[int], Any] | None = None


NEXT = {"DiffusionGemma", "EmbeddingGemma2", "ModernBert"}
"""Families that KerasHub has from its next version on."""


def has_backbone(name: str) -> bool:
    """Whether the installed KerasHub has a family, or should have it.

    Of `NEXT`, it need not.
    """
    return name not in NEXT or hasattr(keras_hub.models, f"{name}Backbone")


def builder(name: str, **sizes: Any) -> Callable[[], keras.Model]:
    """Makes `{name}Backbone` of the given sizes; every call gives the same weights."""

    def build() -> keras.Model:
        keras.utils.set_random_seed(0)
        return getattr(keras_hub.models, f"{name}Backbone")(**sizes)

    return build
