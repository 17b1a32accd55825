"""Language models that read images and sound beside texts, tiny and random."""

from __future__ import annotations

from typing import Any

import keras
import keras_hub
import numpy as np

LENGTH = 12
VOCABULARY = 40
SIZES = {
    "vocabulary_size": VOCABULARY,
    "image_size": 16,
    "num_layers": 2,
    "num_query_heads": 4,
    "num_key_value_heads": 2,
    "hidden_dim": 16,
    "intermediate_dim": 24,
    "head_dim": 8,
    "sliding_window_size": 6,
}
IMAGE_TOKENS, AUDIO_TOKENS = 4, 2
KINDS = ["sliding_attention", "full_attention"]


def gemma3(**sizes: Any) -> keras.Model:
    """Images of 16 by 16 make four tokens each."""
    keras.utils.set_random_seed(0)
    encoder = keras_hub.models.Gemma3VisionEncoder(
        image_size=16,
        patch_size=4,
        num_heads=2,
        hidden_dim=8,
        num_layers=1,
        intermediate_dim=12,
        output_dim=16,
        pool_size=2,
    )
    return keras_hub.models.Gemma3Backbone(
        **{**SIZES, **sizes}, vision_encoder=encoder, use_sliding_window_attention=True
    )


def gemma4_encoders(sound: bool = True) -> dict[str, Any]:
    """What reads images as those of `gemma3`, and sound of two tokens."""
    keras.utils.set_random_seed(0)
    vision = keras_hub.models.Gemma4VisionEncoder(
        image_size=16,
        patch_size=4,
        pool_size=2,
        num_layers=1,
        num_heads=2,
        head_dim=4,
        num_key_value_heads=2,
        hidden_dim=8,
        intermediate_dim=12,
        output_dim=16,
    )
    if not sound:
        return {"vision_encoder": vision}
    audio = keras_hub.models.Gemma4AudioEncoder(
        input_feat_size=8,
        hidden_size=8,
        num_heads=2,
        num_layers=1,
        chunk_size=2,
        context_left=3,
        context_right=0,
        conv_kernel_size=3,
        sscp_conv_channels=(4, 2),
        output_proj_dims=8,
        output_dim=16,
    )
    return {"vision_encoder": vision, "audio_encoder": audio}


def gemma4(media: bool = True, **sizes: Any) -> keras.Model:
    """Of images and sound, or of neither."""
    keras.utils.set_random_seed(0)
    encoders: dict[str, Any] = {}
    if media:
        encoders = {**gemma4_encoders(), "num_audio_tokens_per_clip": AUDIO_TOKENS}
    return keras_hub.models.Gemma4Backbone(
        **{**SIZES, **sizes}, **encoders, layer_types=KINDS
    )


def embedding_gemma2() -> keras.Model:
    """An embedder of texts with images and sound, which KerasHub has from 0.33 on."""
    return keras_hub.models.EmbeddingGemma2Backbone(
        **SIZES, **gemma4_encoders(), layer_types=KINDS, embedding_dim=12
    )


def diffusion_gemma() -> keras.Model:
    """It denoises texts with images, and KerasHub has it from 0.33 on."""
    return keras_hub.models.DiffusionGemmaBackbone(
        **SIZES, **gemma4_encoders(sound=False), layer_types=KINDS
    )


def texts(size: int) -> dict[str, np.ndarray]:
    """A batch of token ids of different lengths."""
    ids = np.random.default_rng(0).integers(5, VOCABULARY, (size, LENGTH))
    mask = np.arange(LENGTH) < LENGTH - np.arange(size)[:, None] % 4
    return {
        "token_ids": np.where(mask, ids, 0).astype("int32"),
        "padding_mask": mask.astype("int32"),
    }


def placed(name: str, size: int, first: int, count: int) -> dict[str, np.ndarray]:
    """Which tokens are an image's or a sound's, elsewhere in each example."""
    # One place further in the second example, and so on.
    indices = first + np.arange(size)[:, None] % 2 + np.arange(count)
    mask = (np.arange(LENGTH)[:, None] == indices[:, None]).any(axis=-1)
    return {
        f"{name}_indices": indices.astype("int32"),
        f"{name}_mask": mask.astype("int32"),
    }


def gemma3_inputs(size: int, count: int = 1) -> dict[str, np.ndarray]:
    """Texts with so many images each."""
    generator = np.random.default_rng(1)
    images = generator.normal(size=(size, count, 16, 16, 3)).astype("float32")
    return {
        **texts(size),
        **placed("vision", size, 1, IMAGE_TOKENS * count),
        "images": images,
    }


def gemma4_inputs(size: int) -> dict[str, np.ndarray]:
    """Texts with an image and a sound each."""
    generator = np.random.default_rng(1)
    grid = np.stack(np.meshgrid(np.arange(4), np.arange(4)), axis=-1).reshape(16, 2)
    return {
        **texts(size),
        "position_ids": np.tile(np.arange(LENGTH, dtype="int32"), (size, 1)),
        **placed("vision", size, 1, IMAGE_TOKENS),
        "pixel_values": generator.normal(size=(size, 1, 16, 48)).astype("float32"),
        "pixel_position_ids": np.tile(grid.astype("int32"), (size, 1, 1, 1)),
        **placed("audio", size, 6, AUDIO_TOKENS),
        "audio_mel": generator.normal(size=(size, 1, 8, 8)).astype("float32"),
        "audio_mel_mask": np.ones((size, 1, 8), "int32"),
    }


def embedding_gemma2_inputs(size: int) -> dict[str, np.ndarray]:
    """As Gemma 4's, but for what nothing is masked by."""
    own = gemma4_inputs(size)
    for name in ("position_ids", "vision_mask", "audio_mask"):
        del own[name]
    return own


def diffusion_gemma_inputs(size: int) -> dict[str, np.ndarray]:
    """As Gemma 4's, without sound."""
    own = gemma4_inputs(size)
    names = ("token_ids", "padding_mask", "position_ids", "vision_indices")
    return {k: v for k, v in own.items() if k in names or k.startswith("pixel_")}
