"""Scores of groups of texts, in percent: `metric(predictions, references)`.

What a group is (a dataset, a language, all examples) is up to the caller:
corpus metrics such as chrF are no means over examples.
"""

from __future__ import annotations

import collections
import string
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

Reference = str | Sequence[str]
"""What a prediction should be: one text, or several that are equally right."""

# Not `Sequence[Reference]`: some metrics take one reference per prediction only.
Metric = Callable[[Sequence[str], Sequence[Any]], float]
"""From the predictions and references of a group to its score."""

ARTICLES = frozenset({"a", "an", "the"})
SEPARATOR = "$$"
"""Stands between the entities of a string."""


def exact_match(predictions: Sequence[str], references: Sequence[Reference]) -> float:
    """The percentage of predictions that are a reference, character by character.

    Args:
        predictions: Texts.
        references: One text each, or a list of which one must be met.

    Returns:
        A number in `[0, 100]`.

    Raises:
        ValueError: If there are no predictions, or not as many references.

    Example:

    >>> exact_match(["ndiyo", "Hapana"], ["ndiyo", ["hapana", "la"]])
    50.0
    """
    _check(predictions, references)
    hits = [p in _several(r) for p, r in zip(predictions, references)]
    return 100 * sum(hits) / len(hits)


def token_f1(predictions: Sequence[str], references: Sequence[Reference]) -> float:
    """The mean F1 of the words of each prediction, as in SQuAD.

    Words are what white space separates, in lower case, without punctuation (of
    any script) and English articles. Two texts without words agree.

    Args:
        predictions: Texts.
        references: One text each, or a list of which the best counts.

    Returns:
        A number in `[0, 100]`.

    Raises:
        ValueError: If there are no predictions, or not as many references.

    Example:

    >>> token_f1(["The Nile, in Africa"], [["Mto Nile", "the Nile"]])
    50.0
    """
    _check(predictions, references)
    scores = [
        max(_f1(_words(p), _words(one)) for one in _several(r))
        for p, r in zip(predictions, references)
    ]
    return 100 * sum(scores) / len(scores)


def span_f1(predictions: Sequence[str], references: Sequence[str]) -> float:
    """The micro F1 of the entities in strings like `PER: Ada $$ LOC: London`.

    An entity counts if its label and its text are those of the reference, as often
    as it occurs there. White space around both does not matter; an empty string
    has no entities.

    Args:
        predictions: Texts.
        references: One text each.

    Returns:
        A number in `[0, 100]`; 100 if there are no entities on either side.

    Raises:
        ValueError: If there are no predictions, not as many references, or a
            reference is a list.

    Example:

    >>> span_f1(["PER: Ada $$ LOC: Paris", ""], ["PER: Ada", "ORG: UN"])
    50.0
    """
    _check(predictions, references)
    for reference in references:
        if not isinstance(reference, str):
            raise ValueError(
                "`span_f1` takes one reference per prediction, since it counts "
                f"entities over all of them. Received: {reference!r}. Choose one."
            )
    pairs = [(_entities(p), _entities(r)) for p, r in zip(predictions, references)]
    found = sum((p & r).total() for p, r in pairs)
    total = sum(p.total() + r.total() for p, r in pairs)
    return 100 * 2 * found / total if total else 100.0


def chrf(predictions: Sequence[str], references: Sequence[Reference]) -> float:
    """The corpus chrF of sacreBLEU, with its default options.

    Args:
        predictions: Texts.
        references: One text each, or a list of several.

    Returns:
        A number in `[0, 100]`.

    Raises:
        ValueError: If there are no predictions, or not as many references.
        ImportError: If `sacrebleu` is not installed.

    Example:

    >>> chrf(["habari ya asubuhi"], ["habari ya asubuhi"])
    100.0
    """
    _check(predictions, references)
    try:
        import sacrebleu
    except ImportError as error:
        raise ImportError(
            "`chrf` needs the package sacrebleu, which is not installed. Install it "
            "with: pip install 'keras-flix[evaluation]'"
        ) from error
    several = [_several(reference) for reference in references]
    # One stream per reference; sacreBLEU skips the None of texts that have fewer.
    streams: Any = [
        [texts[i] if i < len(texts) else None for texts in several]
        for i in range(max(map(len, several)))
    ]
    return float(sacrebleu.corpus_chrf(list(predictions), streams).score)


def _check(predictions: Sequence[str], references: Sequence[Reference]) -> None:
    for name, texts in (("predictions", predictions), ("references", references)):
        if isinstance(texts, str):
            raise ValueError(
                f"`{name}` must be a list of texts. Received: {name}={texts!r}, a "
                f"single one. Write [{texts!r}]."
            )
    if len(predictions) != len(references):
        raise ValueError(
            "Every prediction must have a reference. Received: "
            f"{len(predictions)} predictions and {len(references)} references. Pass "
            "equally many; several references of one prediction form a list."
        )
    if not len(predictions):
        raise ValueError(
            "A metric must have at least one prediction. Received: predictions=[]. "
            "Leave the group out."
        )
    for i, reference in enumerate(references):
        if not _several(reference):
            raise ValueError(
                "Every prediction must have a reference. Received: references["
                f"{i}]=[]. Leave the example out, or write '' for an empty text."
            )


def _several(reference: Reference) -> list[str]:
    return [reference] if isinstance(reference, str) else list(reference)


def _words(text: str) -> list[str]:
    # Composed and decomposed letters are the same text.
    text = unicodedata.normalize("NFC", text).lower()
    kept = [c for c in text if not _is_punctuation(c)]
    return [word for word in "".join(kept).split() if word not in ARTICLES]


def _is_punctuation(character: str) -> bool:
    # ASCII's has symbols such as $ and + too.
    return character in string.punctuation or unicodedata.category(
        character
    ).startswith("P")


def _f1(found: list[str], wanted: list[str]) -> float:
    if not found or not wanted:
        return float(found == wanted)
    common = collections.Counter(found) & collections.Counter(wanted)
    return 2 * common.total() / (len(found) + len(wanted))


def _entities(text: str) -> collections.Counter[tuple[str, ...]]:
    parts = [part.strip() for part in text.split(SEPARATOR)]
    return collections.Counter(
        # Text without a label is an entity too, a wrong one.
        tuple(side.strip() for side in part.split(":", 1))
        for part in parts
        if part
    )
