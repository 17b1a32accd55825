"""XTREME-UP: its loader and its scores, under one name."""

from keras_flix.evaluation.xtreme_up import (
    HIGH_RESOURCE,
    METRICS,
    UNDER_REPRESENTED,
    task_scores,
)
from keras_flix.mixtures.xtreme_up import (
    CODE_SWITCHED,
    LANGUAGES,
    SPLITS,
    TASKS,
    default_prompt,
    load_xtreme_up,
)

__all__ = [
    "CODE_SWITCHED",
    "HIGH_RESOURCE",
    "LANGUAGES",
    "METRICS",
    "SPLITS",
    "TASKS",
    "UNDER_REPRESENTED",
    "default_prompt",
    "load_xtreme_up",
    "task_scores",
]
