"""What a `Mixture` is to `fit` and its kin: columns, and what is drawn of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_flix._utils.near_names import hint
from keras_flix.mixtures.dataset import Dataset
from keras_flix.mixtures.mixture import Mixture
from keras_flix.models.adapted.example_order import Drawn, checked_batch_size

LABELS = ("y", "sample_weight")
"""Arguments that name a column, where the data is a mixture."""


def as_mixture(data: Any) -> Mixture | None:
    """A mixture, also of a single dataset; `None` for what is neither."""
    if isinstance(data, Dataset):
        return Mixture([data])
    return data if isinstance(data, Mixture) else None


def columns_of(
    mixture: Mixture, options: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The inputs of all examples in order, and the options with labels and weights.

    Args:
        mixture: The mixture.
        options: Arguments of `fit` or `evaluate`, of which `y` and `sample_weight` name
            columns.
    """
    inputs, options = mixture.inputs(), dict(options)
    columns = list(mixture.datasets[0].columns)
    for label in LABELS:
        name = options.get(label)
        if name is None:
            continue
        if not isinstance(name, str) or name not in columns:
            near = hint(name, columns) if isinstance(name, str) else ""
            given = repr(name) if isinstance(name, str) else f"a {type(name).__name__}"
            raise ValueError(
                "`y` and `sample_weight` must name columns of the mixture, "
                f"{columns}. Received: {label}={given}.{near} Name the column."
            )
        column = inputs.pop(name)
        options[label] = np.asarray(column) if isinstance(column, list) else column
    return inputs, options


def parts_of(data: Any, options: dict[str, Any]) -> Any:
    """Data in a mixture as `(x, y, sample_weight)`; any other as it is.

    Args:
        data: Such as `validation_data`: a mixture, or a tuple that begins with one,
            followed by the names of its columns of labels and weights.
        options: Arguments that name these columns for a mixture alone.
    """
    parts = data if isinstance(data, (tuple, list)) and data else (data,)
    mixture = as_mixture(parts[0])
    if mixture is None:
        return data
    names = dict(zip(LABELS, parts[1:])) or {
        label: options[label] for label in LABELS if isinstance(options.get(label), str)
    }
    x, found = columns_of(mixture, names)
    return (x, *(found.get(label) for label in LABELS))


def training_of(
    mixture: Mixture, options: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], Callable[[int], Drawn] | None]:
    """What `fit` trains on, where it is given a mixture.

    Returns:
        The inputs of all examples; the options, in which validation data is parted off
        by combination of values; and, where an epoch is drawn with the mixture's
        temperature, the `Drawn` by seed. Without one, an epoch is one pass.
    """
    options = dict(options)
    share = options.pop("validation_split", None)
    if share and options.get("validation_data") is None:
        mixture, options["validation_data"] = mixture.validation_split(share)
    if options.get("validation_data") is not None:
        found = parts_of(options["validation_data"], options)
        options["validation_data"] = found
    x, options = columns_of(mixture, options)
    steps, batch_size = options.get("steps_per_epoch"), options.get("batch_size")
    if steps is None and mixture.temperature == 1:
        return x, options, None
    size = checked_batch_size(batch_size)
    count = -(-len(mixture) // size) if steps is None else _checked_steps(steps)
    starts = np.cumsum([0, *mixture.sizes[:-1]])

    def drawn(seed: int) -> Drawn:
        def rows(epoch: int) -> np.ndarray:
            places = mixture.draw(count * size, seed=(seed, epoch))
            return starts[places[:, 0]] + places[:, 1]

        return Drawn(rows, count)

    return x, options, drawn


def _checked_steps(steps: Any) -> int:
    if isinstance(steps, bool) or int(steps) != steps or steps < 1:
        raise ValueError(
            "An epoch must have at least one batch. Received: steps_per_epoch="
            f"{steps!r}. Pass a positive integer, or leave it out for one pass over "
            "the mixture."
        )
    return int(steps)


def refuse_mixture(x: Any) -> None:
    """Raises where a mixture is given as one batch."""
    if isinstance(x, (Mixture, Dataset)):
        raise ValueError(
            "A mixture goes to `fit`, `evaluate`, `predict` and "
            "`keras_flix.evaluation.evaluate`; all else takes one batch. Received: "
            f"{x!r}. Pass such as `mixture.sample(32)`, or `mixture.inputs()` for all "
            "examples."
        )
