"""The metrics of `keras_flix.evaluation.metrics`, under their public name."""

from keras_flix.evaluation.metrics import (
    Metric,
    Reference,
    chrf,
    exact_match,
    span_f1,
    token_f1,
)

__all__ = ["Metric", "Reference", "chrf", "exact_match", "span_f1", "token_f1"]
