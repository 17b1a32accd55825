"""The preset folder that `benchmarks.quality.smollm.base` makes."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import keras_hub

FOLDER = "smollm2_135m_instruct"
SOURCE = "source.json"
"""In the folder: where it is from, and the digest of its weights."""

OTHER = "<|endoftext|>"
"""A special token that KerasHub's class does not know by itself."""


def default_folder() -> pathlib.Path:
    """The folder in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(cache, "keras_flix", FOLDER)


def source_of(folder: str | pathlib.Path) -> dict[str, Any]:
    """What is known of a folder.

    Raises:
        ValueError: If it is not there.
    """
    file = pathlib.Path(folder, SOURCE)
    if not file.exists():
        raise ValueError(
            "The base must be a folder that benchmarks.quality.smollm.base made. "
            f"Received: folder={str(folder)!r}. Run: python -m "
            "benchmarks.quality.smollm.base --check"
        )
    return json.loads(file.read_text())


def load(folder: str | pathlib.Path | None = None, dtype: str = "float32") -> Any:
    """The causal LM of a folder, with its preprocessor."""
    folder = str(folder or default_folder())
    source_of(folder)
    # A set, which JSON does not have.
    tokenizer = keras_hub.models.Llama3Tokenizer.from_preset(
        folder, misc_special_tokens={OTHER}
    )
    return keras_hub.models.Llama3CausalLM(
        keras_hub.models.Llama3Backbone.from_preset(folder, dtype=dtype),
        keras_hub.models.Llama3CausalLMPreprocessor(tokenizer),
    )
