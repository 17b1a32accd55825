"""Which texts a preprocessor has cut, told from what it made of them.

Only where the sequence is full can a text have been cut: those are tokenized once more,
no others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras_hub
import numpy as np

PROMPTS, RESPONSES, TEXTS = "prompts", "responses", "texts"
ENCODED = {"encoder_text": "encoder texts", "decoder_text": "decoder texts"}

AT_ONCE = 4096
"""So many texts are tokenized at once."""


@dataclasses.dataclass(frozen=True)
class Column:
    """Texts of one kind, and the sequence that they are packed into.

    Attributes:
        kind: What an error or a warning calls them.
        key: The entry of the preprocessor's input; `None` where it has no entries.
        mask: The entry of its output that is true where the sequence is not padded.
        limit: The name of the length that cuts them.
    """

    kind: str
    key: str | None
    mask: str = "padding_mask"
    limit: str = "sequence_length"


def columns_of(preprocessor: Any, own: Any, x: Any) -> list[Column]:
    """The texts of a batch that a preprocessor may cut; empty if it reads none."""
    if not isinstance(x, Mapping) or getattr(preprocessor, "tokenizer", None) is None:
        return []
    if isinstance(own, Mapping):
        found = [Column(key, key) for key in (PROMPTS, RESPONSES) if key in own]
        for key, kind in ENCODED.items():
            if key in own:
                side = key.partition("_")[0]
                mask, limit = f"{side}_padding_mask", f"{side}_sequence_length"
                found.append(Column(kind, key, mask, limit))
    else:
        found = [Column(TEXTS, None)]
    return [column for column in found if column.mask in x]


def cut_rows(
    preprocessor: Any,
    columns: list[Column],
    texts: Mapping[str, Any],
    masks: Mapping[str, np.ndarray],
    responses: np.ndarray | None,
    *,
    wanted: Callable[[str], np.ndarray] | None = None,
    labels: bool = True,
) -> dict[str, np.ndarray]:
    """Which texts were cut, by kind.

    Args:
        preprocessor: A KerasHub preprocessor, built.
        columns: Of `columns_of`.
        texts: Strings by kind: a list, or a tuple of lists for several segments.
        masks: Where the sequence is not padded, by kind: bool `(batch, length)`.
        responses: Where the targets belong to the response, bool `(batch, length)`, if
            the preprocessor tells prompts from responses.
        wanted: Which rows of a kind are to be looked at; all by default.
        labels: Whether the sequence was packed for training.

    Returns:
        By kind, bool of shape `(batch,)`.
    """
    full = {column.kind: masks[column.kind].all(axis=-1) for column in columns}
    if wanted is not None:
        full = {kind: rows & wanted(kind) for kind, rows in full.items()}
    cut = {kind: np.zeros_like(rows) for kind, rows in full.items()}
    for column in columns:
        kind = column.kind
        rows = np.flatnonzero(full[kind])
        if not len(rows) or kind == RESPONSES:
            continue
        length = masks[kind].shape[-1] + _extra(preprocessor, column, labels)
        lengths = _token_counts(preprocessor, texts[kind], rows)
        over = lengths + _specials(preprocessor, column, texts[kind], labels) - length
        if kind == PROMPTS and responses is not None and RESPONSES in texts:
            own = _token_counts(preprocessor, texts[RESPONSES], rows)
            lost = own - kept_tokens(preprocessor, responses[rows])
            cut[RESPONSES][rows] = lost > 0
            # What the response has not lost, the prompt has.
            over += own - np.maximum(lost, 0)
        cut[kind][rows] = over > 0
    return cut


def needed_length(preprocessor: Any, prompts: Any, responses: Any) -> int:
    """The `sequence_length` that cuts none of these prompts and responses.

    Args:
        preprocessor: A KerasHub preprocessor of prompts and responses.
        prompts: Strings.
        responses: Equally many strings.
    """
    if not preprocessor.built:
        preprocessor.build(None)
    longest = 0
    for start in range(0, len(prompts), AT_ONCE):
        rows = np.arange(start, min(start + AT_ONCE, len(prompts)))
        counts = _token_counts(preprocessor, prompts, rows)
        counts = counts + _token_counts(preprocessor, responses, rows)
        longest = max(longest, int(counts.max()))
    column = Column(PROMPTS, PROMPTS)
    return longest + _specials(preprocessor, column, prompts, True)


def kept_tokens(preprocessor: Any, responses: np.ndarray) -> np.ndarray:
    """How many tokens of each response are left, without the one that ends it."""
    ends = int(getattr(preprocessor, "add_end_token", True))
    return responses.sum(axis=-1) - ends


def _extra(preprocessor: Any, column: Column, labels: bool) -> int:
    """One more token is packed where the targets are the next tokens."""
    shifted = (
        keras_hub.models.CausalLMPreprocessor,
        keras_hub.models.Seq2SeqLMPreprocessor,
    )
    return int(
        labels and column.key != "encoder_text" and isinstance(preprocessor, shifted)
    )


def _specials(preprocessor: Any, column: Column, texts: Any, labels: bool) -> int:
    """How many tokens of the sequence are no text."""
    side = column.mask.removesuffix("padding_mask")
    packer = getattr(preprocessor, f"{side}packer", None)
    begins = getattr(preprocessor, "add_start_token", True) or not labels
    ends = getattr(preprocessor, "add_end_token", True) and (
        labels or column.key == "encoder_text"
    )
    segments = len(texts) if isinstance(texts, tuple) else 1
    if column.kind == PROMPTS and labels:
        segments = 2
    return (
        begins * _length(packer, "start_value")
        + (segments - 1) * _length(packer, "sep_value")
        + ends * _length(packer, "end_value")
    )


def _length(packer: Any, name: str) -> int:
    value = getattr(packer, name, None)
    if isinstance(value, (list, tuple)):
        return len(value)
    return 0 if value is None else 1


def _token_counts(preprocessor: Any, texts: Any, rows: np.ndarray) -> np.ndarray:
    if isinstance(texts, tuple):
        counts = [_token_counts(preprocessor, segment, rows) for segment in texts]
        return np.sum(counts, axis=0)
    tokens = preprocessor.tokenizer([texts[i] for i in rows])
    return np.array([len(row) for row in tokens])
