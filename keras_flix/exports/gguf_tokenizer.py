"""KerasHub's tokenizers as the metadata that llama.cpp's are made of."""

from __future__ import annotations

import warnings
from typing import Any

import keras_hub

from keras_flix._utils.optional_packages import needed

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of tokens, by the numbers of both SentencePiece and GGUF."""

LOWEST = -1e4
"""The score of tokens that text never becomes."""

MODELS = {"BPE": "llama", "UNIGRAM": "t5"}
"""By the type of a SentencePiece model, llama.cpp's word for it."""

SPLITS = {
    "GPT2Tokenizer": "gpt-2",
    "Llama3Tokenizer": "llama-bpe",
    "MistralTekkenTokenizer": "tekken",
    "QwenTokenizer": "qwen2",
    "Qwen3Tokenizer": "qwen2",
}
"""By KerasHub's class, llama.cpp's word for how text is split before merges."""


def write_tokenizer(writer: Any, preprocessor: Any, vocabulary_size: int) -> None:
    """Describes a tokenizer, and with what a prompt begins.

    Args:
        writer: A `gguf.GGUFWriter`.
        preprocessor: That of a `CausalLM`.
        vocabulary_size: How many rows the embeddings have.

    Raises:
        ValueError: If llama.cpp has no such tokenizer.

    Warns:
        UserWarning: If it has, but reads some texts as other tokens.
    """
    tokenizer = getattr(preprocessor, "tokenizer", None)
    hub = keras_hub.tokenizers
    scores: list[float] = []
    if isinstance(tokenizer, hub.SentencePieceTokenizer):
        tokens, kinds, scores = _write_sentence_piece(writer, tokenizer)
    elif isinstance(tokenizer, hub.BytePairTokenizer) and _split(tokenizer):
        tokens, kinds = _write_byte_pairs(writer, tokenizer)
    else:
        raise ValueError(
            "A GGUF model holds its tokenizer, so the model must be a CausalLM with a "
            "preprocessor, whose tokenizer is of SentencePiece or one of "
            f"{list(SPLITS)}. Received: a {type(tokenizer).__name__}. Give the model "
            "its preprocessor."
        )
    if len(tokens) > vocabulary_size:
        raise ValueError(
            "The embeddings must have a row for each token. Received: "
            f"{vocabulary_size} rows and {len(tokens)} tokens. Give the model the "
            "preprocessor that belongs to it."
        )
    missing = range(len(tokens), vocabulary_size)
    writer.add_token_list([*tokens, *(f"[PAD{i}]".encode() for i in missing)])
    writer.add_token_types([*kinds, *[UNUSED] * len(missing)])
    if scores:
        writer.add_token_scores([*scores, *[LOWEST] * len(missing)])
    for name, add in (
        ("start_token_id", writer.add_bos_token_id),
        ("end_token_id", writer.add_eos_token_id),
        ("end_token2_id", writer.add_eot_token_id),
        ("pad_token_id", writer.add_pad_token_id),
    ):
        if getattr(tokenizer, name, None) is not None:
            add(int(getattr(tokenizer, name)))
    # As training had it: the server's prompts begin as the preprocessor's do.
    starts = preprocessor.add_start_token and tokenizer.start_token_id is not None
    writer.add_add_bos_token(bool(starts))
    writer.add_add_eos_token(False)


def _write_sentence_piece(
    writer: Any, tokenizer: Any
) -> tuple[list[bytes], list[int], list[float]]:
    # A dependency of KerasHub, as what it needs itself.
    schema = needed(
        "sentencepiece.sentencepiece_model_pb2", "A SentencePiece tokenizer", "gguf"
    )
    model = schema.ModelProto()
    model.ParseFromString(tokenizer.proto)
    kind = schema.TrainerSpec.ModelType.Name(model.trainer_spec.model_type)
    if kind not in MODELS:
        raise ValueError(
            f"A SentencePiece model must be of one of the types {list(MODELS)}, which "
            f"llama.cpp has. Received: {kind!r}. Serve this model by `export_lora` and "
            "transformers."
        )
    writer.add_tokenizer_model(MODELS[kind])
    writer.add_tokenizer_pre("default")
    spec = model.normalizer_spec
    if kind == "UNIGRAM":
        writer.add_remove_extra_whitespaces(spec.remove_extra_whitespaces)
        writer.add_precompiled_charsmap(spec.precompiled_charsmap)
    _warn_of_other_reading(kind, model)
    writer.add_add_space_prefix(spec.add_dummy_prefix)
    writer.add_unk_token_id(model.trainer_spec.unk_id)
    pieces = [piece.piece.encode() for piece in model.pieces]
    kinds = [piece.type for piece in model.pieces]
    return pieces, kinds, [piece.score for piece in model.pieces]


def _warn_of_other_reading(kind: str, model: Any) -> None:
    """Tells what text llama.cpp reads as other tokens: nothing with most models."""
    spec = model.normalizer_spec
    other = []
    if kind == "BPE" and spec.remove_extra_whitespaces:
        other.append("spaces at its ends or several in a row")
    if kind == "BPE" and spec.precompiled_charsmap:
        other.append(f"what {spec.name!r} normalizes")
    if kind == "UNIGRAM" and model.trainer_spec.byte_fallback:
        other.append("characters that are in no piece")
    if other:
        warnings.warn(
            "llama.cpp reads a text as other tokens than this model's tokenizer does, "
            f"where it has {', or '.join(other)}. Where prompts may, send the server "
            "the token ids of `preprocessor.generate_preprocess` instead of text.",
            stacklevel=5,
        )


def _split(tokenizer: Any) -> str | None:
    return next(
        (SPLITS[c.__name__] for c in type(tokenizer).__mro__ if c.__name__ in SPLITS),
        None,
    )


def _write_byte_pairs(writer: Any, tokenizer: Any) -> tuple[list[bytes], list[int]]:
    by_id = {int(i): token for token, i in tokenizer.vocabulary.items()}
    special = {*tokenizer.special_tokens, *(tokenizer.unsplittable_tokens or ())}
    tokens = [by_id.get(i) for i in range(max(by_id) + 1)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_split(tokenizer))
    writer.add_token_merges([m for m in tokenizer.merges if "#version:" not in m])
    kinds = [
        UNUSED if token is None else CONTROL if token in special else NORMAL
        for token in tokens
    ]
    names = [f"[PAD{i}]" if token is None else token for i, token in enumerate(tokens)]
    return [name.encode() for name in names], kinds
