"""`evaluate`: adapters on examples, scored by feature value."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from keras_flix._utils.imported_late import imported_late
from keras_flix._utils.near_names import hint
from keras_flix.command_line.answering import Adapted
from keras_flix.command_line.data_files import of_each, read_mixture, wrapped
from keras_flix.command_line.output import Answer, on_stderr, say
from keras_flix.command_line.templates import Template
from keras_flix.mixtures.mixture import Mixture

if TYPE_CHECKING:
    from keras_flix.evaluation.scores import Scores

METRICS = ("exact_match", "token_f1", "span_f1", "chrf")
"""What `--metrics` takes."""


def score(arguments: argparse.Namespace) -> Answer:
    """Scores of adapters on a file of examples."""
    check_metrics(arguments.metrics)
    adapted = Adapted.of(arguments)
    names = [feature.name for feature in adapted.schema.routed]
    mixture = read_mixture(
        arguments.data,
        names if arguments.features is None else _columns(arguments.features),
        adapted.settings["prompt"],
        adapted.settings["response"],
    )
    # Before the base is loaded, and not after hours.
    for dataset in mixture.datasets:
        known = {n: v for n, v in dataset.features.items() if n in adapted.schema}
        adapted.schema.encode_one(known)
    if arguments.limit is not None:
        mixture = mixture.limit(arguments.limit)
    with on_stderr():
        model = imported_late("keras_flix.command_line.bases:load_adapted")(adapted)
        say(f"answering {len(mixture):,} prompts")
        found = scored(
            model,
            wrapped(mixture, adapted.template),
            adapted.template,
            metrics=metrics_of(arguments.metrics),
            batch_size=arguments.batch_size,
            max_length=adapted.settings["sequence_length"],
        )
    return Answer(found.to_dict(examples=arguments.examples), score_blocks(found))


def scored(
    model: Any,
    mixture: Mixture,
    template: Template,
    *,
    metrics: Mapping[str, Callable[..., float]] | None = None,
    batch_size: int,
    max_length: int | None = None,
) -> Scores:
    """The scores of a model on a mixture in a template: of texts without it."""
    evaluate = imported_late("keras_flix.evaluation.evaluate:evaluate")
    found = evaluate(model, mixture, metrics, batch_size, max_length)
    return dataclasses.replace(
        found,
        predictions=[template.answer(text) for text in found.predictions],
        references=[of_each(template.answer, x) for x in found.references],
    )


def score_blocks(scores: Scores, title: str = "") -> list[str]:
    """Scores for people: a table for each feature."""
    lead = f"{title}, by " if title else "by "
    return [f"\n{lead}{name}\n{scores.table(name)}" for name in scores.features]


def _columns(texts: Sequence[str]) -> list[str]:
    return [name for text in texts for name in text.split(",")]


def check_metrics(names: Sequence[str]) -> None:
    """Raises for a name that `--metrics` does not take."""
    for name in names:
        if name not in METRICS:
            raise ValueError(
                f"--metrics must be of {', '.join(METRICS)}. Received: {name!r}."
                f"{hint(name, METRICS)}"
            )


def metrics_of(names: Iterable[str]) -> dict[str, Callable[..., float]]:
    """Metrics by name."""
    return {n: imported_late(f"keras_flix.evaluation.metrics:{n}") for n in names}
