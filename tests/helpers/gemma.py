"""A small random Gemma that the tests share, with its tokenizer."""

from __future__ import annotations

import io

import keras
import keras_hub
import numpy as np
import sentencepiece

SIZES = {
    "num_layers": 2,
    "num_query_heads": 4,
    "num_key_value_heads": 2,
    "hidden_dim": 16,
    "intermediate_dim": 32,
    "head_dim": 6,
}
FEATURES = {"task": ["qa", "parse", "list"], "language": ["en", "sw", "yo"]}


def train_tokenizer(**options) -> bytes:
    """A SentencePiece model of a few words, with Gemma's special tokens."""
    proto = io.BytesIO()
    words = ["the quick brown fox", "jumps over", "the lazy dog", "qa en sw yo"]
    defaults = {
        "vocab_size": 300,
        "model_type": "unigram",
        "byte_fallback": True,
        "hard_vocab_limit": False,
        "pad_id": 0,
        "eos_id": 1,
        "bos_id": 2,
        "unk_id": 3,
        "pad_piece": "<pad>",
        "eos_piece": "<eos>",
        "bos_piece": "<bos>",
        "unk_piece": "<unk>",
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 20),
        model_writer=proto,
        **{**defaults, **options},
    )
    return proto.getvalue()


def make_backbone(vocabulary_size=40, dtype="float32", **kwargs):
    """A Gemma with grouped attention whose heads * head_dim is not hidden_dim."""
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=vocabulary_size, dtype=dtype, **{**SIZES, **kwargs}
    )
    # The stock initial embeddings are large next to an adapter's effect.
    return backbone


def randomize(model, scale=0.3, seed=0):
    """Gives every adapter table random numbers, which tells values apart."""
    generator = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(generator.normal(size=variable.shape) * scale)
    return model


def to_numpy(x):
    return keras.ops.convert_to_numpy(x)
