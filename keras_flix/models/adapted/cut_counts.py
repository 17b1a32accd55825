"""How many texts were cut at a preprocessor's length, and the warning that says so."""

from __future__ import annotations

import contextlib
import contextvars
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from keras_flix.models.adapted.own_callbacks import beside
from keras_flix.models.adapted.text_lengths import Column


@dataclass(eq=False)
class CutTexts:
    """How many texts were cut, of those that one call has preprocessed.

    Threads may add at the same time.

    Args:
        which: What distinguishes them from other ones, such as `"validation "`.
        trains: Whether examples without a response are refused.
        verb: What happened to them.
    """

    which: str = ""
    trains: bool = False
    verb: str = "were cut at"
    counts: bool = field(default=True, init=False)
    limits: dict[str, str] = field(default_factory=dict, init=False)
    size: int = field(default=0, init=False)
    _added: list[tuple[str, int, int]] = field(default_factory=list, init=False)
    # By kind and row of the data: 1 is seen, 2 is cut.
    _rows: dict[str, np.ndarray] = field(default_factory=dict, init=False)
    # By kind and text, where rows are not known: whether it was cut.
    _texts: dict[str, dict[int, bool]] = field(default_factory=dict, init=False)

    @contextlib.contextmanager
    def of_rows(self, rows: np.ndarray | None = None) -> Iterator[None]:
        """Within the block, what this thread preprocesses are these examples."""
        token = current.set((self, rows))
        try:
            yield
        finally:
            current.reset(token)

    def unseen(self, kind: str, keys: np.ndarray, are_rows: bool) -> np.ndarray:
        """Which examples of a batch were not there before."""
        if are_rows:
            return self._rows[kind][keys] == 0 if kind in self._rows else keys >= 0
        seen = self._texts.get(kind, {})
        return np.array([key not in seen for key in keys.tolist()], "bool")

    def add(
        self, column: Column, length: int, cut: np.ndarray, keys: Any, are_rows: bool
    ) -> None:
        """Counts examples, each of them once.

        Args:
            column: What texts they are.
            length: Of the sequence.
            cut: Which of them were cut.
            keys: What tells the examples apart; `None` if all of them count.
            are_rows: Whether the keys are places in the data.
        """
        kind = column.kind
        self.limits[kind] = f"{column.limit}={length}"
        if keys is None:
            self._added.append((kind, int(cut.sum()), len(cut)))
        elif are_rows:
            seen = self._rows.setdefault(kind, np.zeros(self.size, "int8"))
            seen[keys] = np.maximum(seen[keys], 1 + cut)
        else:
            texts = self._texts.setdefault(kind, {})
            for key, is_cut in zip(keys.tolist(), cut.tolist()):
                texts.setdefault(key, is_cut)

    def totals(self) -> dict[str, tuple[int, int]]:
        """By kind, how many were cut, of how many."""
        found = {}
        for kind in self.limits:
            seen = self._rows.get(kind, np.zeros(0))
            texts = list(self._texts.get(kind, {}).values())
            added = [(cut, count) for of, cut, count in self._added if of == kind]
            found[kind] = (
                int((seen == 2).sum()) + sum(texts) + sum(cut for cut, _ in added),
                int((seen > 0).sum()) + len(texts) + sum(n for _, n in added),
            )
        return found

    def message(self) -> str:
        """What to tell a user; empty if nothing was cut."""
        parts = []
        for kind, (cut, count) in self.totals().items():
            # Where rows are not known, the same texts count once.
            different = "different " if kind in self._texts else ""
            if cut:
                parts.append(
                    f"{cut} of {count} {different}{self.which}{kind} {self.verb} "
                    f"{self.limits[kind]}"
                )
        return "; ".join(parts)


current: contextvars.ContextVar[tuple[CutTexts, np.ndarray | None] | None] = (
    contextvars.ContextVar("keras_flix_cut_texts", default=None)
)


class _Reporter(keras.callbacks.Callback):
    """Warns after the first epoch of training, or an evaluation, and ends counting."""

    def __init__(self, counted: list[CutTexts], trains: bool) -> None:
        super().__init__()
        self._counted = counted
        self._trains = trains

    def on_test_end(self, logs: Any = None) -> None:
        if not self._trains:
            self._report()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._report()

    def _report(self) -> None:
        warn([texts for texts in self._counted if texts.counts])
        for texts in self._counted:
            texts.counts = False


def warn(counted: list[CutTexts]) -> None:
    """Says what was cut, if anything was."""
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
    state: Any, options: dict[str, Any], *texts: CutTexts
) -> Iterator[dict[str, Any]]:
    """Counts in a call of `fit` or `evaluate`; gives the options to call it with.

    Args:
        state: The model's `Adaptation`.
        options: The keyword arguments of the call.
        *texts: Where is counted. The first counts whatever goes through KerasHub's own
            pipeline, as grain datasets do, which knows of no other.
    """
    reporter = _Reporter(list(texts), texts[0].trains)
    before, state.cut_texts = state.cut_texts, texts[0]
    try:
        with beside(options, reporter) as options:
            yield options
    finally:
        state.cut_texts = before


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
