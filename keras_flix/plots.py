"""The figures of `keras_flix.analysis.plots`, under their public name."""

from keras_flix.analysis.plots import (
    plot_contributions,
    plot_norms,
    plot_ranks,
    plot_similarity,
)

__all__ = [
    "plot_contributions",
    "plot_norms",
    "plot_ranks",
    "plot_similarity",
]
