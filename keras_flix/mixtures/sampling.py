"""Which examples of a mixture come next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Batch = dict[str, Any]
"""Columns and one entry per feature, by name: the inputs of `fit`."""


def draw_places(
    sizes: Sequence[int],
    probabilities: np.ndarray,
    count: int,
    seed: np.random.SeedSequence,
) -> np.ndarray:
    """Draws datasets, and their rows without repetition until all have come.

    Args:
        sizes: The number of examples of each dataset.
        probabilities: How likely each dataset is.
        count: How many places to draw; a smaller count draws the beginning.
        seed: Where randomness comes from; fresh, since it spawns.

    Returns:
        int64 of shape `(count, 2)`: dataset and row of each.
    """
    # A stream for the datasets and one for the rows of each: the order of one
    # dataset's rows depends on no other dataset.
    streams = [np.random.default_rng(own) for own in seed.spawn(len(sizes) + 1)]
    edges = np.cumsum(probabilities)[:-1]
    chosen = np.searchsorted(edges, streams[0].random(count), side="right")
    rows = np.empty(count, "int64")
    for i, (size, stream) in enumerate(zip(sizes, streams[1:])):
        places = np.flatnonzero(chosen == i)
        rounds = [stream.permutation(size) for _ in range(-(-len(places) // size))]
        if rounds:
            rows[places] = np.concatenate(rounds)[: len(places)]
    return np.stack([chosen, rows], axis=1)
