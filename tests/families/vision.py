"""Models that read images, alone or next to texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import keras_hub
import numpy as np
from families.encoders import ATTENTION, LENGTH, VOCABULARY, builder, texts
from families.family import Family
from keras import ops

IMAGE_SHAPE = (16, 16, 3)
TOWER: dict[str, Any] = {
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 16,
    "intermediate_dim": 24,
}
MLP = frozenset({"dense_1", "dense_2"})
PROJECTIONS = frozenset({"vision_projection", "text_projection"})


def images(size: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(size, *IMAGE_SHAPE)).astype("float32")


def named(name: str) -> Callable[[int], Any]:
    """Images in a dict, for backbones that name their input."""
    return lambda size: {name: images(size)}


def videos(size: int) -> np.ndarray:
    return np.stack([images(size), images(size)[::-1]], axis=1)


def with_texts(end: int) -> Callable[[int], Any]:
    """Images and texts that end with the token at which CLIP reads them."""

    def make(size: int) -> dict[str, Any]:
        batch = texts(size)
        last = batch["padding_mask"].sum(axis=1) - 1
        batch["token_ids"][np.arange(size), last] = end
        return {"images": images(size), "token_ids": batch["token_ids"]}

    return make


def own_pairs(outputs: Any) -> Any:
    """Each image against the text of the same example."""
    return {name: ops.diagonal(logits) for name, logits in outputs.items()}


def vision(name: str, **changes: Any) -> Callable[[], keras.Model]:
    options = {
        "image_shape": IMAGE_SHAPE,
        "patch_size": 4,
        "vocabulary_size": None,
        "max_sequence_length": None,
        "dropout": None,
    }
    return builder(name, **{**options, **changes})


def two_towers(name: str, **options: Any) -> Callable[[], keras.Model]:
    """Makes `{name}Backbone` of a vision and a text encoder."""
    models = keras_hub.models

    def build() -> keras.Model:
        keras.utils.set_random_seed(0)
        text_sizes = {"vocabulary_size": VOCABULARY, "embedding_dim": 16, **TOWER}
        return getattr(models, f"{name}Backbone")(
            vision_encoder=getattr(models, f"{name}VisionEncoder")(
                image_shape=IMAGE_SHAPE, patch_size=4, **TOWER
            ),
            text_encoder=getattr(models, f"{name}TextEncoder")(
                max_sequence_length=LENGTH, **text_sizes
            ),
            **options,
        )

    return build


def image_classifier(name: str) -> dict[str, Callable[[Any], keras.Model]]:
    def build(backbone: Any) -> keras.Model:
        cls = getattr(keras_hub.models, f"{name}ImageClassifier")
        return cls(backbone, num_classes=3, preprocessor=None)

    return {"image_classifier": build}


FAMILIES = [
    Family(
        "ViT",
        vision("ViT", intermediate_dim=None, mlp_dim=24),
        images,
        image_classifier("ViT"),
        default=ATTENTION,
        all_linear=MLP,
    ),
    Family(
        "DeiT",
        vision("DeiT"),
        images,
        image_classifier("DeiT"),
        default=ATTENTION,
        all_linear=frozenset({"dense", "output"}),
    ),
    Family(
        "CLIP",
        two_towers("CLIP", projection_dim=8),
        with_texts(end=VOCABULARY - 1),
        default=ATTENTION,
        all_linear=MLP | PROJECTIONS,
        rows=own_pairs,
    ),
    Family(
        "SigLIP",
        two_towers("SigLIP"),
        with_texts(end=1),
        default=ATTENTION,
        all_linear=frozenset({"fc1", "fc2"}),
        rows=own_pairs,
    ),
    Family(
        "MetaCLIP2",
        two_towers("MetaCLIP2", projection_dim=8),
        with_texts(end=2),
        default=ATTENTION,
        all_linear=MLP | PROJECTIONS,
        rows=own_pairs,
    ),
    Family(
        "DINOV2",
        vision("DINOV2", position_embedding_shape=IMAGE_SHAPE),
        named("images"),
        default=ATTENTION,
        all_linear=frozenset({"fc1", "fc2"}),
    ),
    Family(
        "DINOV3",
        vision("DINOV3"),
        named("pixel_values"),
        default=frozenset({"q_proj", "k_proj", "v_proj", "o_proj"}),
        all_linear=frozenset({"up_proj", "down_proj"}),
    ),
    Family(
        "SwinTransformer",
        builder(
            "SwinTransformer",
            **dict.fromkeys(
                (
                    "vocabulary_size",
                    "num_layers",
                    "hidden_dim",
                    "intermediate_dim",
                    "dropout",
                    "max_sequence_length",
                )
            ),
            image_shape=IMAGE_SHAPE,
            embed_dim=8,
            depths=[2, 1],
            num_heads=[1, 2],
            window_size=2,
            patch_size=2,
            drop_path=0.0,
        ),
        images,
        image_classifier("SwinTransformer"),
        default=frozenset({"attention_qkv", "attention_projection"}),
        all_linear=frozenset({"fc1", "fc2", "reduction"}),
    ),
    Family(
        "VideoPrism",
        builder(
            "VideoPrism",
            vocabulary_size=None,
            num_layers=None,
            dropout=None,
            max_sequence_length=None,
            image_shape=IMAGE_SHAPE,
            patch_size=4,
            num_frames=2,
            num_spatial_layers=2,
            num_temporal_layers=2,
            num_auxiliary_layers=0,
        ),
        videos,
        default=frozenset({"query", "key", "value", "output"}),
        all_linear=MLP,
    ),
]
