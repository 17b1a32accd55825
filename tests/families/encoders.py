"""Text encoders."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import keras_hub
import numpy as np
from families import family
from families.family import Family, has_backbone

VOCABULARY = 40
LENGTH = 8
SIZES = {
    "vocabulary_size": VOCABULARY,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 16,
    "intermediate_dim": 24,
    "dropout": 0.0,
    "max_sequence_length": 16,
}

ATTENTION = frozenset({"query", "key", "value", "attention_output"})
FEED_FORWARD = frozenset({"feedforward_intermediate_dense", "feedforward_output_dense"})
DENSE_LAYERS = frozenset(f"{part}_dense_layer" for part in "qkvo")
POOLER = frozenset({"pooled_dense"})
"""The dense layer on the first token, which BERT trains with the backbone."""


def builder(name: str, **changes: Any) -> Callable[[], keras.Model]:
    """Makes `{name}Backbone` of `SIZES`; `None` leaves a size out."""
    options = {k: v for k, v in {**SIZES, **changes}.items() if v is not None}
    return family.builder(name, **options)


def texts(size: int, *, segments: bool = False, padded: bool = True) -> dict[str, Any]:
    """A batch of token ids of different lengths, if `padded`."""
    generator = np.random.default_rng(0)
    token_ids = generator.integers(5, VOCABULARY, (size, LENGTH))
    lengths = LENGTH - np.arange(size) % 4 * padded
    mask = np.arange(LENGTH) < lengths[:, None]
    batch = {
        "token_ids": np.where(mask, token_ids, 0).astype("int32"),
        "padding_mask": mask.astype("int32"),
    }
    if segments:
        batch["segment_ids"] = (np.arange(LENGTH) >= lengths[:, None] // 2).astype(
            "int32"
        )
    return batch


def texts_without_mask(size: int) -> dict[str, Any]:
    """For backbones that find the padding out by themselves."""
    batch = texts(size, segments=True)
    return {key: batch[key] for key in ("token_ids", "segment_ids")}


with_segments = functools.partial(texts, segments=True)


def tasks(name: str) -> dict[str, Callable[[Any], keras.Model]]:
    """A classifier and a masked language model of `{name}Backbone`."""

    def text_classifier(backbone: Any) -> keras.Model:
        cls = getattr(keras_hub.models, f"{name}TextClassifier")
        return cls(backbone, num_classes=3, preprocessor=None)

    def masked_lm(backbone: Any) -> keras.Model:
        cls = getattr(keras_hub.models, f"{name}MaskedLM")
        return cls(backbone, preprocessor=None)

    return {"text_classifier": text_classifier, "masked_lm": masked_lm}


def embedder(name: str) -> dict[str, Callable[[Any], keras.Model]]:
    """One vector per text, of a `{name}Backbone`."""

    def text_embedder(backbone: Any) -> keras.Model:
        cls = getattr(keras_hub.models, f"{name}TextEmbedder")
        return cls(backbone, preprocessor=None)

    return {"text_embedder": text_embedder}


def esm_tasks() -> dict[str, Callable[[Any], keras.Model]]:
    models = keras_hub.models
    return {
        "text_classifier": lambda b: models.ESMProteinClassifier(
            b, num_classes=3, preprocessor=None
        ),
        "masked_lm": lambda b: models.ESMMaskedPLM(b, preprocessor=None),
    }


FAMILIES = [
    Family(
        "Bert",
        builder("Bert"),
        with_segments,
        {**tasks("Bert"), **embedder("Bert")},
        default=ATTENTION,
        all_linear=FEED_FORWARD | POOLER,
    ),
    Family(
        "Roberta",
        builder("Roberta"),
        texts,
        tasks("Roberta"),
        default=ATTENTION,
        all_linear=FEED_FORWARD,
    ),
    Family(
        "XLMRoberta",
        builder("XLMRoberta"),
        texts,
        {**tasks("XLMRoberta"), **embedder("XLMRoberta")},
        default=ATTENTION,
        all_linear=FEED_FORWARD,
    ),
    Family(
        "DistilBert",
        builder("DistilBert"),
        texts,
        tasks("DistilBert"),
        default=ATTENTION,
        all_linear=FEED_FORWARD,
    ),
    # Twice the same layer, for each of the two depths.
    Family(
        "Albert",
        builder("Albert", embedding_dim=8),
        with_segments,
        tasks("Albert"),
        default=ATTENTION,
        all_linear=FEED_FORWARD | POOLER | {"embedding_projection"},
    ),
    Family(
        "Electra",
        builder(
            "Electra", vocabulary_size=None, vocab_size=VOCABULARY, embedding_dim=8
        ),
        with_segments,
        default=ATTENTION,
        all_linear=FEED_FORWARD | POOLER | {"embeddings_projection"},
    ),
    # Query and key also project the relative positions, once per example.
    Family(
        "DebertaV3",
        builder("DebertaV3", bucket_size=4),
        texts,
        tasks("DebertaV3"),
        default=ATTENTION,
        all_linear=FEED_FORWARD,
    ),
    Family(
        "RoformerV2",
        builder("RoformerV2", max_sequence_length=None, head_size=8),
        texts_without_mask,
        tasks("RoformerV2"),
        default=DENSE_LAYERS,
        all_linear=FEED_FORWARD,
    ),
    Family(
        "XLNet",
        builder("XLNet", max_sequence_length=None),
        with_segments,
        default=ATTENTION,
        all_linear=FEED_FORWARD | {"encoding"},
        mixes_examples="KerasHub's XLNet reshapes relative positions and padding "
        "masks where it should transpose them",
    ),
    # No attention: there is nothing to adapt by default.
    Family(
        "FNet",
        builder("FNet", num_heads=None),
        texts_without_mask,
        # Its masked language model leaves the pooler out, which all-linear adapts.
        {"text_classifier": tasks("FNet")["text_classifier"]},
        all_linear=POOLER
        | {"embedding_projection", "intermediate_dense", "output_dense"},
    ),
    Family(
        "ESM",
        builder("ESM"),
        lambda size: {"token_ids": texts(size)["token_ids"]},
        esm_tasks(),
        default=DENSE_LAYERS,
        all_linear=FEED_FORWARD,
    ),
    Family(
        "ModernBert",
        builder(
            "ModernBert",
            dropout=None,
            max_sequence_length=None,
            local_attention_window=4,
            global_attn_every_n_layers=2,
        ),
        texts,
        tasks("ModernBert"),
        default=frozenset({"qkv", "output_dense"}),
        all_linear=frozenset({"wi_0", "wi_1", "wo"}),
    ),
    # Gemma 4's blocks, which multiply by the kernels of their feed-forward layers.
    Family(
        "EmbeddingGemma2",
        family.builder(
            "EmbeddingGemma2",
            vocabulary_size=VOCABULARY,
            image_size=16,
            num_layers=2,
            num_query_heads=4,
            num_key_value_heads=2,
            hidden_dim=16,
            intermediate_dim=24,
            head_dim=6,
            embedding_dim=12,
            sliding_window_size=3,
            sliding_window_pattern=2,
            hidden_size_per_layer_input=4,
        ),
        texts,
        embedder("EmbeddingGemma2"),
        default=ATTENTION,
        all_linear=frozenset({"ffw_gating", "ffw_gating_2", "ffw_linear"})
        | {"per_layer_input_gate", "per_layer_up_proj", "per_layer_model_projection"}
        | {"embedding_projection"},
    ),
]
FAMILIES = [family for family in FAMILIES if has_backbone(family.name)]
