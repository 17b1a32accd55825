"""How the tasks of XTREME-UP are scored."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

from keras_flix.evaluation.metrics import Metric, chrf, exact_match, span_f1, token_f1
from keras_flix.mixtures.xtreme_up import (
    CODE_SWITCHED,
    LANGUAGES,
    TASKS,
    check_known,
)

METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "semantic_parsing": exact_match,
        "qa_in_lang": token_f1,
        "qa_cross_lang": token_f1,
        "translation": chrf,
        "ner": span_f1,
    }
)
"""The metric of each task: a function of predictions and references, in percent.

The benchmark's own scripts are not the same for two of them: their token F1
keeps punctuation beyond ASCII and gives 0 to two texts without words; their span F1
passes over entities without a label or with a second colon, which count here.
"""


HIGH_RESOURCE = frozenset(
    "ar ca cs de en es fa fi fr hi hr hu it ja ko nl pl pt ru sr sv tr vi zh".split()
)
"""Languages that the benchmark counts as well represented."""

UNDER_REPRESENTED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        task: tuple(
            language
            for language in languages
            if language not in CODE_SWITCHED
            # "pt_br" and "de_localized" are Portuguese and German.
            and language.partition("_")[0] not in HIGH_RESOURCE
        )
        for task, languages in LANGUAGES.items()
    }
)
"""The languages over which each task's score is averaged."""


def task_scores(
    cells: Mapping[tuple[str, str], Mapping[str, float]],
    languages: Mapping[str, Collection[str]] = UNDER_REPRESENTED,
) -> dict[str, float]:
    """Each task's score: the mean of its metric over under-represented languages.

    Args:
        cells: From `(task, language)` to scores by the metric's name, as the `by`
            of evaluated scores gives for `"task", "language"`. Evaluate without
            code-switched sets: `by` counts their examples in both languages.
        languages: The languages that count, by task. `UNDER_REPRESENTED` by
            default: what the benchmark's own evaluation counts. Give a dict of your
            own to average over others.

    Returns:
        A dict from task to score, with the tasks that have a language that counts.

    >>> parsing = [("am", 40.0), ("en", 90.0), ("sw", 60.0)]
    >>> task_scores({("semantic_parsing", n): {"exact_match": s} for n, s in parsing})
    {'semantic_parsing': 50.0}
    """
    found: dict[str, list[float]] = {}
    for (task, language), scores in cells.items():
        check_known("task", [task], TASKS)
        name = METRICS[task].__name__
        if language not in languages.get(task, ()):
            continue
        if name not in scores:
            raise ValueError(
                f"The scores of task {task!r} must have its metric {name!r}. Received: "
                f"{sorted(scores)} for language={language!r}. Evaluate with "
                f"metrics={{{name!r}: METRICS[{task!r}], ...}}."
            )
        found.setdefault(task, []).append(scores[name])
    return {task: sum(scores) / len(scores) for task, scores in found.items()}
