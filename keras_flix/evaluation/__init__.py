"""How good a model is on a mixture: generation, scores, and their comparison."""

from keras_flix.evaluation.bootstrap import Comparison, paired_bootstrap
from keras_flix.evaluation.evaluate import evaluate, forced_exact_match
from keras_flix.evaluation.scores import Scores

__all__ = [
    "Comparison",
    "Scores",
    "evaluate",
    "forced_exact_match",
    "paired_bootstrap",
]
