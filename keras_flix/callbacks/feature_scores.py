"""`FeatureScores`: scores by feature value while `fit` runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_flix.callbacks.epochs import checked_epochs
from keras_flix.evaluation.evaluate import (
    PROMPTS,
    RESPONSES,
    checked_examples,
    entries_for,
    evaluate,
    forced_exact_match,
)
from keras_flix.evaluation.metrics import Metric, exact_match
from keras_flix.evaluation.scores import Scores, check_metrics
from keras_flix.features.schema import check_feature
from keras_flix.mixtures.dataset import Dataset
from keras_flix.mixtures.mixture import Mixture
from keras_flix.models.adapted.adaptation import adaptation_of


class FeatureScores(keras.callbacks.Callback):
    """Scores a model by feature value at the end of epochs.

    The scores join the logs of the epoch, and so the `History`: other callbacks can
    monitor them if they come later in the list, with `mode="max"`. They are named

    - `exact_match/language=sw`: the examples of a value,
    - `exact_match/task=qa,language=sw`: those of a combination,
    - `exact_match/language`: the mean over the values of a feature, and
      `exact_match/task,language` over combinations,
    - `exact_match/all`: all examples.

    Epochs between two scored ones repeat the latest scores: a `ModelCheckpoint` with
    `save_best_only` saves where its score is missing, over what was best. Training is
    the same as without this callback.

    Args:
        data: A `Mixture`, datasets or a table, as for `evaluate`.
        by: What to score by: names of features, and tuples of them for combinations.
            `None` takes each feature of the data.
        metrics: As for `evaluate`; `exact_match` by default.
        forced: Whether to score with `forced_exact_match`: one forward pass per
            batch, instead of one for each token. For adapted models only.
        batch_size: Prompts per batch.
        max_length: As for `evaluate`.
        every: Score every so many epochs.

    Attributes:
        last: The latest `Scores` of this `fit`, or `None` before the first ones.

    Raises:
        ValueError: Here or when training begins, if an argument does not fit.

    Example:

    ```python
    scores = keras_flix.callbacks.FeatureScores(validation, by=["language"])
    best = keras.callbacks.ModelCheckpoint(
        "best.weights.h5",
        monitor="exact_match/language",
        mode="max",
        save_best_only=True,
        save_weights_only=True,
    )
    gemma.fit(train, epochs=2, callbacks=[scores, best])
    print(scores.last.table("language"))
    ```
    """

    def __init__(
        self,
        data: Mixture | Dataset | Sequence[Dataset] | Any,
        by: Sequence[str | tuple[str, ...]] | None = None,
        *,
        metrics: Mapping[str, Metric] | None = None,
        forced: bool = False,
        batch_size: int = 32,
        max_length: int | None = None,
        every: int = 1,
    ) -> None:
        super().__init__()
        self.metrics = {"exact_match": exact_match} if metrics is None else metrics
        check_metrics(self.metrics)
        if forced and (metrics is not None or max_length is not None):
            raise ValueError(
                "`forced=True` scores exact matches and generates nothing. Received: "
                "`metrics` or `max_length` besides. Leave them out, or `forced`."
            )
        if isinstance(by, str):
            by = [by]
        self.data, self.by, self.forced = data, by, forced
        self.batch_size, self.max_length = batch_size, max_length
        self.every = checked_epochs(every)
        self.last: Scores | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        self.last = None
        # Before an epoch of training, not after.
        self.examples = checked_examples(self.model, self.data)
        names = list(self.examples.features)
        by = names if self.by is None else self.by
        self.groups = [(group,) if isinstance(group, str) else group for group in by]
        for group in self.groups:
            for name in group:
                check_feature(name, names, "`by`")
        if self.forced:
            adaptation_of(self.model, sharing=True)
            self.tokens = self._tokens()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if not (epoch + 1) % self.every:
            self.last = self._scores()
        if self.last is not None and logs is not None:
            logs.update(self._named(self.last))

    def _scores(self) -> Scores:
        if not self.forced:
            return evaluate(
                self.model,
                self.examples,
                self.metrics,
                self.batch_size,
                self.max_length,
            )
        x, y, weights = self.tokens
        hits = forced_exact_match(self.model, x, y, weights, self.batch_size)
        predictions = ["right" if hit else "wrong" for hit in hits]
        right = ["right"] * len(hits)
        return Scores(self.examples.features, predictions, right, self.metrics)

    def _tokens(self) -> tuple[Any, Any, Any]:
        columns, features = self.examples
        several = [x for x in columns[RESPONSES] if not isinstance(x, str)]
        if several:
            raise ValueError(
                "`forced=True` needs one right response per example. Received: "
                f"{several[0]!r}. Leave `forced` out, or score the first of them."
            )
        texts = {name: columns[name] for name in (PROMPTS, RESPONSES)}
        return keras.utils.unpack_x_y_sample_weight(
            self.model.preprocess_samples(
                {**texts, **entries_for(self.model, features)}
            )
        )

    def _named(self, scores: Scores) -> dict[str, float]:
        named = {f"{name}/all": value for name, value in scores.overall().items()}
        for group in self.groups:
            for name, value in scores.mean_over(*group).items():
                named[f"{name}/{','.join(group)}"] = value
            for key, score in scores.by(*group).items():
                values = key if len(group) > 1 else (key,)
                label = ",".join(
                    f"{feature}={'(none)' if value is None else value}"
                    for feature, value in zip(group, values)
                )
                named |= {f"{name}/{label}": value for name, value in score.items()}
        return named
