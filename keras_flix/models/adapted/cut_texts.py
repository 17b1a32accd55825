"""Texts that are cut at a preprocessor's length: counted, and said once.

A preprocessor cuts what is too long without a word. Here, `fit`, `evaluate` and
`generate` count and warn, and training refuses an example whose response is gone.
"""

from __future__ import annotations

import contextlib
import contextvars
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import keras_hub
import numpy as np
from keras import tree

from keras_flix.features.host_values import host_value, is_tf_symbolic
from keras_flix.models.adapted.text_lengths import (
    PROMPTS,
    RESPONSES,
    Column,
    columns_of,
    cut_rows,
    kept_tokens,
)
from keras_flix.models.adapted.tokenizer_paths import batch_check


class CutTexts:
    """How many texts were cut, of those that one call has preprocessed.

    Threads may add at the same time.

    Args:
        which: What distinguishes them from other ones, such as `"validation "`.
        trains: Whether examples without a response are refused.
        verb: What happened to them.
    """

    def __init__(
        self, which: str = "", trains: bool = False, verb: str = "were cut at"
    ) -> None:
        self.which = which
        self.trains = trains
        self.verb = verb
        self.counts = True
        self.limits: dict[str, str] = {}
        self._added: list[tuple[str, int, int]] = []
        self.size = 0
        # By kind and row of the data: 1 is seen, 2 is cut.
        self._rows: dict[str, np.ndarray] = {}

    @contextlib.contextmanager
    def of_rows(self, rows: np.ndarray) -> Iterator[None]:
        """Within the block, what this thread preprocesses are these examples."""
        token = _current.set((self, rows))
        try:
            yield
        finally:
            _current.reset(token)

    def unseen(self, kind: str, rows: np.ndarray | None, size: int) -> np.ndarray:
        if rows is None:
            return np.ones(size, "bool")
        return self._rows[kind][rows] == 0 if kind in self._rows else rows >= 0

    def add(
        self, column: Column, length: int, cut: np.ndarray, rows: np.ndarray | None
    ) -> None:
        self.limits[column.kind] = f"{column.limit}={length}"
        if rows is None:
            self._added.append((column.kind, int(cut.sum()), len(cut)))
            return
        seen = self._rows.setdefault(column.kind, np.zeros(self.size, "int8"))
        seen[rows] = np.maximum(seen[rows], 1 + cut)

    def totals(self) -> dict[str, tuple[int, int]]:
        """By kind, how many were cut, of how many."""
        found = {}
        for kind in self.limits:
            seen = self._rows.get(kind, np.zeros(0))
            added = [(cut, count) for of, cut, count in self._added if of == kind]
            found[kind] = (
                int((seen == 2).sum()) + sum(cut for cut, _ in added),
                int((seen > 0).sum()) + sum(count for _, count in added),
            )
        return found

    def message(self) -> str:
        """What to tell a user; empty if nothing was cut."""
        parts = [
            f"{cut} of {count} {self.which}{kind} {self.verb} {self.limits[kind]}"
            for kind, (cut, count) in self.totals().items()
            if cut
        ]
        return "; ".join(parts)


_current: contextvars.ContextVar[tuple[CutTexts, np.ndarray] | None] = (
    contextvars.ContextVar("keras_flix_cut_texts", default=None)
)
_prompts: contextvars.ContextVar[CutTexts | None] = contextvars.ContextVar(
    "keras_flix_cut_prompts", default=None
)
_generating: contextvars.ContextVar[tuple[Any, Any] | None] = contextvars.ContextVar(
    "keras_flix_generating", default=None
)


class _Reporter(keras.callbacks.Callback):
    """Counts the first epoch of training, or an evaluation, and then warns."""

    def __init__(self, state: Any, texts: CutTexts, validation: CutTexts | None) -> None:
        super().__init__()
        self._state = state
        self._texts = texts
        self._validation = validation

    def on_train_begin(self, logs: Any = None) -> None:
        self._state.cut_texts = self._texts

    def on_test_begin(self, logs: Any = None) -> None:
        self._state.cut_texts = self._validation or self._texts

    def on_test_end(self, logs: Any = None) -> None:
        if self._validation is None:
            self._report()
        self._state.cut_texts = self._texts

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._report()

    def _report(self) -> None:
        counted = [self._texts, self._validation]
        _warn([texts for texts in counted if texts is not None and texts.counts])
        for texts in counted:
            if texts is not None:
                texts.counts = False


def _warn(counted: list[CutTexts]) -> None:
    parts = [texts.message() for texts in counted]
    parts = [part for part in parts if part]
    if parts:
        warnings.warn(
            "; ".join(parts) + ". What was cut off is not seen by the model. Raise the "
            "preprocessor's length, or shorten the texts.",
            stacklevel=3,
        )


@contextlib.contextmanager
def counted(
    state: Any,
    options: dict[str, Any],
    texts: CutTexts,
    validation: CutTexts | None = None,
) -> Iterator[dict[str, Any]]:
    """Counts in a call of `fit` or `evaluate`; gives the options to call it with."""
    reporter = _Reporter(state, texts, validation)
    given = options.get("callbacks")
    before = state.cut_texts
    state.cut_texts = None
    if isinstance(given, keras.callbacks.CallbackList):
        given.append(reporter)
        callbacks: Any = given
    else:
        callbacks = [*tree.flatten(given or []), reporter]
    try:
        yield {**options, "callbacks": callbacks}
    finally:
        state.cut_texts = before
        if callbacks is given:
            given.callbacks.remove(reporter)


