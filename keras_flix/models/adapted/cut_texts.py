"""Texts that are cut at a preprocessor's length: counted, and said once.

A preprocessor cuts what is too long without a word. Here, `fit`, `evaluate` and
`generate` count and warn, and training refuses an example whose response is gone.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import keras
import keras_hub
import numpy as np
from keras import tree

from keras_flix.features.host_values import any_tf_symbolic, host_value
from keras_flix.models.adapted.cut_counts import CutTexts, current, warn
from keras_flix.models.adapted.text_lengths import (
    PROMPTS,
    RESPONSES,
    Column,
    columns_of,
    cut_rows,
    kept_tokens,
)
from keras_flix.models.adapted.tf_batches import passed_through
from keras_flix.models.adapted.tokenizer_paths import batch_check

_prompts: contextvars.ContextVar[CutTexts | None] = contextvars.ContextVar(
    "keras_flix_cut_prompts", default=None
)
_generating: contextvars.ContextVar[tuple[Any, Any] | None] = contextvars.ContextVar(
    "keras_flix_generating", default=None
)


def watched(state: Any, preprocessor: Any, own: Any, outputs: Any, weight: Any) -> Any:
    """What a preprocessor made of a batch, after a look at what it has cut.

    Args:
        state: The model's `Adaptation`.
        preprocessor: The KerasHub preprocessor.
        own: What it was given.
        outputs: What it returned.
        weight: One weight per example, or `None`.

    Returns:
        The outputs. Inside of a `tf.data` pipeline, these look when they are computed.
    """
    x, y, token_weight = keras.utils.unpack_x_y_sample_weight(outputs)
    columns = columns_of(preprocessor, own, x)
    if not columns:
        return outputs
    masks = {c.kind: x[c.mask] for c in columns}
    ids = x.get(columns[0].mask.replace("padding_mask", "token_ids"))
    if isinstance(own, Mapping) and len(own) > len(columns):
        ids = None  # images besides: not to be preprocessed twice
    batch = _Batch(
        given={c.kind: own if c.key is None else own[c.key] for c in columns},
        masks=masks,
        token_weight=token_weight,
        weight=weight,
        ids=ids,
    )
    texts, rows = current.get() or (state.cut_texts, None)
    look = _Look(texts, rows, preprocessor, columns)
    if not any_tf_symbolic(tree.flatten((batch.given, masks))):
        look(batch)
        return outputs
    check = batch_check(preprocessor, columns)

    def look_and_check(batch: _Batch) -> None:
        given = {kind: strings_of(value) for kind, value in batch.given.items()}
        check(given, batch.ids)
        look(_Batch(given, *batch[1:]))

    first = columns[0]
    looked = passed_through(masks[first.kind], look_and_check, batch)
    return keras.utils.pack_x_y_sample_weight(
        {**x, first.mask: looked}, y, token_weight
    )


class _Batch(NamedTuple):
    """What a preprocessor was given, and what it made of that.

    Attributes:
        given: The texts, by kind.
        masks: Where the sequence is not padded, by kind.
        token_weight: Of the targets; `None` if the preprocessor makes none.
        weight: One per example, or `None`.
        ids: Of the first kind's tokens, if they are to be compared.
    """

    given: Mapping[str, Any]
    masks: Mapping[str, Any]
    token_weight: Any
    weight: Any
    ids: Any


@dataclasses.dataclass(frozen=True)
class _Look:
    """A look at what was cut, in one batch or in each of a pipeline.

    Attributes:
        texts: Where it is counted, if it is.
        rows: Which examples of the data are in the batch, if that is known.
        preprocessor: What cuts.
        columns: Of `columns_of`.
    """

    texts: CutTexts | None
    rows: np.ndarray | None
    preprocessor: Any
    columns: list[Column]

    def __call__(self, batch: _Batch) -> None:
        texts, rows = self.texts, self.rows
        if texts is None or not (texts.counts or texts.trains):
            return
        known = {
            k: np.asarray(host_value(mask)) != 0 for k, mask in batch.masks.items()
        }
        if any(mask.ndim != 2 for mask in known.values()):
            return  # a single example, without a batch axis
        strings = {kind: strings_of(value) for kind, value in batch.given.items()}
        responses = None
        if RESPONSES in strings and batch.token_weight is not None:
            responses = np.asarray(host_value(batch.token_weight)) != 0
            if texts.trains:
                full = known[RESPONSES].all(axis=-1)
                self._refuse_gone(strings[RESPONSES], responses, full, batch.weight)
        if not texts.counts:
            return
        # Not all sources tell their rows, but all may be read ahead or more than once.
        keys: Any = rows
        if rows is None:
            keys = np.array([hash(example) for example in zip(*_flat(strings))])
        cut = cut_rows(
            self.preprocessor,
            self.columns,
            strings,
            known,
            responses,
            wanted=lambda kind: texts.unseen(kind, keys, rows is not None),
        )
        for column in self.columns:
            length = known[column.kind].shape[-1]
            texts.add(column, length, cut[column.kind], keys, rows is not None)

    def _refuse_gone(
        self, texts: Any, responses: np.ndarray, full: np.ndarray, weight: Any
    ) -> None:
        gone = full & (kept_tokens(self.preprocessor, responses) <= 0)
        gone &= np.array([bool(text) for text in texts])
        if weight is not None:
            gone &= np.asarray(host_value(weight)) != 0
        if not gone.any():
            return
        rows = self.rows
        found = np.flatnonzero(gone) if rows is None else np.sort(rows[gone])
        where = "of the batch" if rows is None else "of the data"
        first = ", ".join(map(str, found[:5])) + (", ..." if len(found) > 5 else "")
        raise ValueError(
            "A response must keep at least one token to be trained on. Received: "
            f"{len(found)} of {len(gone)} responses of a batch that were cut off whole "
            f"at sequence_length={responses.shape[-1]} (examples {first} {where}). "
            "Raise the preprocessor's `sequence_length`, shorten the prompts, or leave "
            "these examples out by a `sample_weight` of 0."
        )


@contextlib.contextmanager
def prompts_counted(preprocessor: Any = None, own: Any = None) -> Iterator[CutTexts]:
    """Counts prompts within the outermost of such blocks, and then warns.

    Of an adapted model: a plain one does not look.

    Args:
        preprocessor: The preprocessor that is about to read prompts, if there is one.
        own: These prompts, as it is given them.
    """
    outer = _prompts.get()
    texts = outer or CutTexts(verb="were cut, or left without room for an answer, at")
    tokens = _prompts.set(texts), _generating.set((preprocessor, own))
    try:
        yield texts
    finally:
        _prompts.reset(tokens[0])
        _generating.reset(tokens[1])
    if outer is None:
        warn([texts])


def look_at_prompts(inputs: Any) -> None:
    """Counts the prompts of a batch that is about to be continued."""
    texts, generating = _prompts.get(), _generating.get()
    if texts is None or generating is None or generating[0] is None:
        return
    known_rows = current.get()
    rows = known_rows[1] if known_rows and known_rows[0] is texts else None
    preprocessor, own = generating
    if not isinstance(own, Mapping):
        encodes = isinstance(preprocessor, keras_hub.models.Seq2SeqLMPreprocessor)
        own = {"encoder_text" if encodes else PROMPTS: own}
    columns = [c for c in columns_of(preprocessor, own, inputs) if c.kind != RESPONSES]
    given = {c.kind: strings_of(own[c.key]) for c in columns}
    given = {k: [v] if isinstance(v, str) else v for k, v in given.items()}
    masks = {c.kind: np.asarray(host_value(inputs[c.mask])) != 0 for c in columns}
    for column in columns:
        mask = masks[column.kind]
        if column.key == "encoder_text":
            cut = cut_rows(preprocessor, [column], given, masks, None, labels=False)
            found = cut[column.kind]
        else:
            found = mask.all(axis=-1)
        texts.add(column, mask.shape[-1], found, rows, rows is not None)


def strings_of(value: Any) -> Any:
    """Texts as Python strings, in the structure that they came in."""
    if isinstance(value, tuple):
        return tuple(strings_of(part) for part in value)
    if isinstance(value, Mapping):
        return {key: strings_of(part) for key, part in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, (str, list)):
        return value if isinstance(value, str) else [strings_of(part) for part in value]
    value = host_value(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "OSU":
        return strings_of(value.tolist())
    return value


def _flat(strings: Any) -> list[list[str]]:
    """The columns of texts, of several segments each."""
    if isinstance(strings, Mapping):
        strings = tuple(strings.values())
    if isinstance(strings, tuple):
        return [column for part in strings for column in _flat(part)]
    return [strings]
