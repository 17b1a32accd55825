"""`Scores`: what a model answered, and how good that is, by feature value."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from keras_flix._utils.displayed import Displayed, Rows, count, shown, some
from keras_flix._utils.text_tables import aligned
from keras_flix.evaluation.metrics import Metric, Reference
from keras_flix.features.schema import check_feature
from keras_flix.mixtures.dataset import values_of

Score = dict[str, float]
"""One number per metric."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Scores(Displayed):
    """Predictions with their references and features: what `evaluate` returns.

    Args:
        features: By feature, the value of each example: a string or integer,
            `None`, or a list of them.
        predictions: One text per example.
        references: One text per example, or a list of several.
        metrics: By name, functions of predictions and references of a group.

    Example:

    >>> from keras_flix.evaluation.metrics import exact_match
    >>> scores = Scores(
    ...     {"task": ["qa", "qa", "parse"]},
    ...     predictions=["a", "b", "c"],
    ...     references=["a", "a", "c"],
    ...     metrics={"exact_match": exact_match},
    ... )
    >>> scores.by("task")
    {'qa': {'exact_match': 50.0}, 'parse': {'exact_match': 100.0}}
    >>> scores.mean_over("task")
    {'exact_match': 75.0}
    >>> print(scores.table("task"))
    task   examples  exact_match
    qa            2         50.0
    parse         1        100.0
    all           3         66.7
    """

    features: Mapping[str, Sequence[Any]]
    predictions: Sequence[str]
    references: Sequence[Reference]
    metrics: Mapping[str, Metric]

    def __post_init__(self) -> None:
        features = {name: tuple(values) for name, values in self.features.items()}
        object.__setattr__(self, "features", features)
        object.__setattr__(self, "predictions", tuple(self.predictions))
        object.__setattr__(self, "references", tuple(self.references))
        object.__setattr__(self, "metrics", dict(self.metrics))
        check_metrics(self.metrics)
        lengths = {name: len(values) for name, values in features.items()}
        lengths |= {"references": len(self.references)}
        if set(lengths.values()) != {len(self)}:
            raise ValueError(
                "Every prediction must have a reference and an entry of every "
                f"feature. Received: {len(self)} predictions, and {lengths}. Pass "
                "equally many."
            )

    def __len__(self) -> int:
        return len(self.predictions)

    def overall(self) -> Score:
        """The score of all examples as one group."""
        return self._score(range(len(self)))

    def by(self, *features: str) -> dict[Any, Score]:
        """The scores of groups of examples.

        Args:
            *features: Which features tell the groups apart. With none, all examples
                are one group.

        Returns:
            The score of each group, in order of first occurrence, by the value of
            the one feature or the tuple of the values of several. `None` stands for
            absence. An example with several values belongs to several groups.
        """
        return {key: self._score(rows) for key, rows in self._groups(features).items()}

    def counts(self, *features: str) -> dict[Any, int]:
        """The number of examples of each group of `by`."""
        return {key: len(rows) for key, rows in self._groups(features).items()}

    def mean_over(self, *features: str) -> Score:
        """The mean of the groups of `by`, in which every group counts the same."""
        groups = self.by(*features).values()
        return {
            name: sum(group[name] for group in groups) / len(groups)
            for name in self.metrics
        }

    def table(self, *features: str) -> str:
        """The groups of `by` as a text, one line each, and all examples last.

        Those of one value of the first feature stand together, then of the second.
        """
        return aligned(self._rows(*features))

    def _rows(self, *features: str) -> list[list[str]]:
        counts, scores = self.counts(*features), self.by(*features)
        rows = [["/".join(features), "examples", *self.metrics]]
        # Without features, the one group is that of the last line.
        for key in _together(scores, len(features)) if features else ():
            name = "/".join(map(shown, key if len(features) > 1 else (key,)))
            rows.append([name, str(counts[key]), *_numbers(scores[key])])
        rows.append(["all", str(len(self)), *_numbers(self.overall())])
        return rows

    def __str__(self) -> str:
        return "\n\n".join(self.table(name) for name in self.features)

    def _line(self) -> str:
        return (
            f"Scores({count(len(self), 'example')}, features {some(self.features)}, "
            f"metrics {some(self.metrics)})"
        )

    def _tables(self) -> Iterable[tuple[str, Rows]]:
        return [("", self._rows(name)) for name in self.features]

    def to_dict(self, examples: bool = False) -> dict[str, Any]:
        """The scores as a dict of JSON types.

        Args:
            examples: Whether to add every example under `"examples"`.

        Returns:
            A dict with `"count"`, the `"overall"` score, the scores `"by"` feature and
            value (where `""` is absence), and a list of the `"cells"` of all features.
        """
        features = tuple(self.features)
        counts = self.counts(*features)
        cells = [
            {
                "features": dict(zip(features, key if len(features) > 1 else (key,))),
                "count": counts[key],
                "scores": score,
            }
            for key, score in self.by(*features).items()
        ]
        result = {
            "count": len(self),
            "overall": self.overall(),
            "by": {
                name: {"" if v is None else v: s for v, s in self.by(name).items()}
                for name in features
            },
            "cells": cells,
        }
        if examples:
            result["examples"] = [
                {
                    "features": {name: self.features[name][i] for name in features},
                    "prediction": self.predictions[i],
                    "reference": self.references[i]
                    if isinstance(self.references[i], str)
                    else list(self.references[i]),
                }
                for i in range(len(self))
            ]
        return result

    def _score(self, rows: Sequence[int]) -> Score:
        predictions = [self.predictions[i] for i in rows]
        references = [self.references[i] for i in rows]
        return {
            name: float(metric(predictions, references))
            for name, metric in self.metrics.items()
        }

    def _groups(self, features: Sequence[str]) -> dict[Any, list[int]]:
        for name in features:
            check_feature(name, self.features, "Groups")
        groups: dict[Any, list[int]] = {}
        for i in range(len(self)):
            for key in _keys([self.features[name][i] for name in features]):
                groups.setdefault(key[0] if len(features) == 1 else key, []).append(i)
        return groups


def check_metrics(metrics: Mapping[str, Metric]) -> None:
    """Raises unless there is a metric."""
    if not metrics:
        raise ValueError(
            "Scores must have at least one metric. Received: metrics={}. Pass "
            'such as {"exact_match": keras_flix.text_metrics.exact_match}.'
        )


def _keys(entries: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """The groups of an example: each choice of one of its values per feature."""
    return itertools.product(*[values_of(entry) or (None,) for entry in entries])


def _together(keys: Iterable[Any], features: int) -> list[Any]:
    """Keys of groups, those of one value together, values by first occurrence.

    >>> _together([("qa", "en"), ("ner", "sw"), ("ner", "en"), ("qa", "sw")], 2)
    [('qa', 'en'), ('qa', 'sw'), ('ner', 'en'), ('ner', 'sw')]
    """
    if features < 2:
        return list(keys)
    keys = list(keys)
    places: list[dict[Any, int]] = [{} for _ in range(features)]
    for key in keys:
        for place, value in zip(places, key):
            place.setdefault(value, len(place))
    return sorted(keys, key=lambda key: [p[v] for p, v in zip(places, key)])


def _numbers(score: Score) -> list[str]:
    return [f"{value:.1f}" for value in score.values()]