@contextlib.contextmanager
def training_step(state: Any) -> Iterator[None]:
    """A single step: nothing is counted, but what cannot be trained on is refused."""
    texts = CutTexts(trains=True)
    texts.counts = False
    before, state.cut_texts = state.cut_texts, texts
    try:
        yield
    finally:
        state.cut_texts = before


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
    given = {c.kind: own if c.key is None else own[c.key] for c in columns}
    masks = {c.kind: x[c.mask] for c in columns}
    if not any(map(is_tf_symbolic, tree.flatten((given, masks)))):
        _look(state, preprocessor, columns, given, masks, token_weight, weight)
        return outputs
    ids = x[columns[0].mask.replace("padding_mask", "token_ids")]
    if isinstance(own, Mapping) and len(own) > len(columns):
        ids = None  # images besides: not to be preprocessed twice
    looked = _look_in_tf(
        state, preprocessor, columns, given, masks, token_weight, weight, ids
    )
    x = {**x, columns[0].mask: looked}
    return keras.utils.pack_x_y_sample_weight(x, y, token_weight)


def _look(
    state: Any,
    preprocessor: Any,
    columns: list[Column],
    given: Mapping[str, Any],
    masks: Mapping[str, Any],
    token_weight: Any,
    weight: Any,
) -> None:
    current = _current.get()
    texts, rows = (state.cut_texts, None) if current is None else current
    if texts is None or not (texts.counts or texts.trains):
        return
    known = {kind: np.asarray(host_value(mask)) != 0 for kind, mask in masks.items()}
    if any(mask.ndim != 2 for mask in known.values()):
        return  # a single example, without a batch axis
    strings = {kind: strings_of(value) for kind, value in given.items()}
    responses = None
    if RESPONSES in given and token_weight is not None:
        responses = np.asarray(host_value(token_weight)) != 0
        if texts.trains:
            full = known[RESPONSES].all(axis=-1)
            _refuse_gone(preprocessor, strings, responses, full, weight, rows)
    if not texts.counts:
        return
    cut = cut_rows(
        preprocessor,
        columns,
        strings,
        known,
        responses,
        wanted=lambda kind: texts.unseen(kind, rows, len(known[kind])),
    )
    for column in columns:
        length = known[column.kind].shape[-1]
        texts.add(column, length, cut[column.kind], rows)


def _refuse_gone(
    preprocessor: Any,
    strings: Mapping[str, Any],
    responses: np.ndarray,
    full: np.ndarray,
    weight: Any,
    rows: np.ndarray | None,
) -> None:
    gone = full & (kept_tokens(preprocessor, responses) <= 0)
    gone &= np.array([bool(text) for text in strings[RESPONSES]])
    if weight is not None:
        gone &= np.asarray(host_value(weight)) != 0
    if not gone.any():
        return
    found = np.flatnonzero(gone) if rows is None else np.sort(rows[gone])
    where = "of the batch" if rows is None else "of the data"
    first = ", ".join(map(str, found[:5])) + (", ..." if len(found) > 5 else "")
    raise ValueError(
        "A response must keep at least one token to be trained on. Received: "
        f"{len(found)} of {len(gone)} responses of a batch that were cut off whole at "
        f"sequence_length={responses.shape[-1]} (examples {first} {where}). Raise the "
        "preprocessor's `sequence_length`, shorten the prompts, or leave these "
        "examples out by a `sample_weight` of 0."
    )


def _look_in_tf(
    state: Any,
    preprocessor: Any,
    columns: list[Column],
    given: Mapping[str, Any],
    masks: Mapping[str, Any],
    token_weight: Any,
    weight: Any,
    ids: Any,
) -> Any:
    """The first mask, computed by a function that looks at the batch when it runs."""
    import tensorflow as tf

    check = batch_check(preprocessor, columns)
    structure = (given, masks, token_weight, weight, ids)
    leaves = tree.flatten(structure)
    is_tensor = [tf.is_tensor(leaf) for leaf in leaves]

    def look(mask: np.ndarray, *values: np.ndarray) -> np.ndarray:
        known = iter(values)
        filled = [next(known) if t else leaf for t, leaf in zip(is_tensor, leaves)]
        texts, found, *weights, tokens = tree.pack_sequence_as(structure, filled)
        texts = {kind: strings_of(value) for kind, value in texts.items()}
        check(texts, tokens)
        _look(state, preprocessor, columns, texts, found, *weights)
        return mask

    first = masks[columns[0].kind]
    values = [leaf for leaf, t in zip(leaves, is_tensor) if t]
    looked = tf.numpy_function(look, [first, *values], first.dtype)
    looked.set_shape(first.shape)
    return looked


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
        _warn([texts])


def look_at_prompts(inputs: Any) -> None:
    """Counts the prompts of a batch that is about to be continued."""
    texts, generating = _prompts.get(), _generating.get()
    if texts is None or generating is None or generating[0] is None:
        return
    current = _current.get()
    rows = current[1] if current is not None and current[0] is texts else None
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
        texts.add(column, mask.shape[-1], found, rows)


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
