"""KerasHub's tokenizers as transformers' files, where KerasHub itself exports none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras_hub

from keras_flix.exports.lora_writer import write_json


def write_tokenizer(tokenizer: Any, directory: Path) -> dict[str, int]:
    """Writes a tokenizer, and returns what a model's configuration says of it.

    Args:
        tokenizer: A `LlamaTokenizer` or `Qwen3Tokenizer` of KerasHub.
        directory: An existing one.

    Raises:
        ValueError: If it is another one.
    """
    hub = keras_hub.tokenizers
    if isinstance(tokenizer, hub.LlamaTokenizer):
        # Not its own method, which names the file otherwise.
        (directory / "tokenizer.model").write_bytes(tokenizer.proto)
        config = {
            "tokenizer_class": "LlamaTokenizer",
            "bos_token": tokenizer.start_token,
            "eos_token": tokenizer.end_token,
            "unk_token": tokenizer.id_to_token(0),
            "add_bos_token": True,
            "add_eos_token": False,
            "legacy": False,
        }
    elif isinstance(tokenizer, hub.Qwen3Tokenizer):
        write_json(directory / "vocab.json", tokenizer.vocabulary)
        merges = "\n".join(["#version: 0.2", *_merges(tokenizer), ""])
        (directory / "merges.txt").write_text(merges, encoding="utf-8")
        special = {*tokenizer.special_tokens, *(tokenizer.unsplittable_tokens or ())}
        config = {
            "tokenizer_class": "Qwen2Tokenizer",
            "bos_token": None,
            "eos_token": tokenizer.end_token,
            "pad_token": tokenizer.pad_token,
            "unk_token": None,
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(int(tokenizer.vocabulary[token])): {
                    "content": token,
                    "special": True,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "single_word": False,
                }
                for token in sorted(special & tokenizer.vocabulary.keys())
            },
        }
    else:
        raise ValueError(
            "A model that KerasHub does not export has its tokenizer written if that "
            "is a LlamaTokenizer or a Qwen3Tokenizer. Received: a "
            f"{type(tokenizer).__name__}. Export the task without its preprocessor, "
            "and take transformers' own tokenizer."
        )
    write_json(directory / "tokenizer_config.json", config)
    ids = {"bos": tokenizer.start_token_id, "eos": tokenizer.end_token_id}
    ids["pad"] = tokenizer.pad_token_id
    return {f"{k}_token_id": int(i) for k, i in ids.items() if i is not None}


def _merges(tokenizer: Any) -> list[str]:
    return [merge for merge in tokenizer.merges if "#version:" not in merge]
