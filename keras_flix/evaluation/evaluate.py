"""`evaluate`: a model answers the prompts of a mixture and is scored by feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import keras_hub
import numpy as np

from keras_flix.evaluation.metrics import Metric, exact_match
from keras_flix.evaluation.scores import Scores, check_metrics
from keras_flix.features.columns import as_columns, is_table
from keras_flix.features.host_values import host_value
from keras_flix.features.input_entries import encode_inputs
from keras_flix.mixtures.dataset import Dataset
from keras_flix.mixtures.mixture import Mixture
from keras_flix.mixtures.named_columns import PROMPTS, RESPONSES
from keras_flix.mixtures.tables import entries_of
from keras_flix.models.adapted import prompts
from keras_flix.models.adapted.adaptation import adaptation_of, is_adapted
from keras_flix.models.adapted.cut_texts import prompts_counted
from keras_flix.models.adapted.own_inputs import check_texts


def evaluate(
    model: keras.Model,
    mixture: Mixture | Dataset | Sequence[Dataset] | Any,
    metrics: Mapping[str, Metric] | None = None,
    batch_size: int = 32,
    max_length: int | None = None,
) -> Scores:
    """Lets a model answer the prompts of a mixture, and scores the answers.

    Batches go across datasets, and all have one size, so that the model is compiled
    once. The model's sampler decides how it answers: compile it with
    `sampler="greedy"` for scores without chance.

    Args:
        model: A KerasHub causal LM with its preprocessor. An adapted model gets
            its features; features that it does not have are left out, as all are for
            a plain model.
        mixture: A `Mixture` or datasets, or a table that `fit` takes, with the columns
            `"prompts"` and `"responses"`. A response may be a list of several that
            are right. The other columns of a table are the model's features; for a
            plain model, features to score by.
        metrics: By name, functions of predictions and references, in percent.
            By default, `exact_match`.
        batch_size: Prompts per batch.
        max_length: As for `generate`: the length of prompt and answer in tokens.

    Returns:
        The `Scores`, which hold every prediction, in the order of the mixture's
        datasets or the table's rows.

    Raises:
        ValueError: If a column, the preprocessor or every metric is missing, or a table
            has a column too many.

    Example:

    ```python
    scores = evaluate(gemma, mixture)
    print(scores)
    scores.by("task", "language")["qa", "sw"]["exact_match"]
    ```
    """
    examples = checked_examples(model, mixture)
    if batch_size < 1:
        raise ValueError(
            "A batch must have at least one prompt. Received: "
            f"batch_size={batch_size}. Pass a positive number."
        )
    metrics = {"exact_match": exact_match} if metrics is None else metrics
    # Before hours of generation, not after.
    check_metrics(metrics)
    prompts_of, features = examples.columns[PROMPTS], examples.features
    inputs = {PROMPTS: prompts_of, **entries_for(model, features)}
    predictions: list[str] = []
    with prompts_counted() as texts:
        texts.size = len(prompts_of)
        for rows, kept in equal_batches(len(prompts_of), batch_size):
            batch: Any = {name: [x[i] for i in rows] for name, x in inputs.items()}
            if not is_adapted(model) and prompts.takes_plain_strings(
                model.preprocessor
            ):
                batch = batch[PROMPTS]
            with texts.of_rows(np.array(rows)):
                answers = model.generate(
                    batch, max_length=max_length, strip_prompt=True
                )
            predictions += list(answers)[:kept]
    return Scores(features, predictions, examples.columns[RESPONSES], metrics)


class Examples(NamedTuple):
    """What there is to evaluate on.

    Attributes:
        columns: By name, one entry per example: prompts, responses and maybe others.
        features: By feature, the value of each example.
    """

    columns: dict[str, Any]
    features: dict[str, Any]


def checked_examples(model: keras.Model, data: Any) -> Examples:
    """Examples to evaluate on; raises unless the model can be asked their prompts.

    Args:
        model: The model.
        data: As for `evaluate`, or what this returned.
    """
    if isinstance(data, Examples):
        return data
    if is_table(data):
        labels = None
        if is_adapted(model):
            labels = adaptation_of(model, sharing=True).schema.of_strings
        columns, names = as_columns(data, labels), []
    else:
        data = [data] if isinstance(data, Dataset) else data
        data = data if isinstance(data, Mixture) else Mixture(data)
        columns, names = data.inputs(), list(data.datasets[0].features)
    own = {name: column for name, column in columns.items() if name not in names}
    missing = {PROMPTS, RESPONSES} - set(own)
    if missing:
        raise ValueError(
            f"Datasets to evaluate must have the columns {PROMPTS!r} and "
            f"{RESPONSES!r}. Received: columns {list(own)}. "
            f"Add {sorted(missing)[0]!r}."
        )
    if getattr(model, "preprocessor", None) is None:
        raise ValueError(
            "A model to evaluate must take strings. Received: a "
            f"{type(model).__name__} without a preprocessor. Attach one, or use "
            "`forced_exact_match` on tokens."
        )
    check_texts(own)
    if is_table(data):
        return Examples(columns, _features_of(model, own))
    features = {name: columns[name] for name in names}
    _check_features(model, features, len(own[PROMPTS]))
    return Examples(columns, features)


def _check_features(model: Any, features: Mapping[str, Any], count: int) -> None:
    """Raises where the model knows no such value, before the first answer."""
    if is_adapted(model) and not adaptation_of(model, sharing=True).disabled:
        _ids_of(model, entries_for(model, features), count)


def _features_of(model: keras.Model, columns: Mapping[str, Any]) -> dict[str, Any]:
    """The features among a table's columns, as the model's schema writes values."""
    count = len(columns[PROMPTS])
    entries = {n: c for n, c in columns.items() if n not in (PROMPTS, RESPONSES)}
    if not is_adapted(model):
        return {name: entries_of(name, c, count) for name, c in entries.items()}
    schema = adaptation_of(model, sharing=True).schema
    return schema.decode(_ids_of(model, entries, count))


def _ids_of(model: Any, entries: dict[str, Any], count: int) -> dict[str, Any]:
    """Entries of features as ids, with those that are stated for all calls."""
    adaptation = adaptation_of(model, sharing=True)
    schema = adaptation.schema
    entries |= adaptation.defaults.now().entries(schema, entries)
    schema.check_entries(entries)
    return encode_inputs(schema, entries, count)


def forced_exact_match(
    model: keras.Model, x: Any, y: Any, sample_weight: Any, batch_size: int = 32
) -> np.ndarray:
    """Whether greedy decoding would give each reference, without decoding.

    Greedy decoding gives a reference if and only if, with the reference as its
    input, the model's most likely next token is right at every position: one forward
    pass tells, where generation needs one per token. Two things count for `evaluate`
    only: a text that the model spells in other tokens than the tokenizer, and one
    that fills the sequence, so that generation stops before its end token.

    A preprocessor cuts what is longer than its `sequence_length`, prompts too, and
    a reference that was cut counts as it is then: choose a length that all fit in.

    Args:
        model: A causal LM, adapted or plain. Its logits of a batch are held in
            memory.
        x: Its input dict of arrays, with the entries of the features, as its
            preprocessor makes it.
        y: The next tokens, int of shape `(examples, length)`.
        sample_weight: Of the same shape; not zero where the next token belongs to
            the reference. An example without any is no match: its reference was
            cut off.
        batch_size: Examples per batch.

    Returns:
        bool, of shape `(examples,)`.

    Raises:
        ValueError: If the shapes differ.

    Example:

    ```python
    x, y, sample_weight = gemma.preprocess_samples(mixture.inputs())
    100 * forced_exact_match(gemma, x, y, sample_weight).mean()
    ```
    """
    y, counted = np.asarray(host_value(y)), np.asarray(host_value(sample_weight)) != 0
    if y.ndim != 2 or y.shape != counted.shape:
        raise ValueError(
            "`y` and `sample_weight` must have the shape (examples, length). "
            f"Received: y of shape {y.shape} and sample_weight of shape "
            f"{counted.shape}. Pass what the preprocessor returned."
        )
    own = {name: host_value(value) for name, value in x.items()}
    hits = np.zeros(len(y), "bool")
    done = 0
    for rows, kept in equal_batches(len(y), batch_size):
        batch = {name: rows_of(value, rows) for name, value in own.items()}
        right = (_logits(model, batch).argmax(axis=-1) == y[rows]) | ~counted[rows]
        hit = right.all(axis=1) & counted[rows].any(axis=1)
        hits[done : done + kept] = hit[:kept]
        done += kept
    return hits


def entries_for(model: Any, features: Mapping[str, Any]) -> dict[str, Any]:
    """The features that a model takes."""
    if not is_adapted(model):
        return {}
    schema = adaptation_of(model, sharing=True).schema
    names = [feature.name for feature in schema.routed]
    return {name: features[name] for name in names if name in features}


def _logits(model: Any, tokens: dict[str, Any]) -> np.ndarray:
    if isinstance(model, keras_hub.models.Task):
        # The task's own method would preprocess the tokens once more.
        tokens = model._encode(tokens) if is_adapted(model) else tokens
        return np.asarray(keras.Model.predict_on_batch(model, tokens))
    return np.asarray(model.predict_on_batch(tokens))


def equal_batches(count: int, batch_size: int) -> list[tuple[list[int], int]]:
    """Rows of batches of one size, and how many of them are no repetition.

    >>> equal_batches(3, 2)
    [([0, 1], 2), ([2, 2], 1)]
    """
    size = min(count, batch_size)
    starts = range(0, count, size) if size else ()
    return [
        (
            [min(i, count - 1) for i in range(start, start + size)],
            min(size, count - start),
        )
        for start in starts
    ]


def rows_of(value: Any, rows: list[int]) -> Any:
    if isinstance(value, (list, tuple)):
        return [value[i] for i in rows]
    # A scalar holds for the whole batch.
    return value[rows] if isinstance(value, np.ndarray) and value.ndim else value
