"""The error bars of scores that several guides draw."""

from collections.abc import Sequence

import numpy as np


def error_bar(
    scores: Sequence[float], samples: int = 10_000
) -> tuple[list[float], list[float]]:
    """Returns how far the 95 % interval of a mean reaches down and up.

    Examples are drawn with replacement, as many as there are (the bootstrap). Chance in
    training is no part of it.

    Args:
        scores: One per example.
        samples: How often to draw.

    >>> error_bar([100.0] * 20)
    ([0.0], [0.0])
    >>> (down,), (up,) = error_bar([0.0, 100.0] * 50)
    >>> 8 <= down <= 12 and 8 <= up <= 12  # About two standard errors, each of 5.
    True
    """
    drawn = np.random.default_rng(0).choice(scores, (samples, len(scores)))
    low, high = np.quantile(drawn.mean(axis=1), [0.025, 0.975])
    mean = float(np.mean(scores))
    return [mean - float(low)], [float(high) - mean]
