"""Models with an encoder and a decoder, on texts or on sound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import keras_hub
import numpy as np
from families.encoders import ATTENTION, FEED_FORWARD, VOCABULARY, builder, texts
from families.family import Family

T5_PROJECTORS = frozenset(
    f"{part}_projector" for part in ("query", "key", "value", "output")
)
GATED = frozenset({"gate_proj", "up_proj", "down_proj"})

T5GEMMA_SIZES: dict[str, Any] = {
    "vocabulary_size": VOCABULARY,
    "sliding_window": 4,
    "query_pre_attn_scalar": 6.0,
    "initializer_range": 0.2,
    **{
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {
            "hidden_dim": 16,
            "intermediate_dim": 24,
            "num_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 6,
            "layer_types": ["full_attention", "sliding_attention"],
        }.items()
    },
}


def pairs(size: int) -> dict[str, Any]:
    """Texts for the encoder, and shorter ones for the decoder."""
    batch = texts(size)
    encoder = {f"encoder_{key}": value for key, value in batch.items()}
    # The other way around, so that the two sides are padded differently.
    decoder = {f"decoder_{key}": value[::-1, :-1] for key, value in batch.items()}
    return encoder | {k: np.ascontiguousarray(v) for k, v in decoder.items()}


def only_sizes(sizes: dict[str, Any]) -> dict[str, Any]:
    """Changes for `builder` that leave its own sizes out."""
    names = ("num_layers", "num_heads", "hidden_dim", "intermediate_dim", "dropout")
    return {**dict.fromkeys((*names, "max_sequence_length")), **sizes}


def spectrograms(size: int) -> dict[str, Any]:
    batch = {k: v for k, v in pairs(size).items() if k.startswith("decoder")}
    features = np.random.default_rng(1).normal(size=(size, 10, 8))
    return {"encoder_features": features.astype("float32"), **batch}


def waves(size: int) -> dict[str, Any]:
    batch = {k: v for k, v in pairs(size).items() if k.startswith("decoder")}
    length = 2400
    sound = np.random.default_rng(1).normal(size=(size, length, 1))
    lengths = length - 300 * (np.arange(size) % 3)
    return {
        "encoder_input_values": sound.astype("float32"),
        "encoder_padding_mask": np.arange(length) < lengths[:, None],
        "decoder_token_ids": batch["decoder_token_ids"],
        "decoder_padding_mask": batch["decoder_padding_mask"].astype("bool"),
    }


def seq_2_seq_lm(name: str) -> dict[str, Callable[[Any], keras.Model]]:
    def build(backbone: Any) -> keras.Model:
        return getattr(keras_hub.models, name)(backbone, preprocessor=None)

    return {"seq_2_seq_lm": build}


def build_t5() -> keras.Model:
    """A T5 whose tokens differ: KerasHub draws embeddings of mean 1, not scale 1."""
    backbone = builder("T5", max_sequence_length=None, key_value_dim=6)()
    embeddings = backbone.token_embedding.embeddings
    embeddings.assign(np.random.default_rng(0).normal(size=embeddings.shape))
    return backbone


def build_edrec() -> keras.Model:
    """An EdRec whose norms scale by about one: KerasHub's start at two.

    Attention is so sharp then that on some weights no gradient comes back.
    """
    backbone = builder(
        "EdRec",
        vocabulary_size=None,
        num_layers=None,
        max_sequence_length=None,
        vocab_size=VOCABULARY,
        num_layers_enc=2,
        num_layers_dec=2,
    )()
    for variable in backbone.weights:
        if variable.name == "scale":
            variable.assign(np.zeros(variable.shape))
    return backbone


FAMILIES = [
    Family(
        "T5",
        build_t5,
        pairs,
        seq_2_seq_lm("T5Seq2SeqLM"),
        default=T5_PROJECTORS,
        all_linear=frozenset({"input_projector", "gate_projector"}),
    ),
    Family(
        "T5Gemma",
        builder("T5Gemma", **only_sizes(T5GEMMA_SIZES)),
        pairs,
        seq_2_seq_lm("T5GemmaSeq2SeqLM"),
        default=ATTENTION,
        all_linear=GATED,
    ),
    Family(
        "T5Gemma2",
        builder("T5Gemma2", **only_sizes(T5GEMMA_SIZES)),
        pairs,
        seq_2_seq_lm("T5Gemma2Seq2SeqLM"),
        default=ATTENTION,
        all_linear=GATED,
    ),
    Family(
        "Bart",
        builder("Bart"),
        pairs,
        seq_2_seq_lm("BartSeq2SeqLM"),
        default=ATTENTION,
        all_linear=FEED_FORWARD,
    ),
    # A user's items are its tokens.
    Family(
        "EdRec",
        build_edrec,
        pairs,
        seq_2_seq_lm("EdRecSeq2SeqLM"),
        default=ATTENTION,
        all_linear=GATED,
    ),
    Family(
        "Whisper",
        builder(
            "Whisper",
            max_sequence_length=None,
            num_mels=8,
            max_encoder_sequence_length=10,
            max_decoder_sequence_length=8,
        ),
        spectrograms,
        default=ATTENTION,
        all_linear=FEED_FORWARD,
    ),
    Family(
        "Moonshine",
        builder(
            "Moonshine",
            max_sequence_length=None,
            num_layers=None,
            num_heads=None,
            filter_dim=16,
            encoder_num_layers=2,
            decoder_num_layers=2,
            encoder_num_heads=2,
            decoder_num_heads=2,
        ),
        waves,
        seq_2_seq_lm("MoonshineAudioToText"),
        default=ATTENTION,
        all_linear=frozenset({"dense_1", "dense_2"}),
    ),
]
