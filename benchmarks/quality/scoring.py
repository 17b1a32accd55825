"""How well a model answers: exact match and nats by cell, and chrF."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_flix import text_metrics
from keras_flix.evaluation import forced_exact_match

ROWS = 64
"""How many examples are scored at once."""

Cells = dict[str, float]
"""A number, most often exact match in percent, by cell, `task/language`."""


def inputs(
    examples: dict[str, Any], ids: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """`(x, y, sample_weight)` of `fit`."""
    x = {name: examples[name] for name in ("token_ids", "padding_mask")}
    return {**x, **ids}, examples["labels"], examples["weight"]


def measured(
    model: Any, examples: dict[str, Any], ids: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Of each example, whether greedy decoding gives the answer, and its nats.

    Nats are `-log p(answer | prompt)`, the end token included: they tell how near an
    answer is that is not exact yet. Examples of one length go together, without the
    padding that they do not need.
    """
    preprocessor, model.preprocessor = model.preprocessor, None
    x, y, weight = inputs(examples, ids)
    hits, nats = np.zeros(len(y), "bool"), np.zeros(len(y))
    used = np.asarray(x["padding_mask"]).sum(axis=1)
    used = np.minimum(-(-used // 8) * 8, y.shape[1])
    try:
        for length in np.unique(used):
            alike = np.flatnonzero(used == length)
            for start in range(0, len(alike), ROWS):
                kept = alike[start : start + ROWS]
                # All batches have one size, so that one function is compiled.
                rows = np.resize(kept, ROWS)
                batch = {
                    # A blend of values has more than one column, too.
                    name: value[rows] if name in ids else value[rows, :length]
                    for name, value in x.items()
                }
                logits = np.asarray(model.predict_on_batch(batch))[: len(kept)]
                counted = np.asarray(weight)[kept, :length] != 0
                right, loss = _answered(logits, y[kept, :length], counted)
                hits[kept], nats[kept] = right, loss
    finally:
        model.preprocessor = preprocessor
    return hits, nats


def _answered(
    logits: np.ndarray, y: np.ndarray, counted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`measured` of a batch; `counted` is where the answers are."""
    chosen, target = logits[counted].astype("float64"), y[counted]
    chosen -= chosen.max(axis=-1, keepdims=True)
    own = chosen[np.arange(len(target)), target]
    loss, wrong = np.zeros(counted.shape), np.zeros(counted.shape, "bool")
    loss[counted] = np.log(np.exp(chosen).sum(axis=-1)) - own
    wrong[counted] = chosen.argmax(axis=-1) != target
    return ~wrong.any(axis=1) & counted.any(axis=1), loss.sum(axis=1)


def scores(model: Any, examples: dict[str, Any], ids: dict[str, np.ndarray]) -> Cells:
    """Exact match in percent by cell."""
    preprocessor, model.preprocessor = model.preprocessor, None
    try:
        hits = forced_exact_match(model, *inputs(examples, ids), batch_size=64)
    finally:
        model.preprocessor = preprocessor
    return by_cell(examples["name"], 100.0 * hits)


def by_cell(names: Any, values: Any) -> Cells:
    """The mean of each cell."""
    groups: dict[str, list[float]] = {}
    for name, value in zip(names, values):
        groups.setdefault(name, []).append(float(value))
    return {name: round(float(np.mean(group)), 3) for name, group in groups.items()}


def mean_score(cells: Cells) -> float:
    """The mean over cells."""
    return float(np.mean(list(cells.values())))


def generated(
    model: Any, test: dict[str, Any], ids: dict[str, np.ndarray]
) -> dict[str, Cells]:
    """chrF and exact match of the answers that `generate` gives, by cell."""
    names = np.asarray(test["name"])
    answers: list[str] = []
    size = 128
    for start in range(0, len(names), size):
        # The last batch is filled up, so that one function is compiled.
        rows = np.arange(start, start + size) % len(names)
        batch = {"prompts": list(np.asarray(test["prompts"])[rows])}
        batch |= {axis: entries[rows] for axis, entries in ids.items()}
        answers += model.generate(batch, strip_prompt=True)
    answers = answers[: len(names)]
    references = list(test["responses"])
    chrf = {
        name: text_metrics.chrf(
            [answers[i] for i in np.flatnonzero(names == name)],
            [references[i] for i in np.flatnonzero(names == name)],
        )
        for name in dict.fromkeys(names)
    }
    match = [100.0 * (a == r) for a, r in zip(answers, references)]
    return {"chrf": chrf, "generated": by_cell(names, match)}
