"""Differences between two arms, with an interval over seeds and cells."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from keras_flix.evaluation.bootstrap import Comparison

Scores = Mapping[int, Mapping[str, float]]
"""By seed, then by cell."""


def compare(
    first: Scores, second: Scores, samples: int = 4000, seed: int = 0
) -> Comparison:
    """The mean difference, over the seeds and the cells that both have.

    Both seeds and cells are drawn with replacement, as many as there are: what another
    choice of either might have shown. With one seed only cells are drawn, so chance
    in training is no part of the interval then.

    Example:
        >>> ours = {0: {"a": 3.0, "b": 1.0}, 1: {"a": 5.0, "b": 3.0}}
        >>> theirs = {seed: {"a": 1.0, "b": 1.0} for seed in (0, 1, 2)}
        >>> print(compare(ours, theirs))
        +2.0 [+0.0, +4.0]
    """
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        raise ValueError(
            "Two arms are compared over common seeds. Received: "
            f"{sorted(first)} and {sorted(second)}. Run one more."
        )
    cells = sorted(first[seeds[0]])
    differences = np.array(
        [[first[s][cell] - second[s][cell] for cell in cells] for s in seeds]
    )
    generator = np.random.default_rng(seed)
    means = np.empty(samples)
    for i in range(samples):
        rows = generator.integers(len(seeds), size=len(seeds))
        columns = generator.integers(len(cells), size=len(cells))
        means[i] = differences[np.ix_(rows, columns)].mean()
    low, high = np.quantile(means, [0.025, 0.975])
    return Comparison(float(differences.mean()), float(low), float(high))
