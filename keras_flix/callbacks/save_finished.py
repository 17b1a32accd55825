"""`SaveFinished`: values that are done are saved and rest, while others train on."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras

from keras_flix import _compat
from keras_flix._utils.file_names import file_names
from keras_flix.features.feature import Value
from keras_flix.features.values import plain_value
from keras_flix.files.adapter_file import SUFFIX, read_adapters, write_adapters
from keras_flix.files.saving import adapters_of
from keras_flix.files.some_values import some_values
from keras_flix.models.adapted.adaptation import adaptation_of
from keras_flix.models.growing.limit_steps import (
    Limit,
    limit_steps,
    reached_limits,
    step_counts,
)

Monitor = str | Callable[[keras.Model], Mapping[Value, float]]


class SaveFinished(keras.callbacks.Callback):
    """Saves each value that is done to a file of its own, and lets it rest.

    `fit` goes on with the others, and compiles nothing again. A value is done

    - by `limits`, with so many updates of its own: exactly, since the step itself
      stops there, however often this callback looks;
    - by `monitor`, once its score has not become better for more than `patience`
      epochs in a row. What is saved is the value as it is then. A value counts from
      its first score after its first update.

    What is done stays bit-identical, see `limit_steps`. Its file holds the value alone,
    for `update_from`, or with all other features as they are then: see `save_values`.
    Where an always-on feature or a head trains on, only the latter goes on computing
    what the value did then, and the former fits no model whose head has moved.

    The optimizer must count by value, as `LazyAdam(step_counts="value")` does.

    Args:
        directory: Where the files go, one per value, named after it. Made if need be.
        feature: Name of the feature whose values come to their ends.
        limits: As those of a feature in `limit_steps`; `None` leaves them as they are.
            Values that join while `fit` runs get those that `limit_steps` gives them,
            and where a `BackupAndRestore` goes on, all have those of its backup.
        monitor: The name of a score that a `FeatureScores` earlier in the list logs,
            such as `"exact_match"`; or a function of the model, called after each
            epoch, whose dict has scores by value, and by nothing else. Values that it
            leaves out wait, as all do before the first scores.
        patience: For so many epochs, a value may be no better. A `FeatureScores` with
            `every=n` repeats its scores in between, so take `n` times as many.
        mode: `"max"` if higher scores are better, `"min"` if lower ones are.
        min_delta: By more than this, a better score must be better.
        others: Whether files hold the other features, too.
        every: After so many batches, and after each epoch, it looks for values that
            are done by `limits`. On JAX, a look takes the state out of the loop.

    Attributes:
        saved: By value, the path of its file, in the order in which they were done. It
            goes on over several calls of `fit` with this callback and this model;
            another one, as after a restart, saves anew what has reached its limits.
            A value that was removed and added again is a new one.

    Raises:
        ValueError: Here or when training begins, if an argument does not fit; after
            training from its first epoch, if no score by value was in the logs.

    Example:

    ```python
    optimizer = keras_flix.LazyAdam(1e-3, step_counts="value")
    gemma.compile(optimizer=optimizer, sampler="greedy")
    finished = keras_flix.callbacks.SaveFinished("languages", "language", limits=2)
    gemma.fit(train, epochs=2, callbacks=[finished])
    print(finished.saved["sw"])
    ```
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        feature: str,
        *,
        limits: Limit | Mapping[Value, Limit] = None,
        monitor: Monitor | None = None,
        patience: int = 0,
        mode: str = "max",
        min_delta: float = 0.0,
        others: bool = True,
        every: int = 20,
    ) -> None:
        super().__init__()
        if mode not in ("max", "min"):
            raise ValueError(
                "`mode` must be 'max' or 'min'. Received: "
                f"mode={mode!r}. Take 'min' for losses."
            )
        if patience < 0 or every < 1:
            raise ValueError(
                "`patience` must be at least 0, and `every` at least 1. Received: "
                f"patience={patience}, every={every}. Count scores and batches."
            )
        self.directory, self.feature = Path(directory), feature
        self.limits, self.monitor = limits, monitor
        self.patience, self.mode, self.min_delta = patience, mode, min_delta
        self.others, self.every = others, every
        self.saved: dict[Value, Path] = {}
        self._best: dict[Value, tuple[float, int]] = {}
        self._batches = 0
        self._seen: tuple[Any, Any] = (None, None)
        self._scored, self._first = False, -1
        self._known: set[Value] = set()

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self._forget(model)
        # Before any callback begins: limits that a backup restores then win, among
        # them those of values that ended by their score.
        if self.limits is not None:
            limit_steps(model, {self.feature: self.limits})
        if self.saved:
            # What ended before rests on, whatever optimizer there is now.
            limit_steps(model, {self.feature: dict.fromkeys(self.saved, 0)})

    def _forget(self, model: keras.Model) -> None:
        """Forgets what was of another model, or of values that are no more."""
        optimizer = getattr(model, "optimizer", None)
        seen, self._seen = self._seen, (model, optimizer)
        if model is not seen[0]:
            self.saved, self._best = {}, {}
        elif self.saved or self._best:
            counts = step_counts(model, self.feature)
            if optimizer is seen[1]:
                self._reached()
                # Never updated: added again.
                counts = {value: n for value, n in counts.items() if n}
            else:
                self.saved = {v: p for v, p in self.saved.items() if v in counts}
            self._best = {v: best for v, best in self._best.items() if v in counts}

    def _reached(self) -> list[Value]:
        """The values that are done by the limits that the optimizer has."""
        reached = reached_limits(self.model, self.feature)
        # What was removed and added again has no limit.
        for value in set(self.saved).difference(reached):
            del self.saved[value]
            self._best.pop(value, None)
        return reached

    def on_train_begin(self, logs: Any = None) -> None:
        self._scored, self._first = False, -1
        # Both raise before an epoch of training, not after.
        self.directory.mkdir(parents=True, exist_ok=True)
        self._save(self._reached())

    def on_train_end(self, logs: Any = None) -> None:
        # The last epochs of a training that goes on may have none.
        whole = self._first == 0
        if isinstance(self.monitor, str) and whole and not self._scored:
            self._no_scores(logs or {})

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._batches += 1
        if not self._batches % self.every:
            self._save(self._reached())

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self._first < 0:
            self._first = epoch
        done = [] if self.monitor is None else self._without_progress(logs or {})
        if done:
            # They rest from here on: what is saved is what they stay.
            limit_steps(self.model, {self.feature: dict.fromkeys(done, 0)})
        self._save(self._reached())

    def _save(self, values: list[Value]) -> None:
        known = adaptation_of(self.model).schema[self.feature]
        new = [v for v in values if v not in self.saved and v in known]
        if not new:
            return
        adapters = adapters_of(self.model)
        existing: dict[str, list[Path]] = {}
        for path in self.directory.glob(f"*{SUFFIX}"):
            existing.setdefault(_stem(path), []).append(path)
        for value in new:
            path = self._path(value, existing)
            found = some_values(adapters, {self.feature: [value]}, self.others)
            write = functools.partial(write_adapters, found, path)
            _compat.written_once(write, _compat.is_split(self.model.variables))
            self.saved[value] = path

    def _path(self, value: Value, existing: Mapping[str, list[Path]]) -> Path:
        """The path of a value's file, which may be there from an earlier training."""
        taken = {_stem(path) for path in self.saved.values()}
        while True:
            (name,) = file_names([str(value)], "value", taken)
            others = existing.get(name.casefold(), [])
            if all(_holds(path, self.feature, value) for path in others):
                return self.directory / f"{name}{SUFFIX}"
            taken.add(name.casefold())

    def _without_progress(self, logs: Mapping[str, Any]) -> list[Value]:
        """The values whose score has not become better for too long."""
        done = []
        counts = step_counts(self.model, self.feature)
        sign = 1 if self.mode == "max" else -1
        for value, score in self._scores(logs, counts).items():
            if not counts.get(value):
                self._best.pop(value, None)
                continue
            if value in self.saved:
                continue
            better = sign * float(score)
            best, waited = self._best.get(value, (-float("inf"), 0))
            if better > best + self.min_delta:
                self._best[value] = (better, 0)
                continue
            # A score that is not a number is none that became better.
            self._best[value] = (best, waited + 1)
            if waited + 1 > self.patience:
                done.append(value)
        return done

    def _scores(
        self, logs: Mapping[str, Any], counts: Mapping[Value, int]
    ) -> Mapping[Value, float]:
        if callable(self.monitor):
            known = adaptation_of(self.model).schema[self.feature]
            self._known |= set(known.values)
            scores = {plain_value(v): s for v, s in self.monitor(self.model).items()}
            for value in set(scores).difference(self._known):
                known.id_of(value)
            # Of values that are no more, it may go on to tell.
            return {value: s for value, s in scores.items() if value in counts}
        start = f"{self.monitor}/{self.feature}="
        found = {v: logs[f"{start}{v}"] for v in counts if f"{start}{v}" in logs}
        if not found and self._scored:
            self._no_scores(logs)
        # Before the first scores, as with `FeatureScores(every=2)`, values wait.
        self._scored = bool(found)
        return found

    def _no_scores(self, logs: Mapping[str, Any]) -> None:
        raise ValueError(
            "`monitor` must be a score by value in the logs. Received: "
            f"monitor={self.monitor!r}, and logs {sorted(logs)[:6]}. Put a "
            f"`FeatureScores(data, by=[{self.feature!r}])` before this callback."
        )


def _stem(path: Path) -> str:
    return path.name.removesuffix(SUFFIX).casefold()


def _holds(path: Path, feature: str, value: Value) -> bool:
    """Whether a file holds this value of this feature, and no other one of it."""
    try:
        schema = read_adapters(path).schema
    except (OSError, ValueError):
        # Not one of ours: leave it alone.
        return False
    return feature in schema.names and schema[feature].values == (value,)
