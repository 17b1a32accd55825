"""`Mixture`: datasets with features, and batches that mix them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_flix._utils.displayed import Displayed, Rows, count, shown
from keras_flix._utils.imported_late import imported_late
from keras_flix.features.columns import described, is_table
from keras_flix.features.dropout import FeatureDropout
from keras_flix.features.feature import Feature
from keras_flix.features.schema import FeatureSchema, check_feature
from keras_flix.mixtures.dataset import (
    Dataset,
    check_alike,
    check_kinds,
    gathered,
    values_of,
)
from keras_flix.mixtures.from_tables import FromTables
from keras_flix.mixtures.not_an_array import NotAnArray
from keras_flix.mixtures.sampling import Batch, draw_places
from keras_flix.mixtures.splits import Splits
from keras_flix.mixtures.tables import datasets_of

if TYPE_CHECKING:
    import keras

__all__ = ["Dataset", "Mixture"]


@dataclasses.dataclass(frozen=True, eq=False, repr=False, init=False)
class Mixture(FromTables, Splits, NotAnArray, Displayed):
    """Several datasets with the same features and columns, drawn from together.

    Args:
        datasets: The `Dataset`s; or a table, of which each combination of values
            becomes one: a dict of columns, a list of dicts, a DataFrame (pandas,
            polars), a pyarrow table or a Hugging Face dataset.
        temperature: How evenly datasets are drawn: with probabilities
            proportional to `len(dataset) ** (1 / temperature)`. 1 goes by their
            sizes, `float("inf")` draws all of them equally often.
        features: Which columns of a table are features. Needed for a table, and for
            nothing else.

    Example:

    >>> mixture = Mixture(
    ...     [
    ...         Dataset({"task": "qa"}, {"prompts": ["a?"] * 3}),
    ...         Dataset({"task": "parse"}, {"prompts": ["b!"]}),
    ...     ]
    ... )
    >>> mixture.probabilities
    array([0.75, 0.25])
    >>> mixture.sample(4, seed=3)
    {'prompts': ['a?', 'a?', 'b!', 'a?'], 'task': ['qa', 'qa', 'parse', 'qa']}
    >>> Mixture(
    ...     [{"prompts": "a?", "task": "qa"}, {"prompts": "b!", "task": "parse"}],
    ...     features=["task"],
    ... )
    Mixture(2 datasets, 2 examples, features ['task'], columns ['prompts'])
    """

    datasets: Sequence[Dataset]
    temperature: float

    def __init__(
        self,
        datasets: Sequence[Dataset] | Any,
        temperature: float = 1.0,
        *,
        features: Sequence[str] | None = None,
    ) -> None:
        if is_table(datasets):
            datasets = datasets_of(datasets, features)
        elif features is not None:
            raise ValueError(
                "`features` must come with a table. Received: features="
                f"{features!r} with {described(datasets)}. Leave it out: a Dataset "
                "states its own."
            )
        if isinstance(datasets, str) or not isinstance(datasets, Iterable):
            datasets = [datasets]
        object.__setattr__(self, "datasets", tuple(datasets))
        object.__setattr__(self, "temperature", temperature)
        for dataset in self.datasets:
            if not isinstance(dataset, Dataset):
                raise ValueError(
                    "A mixture must be of Dataset, or of a table. Received: "
                    f"{described(dataset)}. Write Mixture([Dataset(...), ...]) or "
                    "Mixture(table, features=[...])."
                )
        if not self.datasets:
            raise ValueError(
                "A mixture must have at least one dataset. Received: datasets=[]. "
                "Pass a list of Dataset."
            )
        for i, dataset in enumerate(self.datasets):
            check_alike(self.datasets[0], dataset, i)
        check_kinds(self.datasets)
        if not self.temperature > 0:
            raise ValueError(
                "The temperature of a mixture must be positive. Received: "
                f"temperature={self.temperature!r}. 1 draws datasets by their sizes, "
                'float("inf") draws all equally often.'
            )

    def __len__(self) -> int:
        return sum(self.sizes)

    def _line(self) -> str:
        first = self.datasets[0]
        warm = "" if self.temperature == 1 else f", temperature {self.temperature:g}"
        return (
            f"Mixture({count(len(self.datasets), 'dataset')}, "
            f"{count(len(self), 'example')}, features "
            f"{list(first.features)}, columns {list(first.columns)}{warm})"
        )

    def _tables(self) -> Iterable[tuple[str, Rows]]:
        names = list(self.datasets[0].features)
        rows = [
            [
                *(
                    ", ".join(map(shown, values_of(d.features[n]) or [None]))
                    for n in names
                ),
                f"{len(d):,}",
                f"{share:.1%}",
            ]
            for d, share in zip(self.datasets, self.probabilities)
        ]
        return [("", [[*names, "examples", "drawn"], *rows])]

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of examples of each dataset."""
        return tuple(len(dataset) for dataset in self.datasets)

    @functools.cached_property
    def probabilities(self) -> np.ndarray:
        """How likely each dataset is drawn; float64, shape `(datasets,)`."""
        weights = np.asarray(self.sizes, "float64") / max(self.sizes)
        weights = weights ** (1 / self.temperature)
        return weights / weights.sum()

    def schema(
        self,
        rank: Any = None,
        dropout: float
        | FeatureDropout
        | Mapping[str, float | FeatureDropout]
        | None = None,
    ) -> FeatureSchema:
        """The features, with the values that occur in the order they first do.

        A feature on which a dataset has several values gets `multiple=True`.

        Args:
            rank: As for `enable_flix`: a number, or a dict by feature. What it
                leaves out is left to `enable_flix`.
            dropout: Likewise.

        Returns:
            A `FeatureSchema`.
        """
        names = list(self.datasets[0].features)
        for label, option in (("rank", rank), ("dropout", dropout)):
            for name in option if isinstance(option, Mapping) else ():
                check_feature(name, names, f"`{label}` by feature")
        features = []
        for name in names:
            entries = [dataset.features[name] for dataset in self.datasets]
            values = dict.fromkeys(v for entry in entries for v in values_of(entry))
            features.append(
                Feature(
                    name,
                    list(values),
                    rank=rank.get(name) if isinstance(rank, Mapping) else rank,
                    dropout=dropout.get(name)
                    if isinstance(dropout, Mapping)
                    else dropout,
                    multiple=any(isinstance(entry, list) for entry in entries),
                )
            )
        return FeatureSchema(features)

    def draw(self, count: int, seed: int | Sequence[int] = 0) -> np.ndarray:
        """Draws examples.

        Datasets are drawn with `probabilities`, independently. The rows of one
        dataset come in random order without repetition, and in a new order when
        all have come.

        Args:
            count: How many.
            seed: The same seed draws the same, and a smaller count then draws
                the beginning. A number, or several.

        Returns:
            int64 of shape `(count, 2)`: dataset and row of each example.
        """
        seeds = np.random.SeedSequence(seed)
        return draw_places(self.sizes, self.probabilities, count, seeds)

    def sample(self, count: int, seed: int = 0) -> Batch:
        """What `draw` drew, ready for `fit`.

        Args:
            count: How many examples.
            seed: As for `draw`.

        Returns:
            A dict with every column, where lists stay lists and arrays stay
            arrays, and a list of values for every feature.
        """
        return self.take(self.draw(count, seed))

    def take(self, draws: np.ndarray) -> Batch:
        """The examples at some places.

        Args:
            draws: Dataset and row of each, as `draw` returns them.

        Returns:
            A dict as of `sample`.
        """
        batch: Batch = {}
        for name in self.datasets[0].columns:
            columns = [dataset.columns[name] for dataset in self.datasets]
            if isinstance(columns[0], list):
                batch[name] = [columns[i][row] for i, row in draws]
            else:
                batch[name] = gathered(columns, draws)
        for name in self.datasets[0].features:
            values = [dataset.features[name] for dataset in self.datasets]
            if any(isinstance(value, list) for value in values):
                batch[name] = [list(values_of(values[i])) for i in draws[:, 0]]
            else:
                batch[name] = [values[i] for i in draws[:, 0]]
        return batch

    def batches(
        self,
        batch_size: int,
        steps: int,
        seed: int = 0,
        *,
        y: str | None = None,
        sample_weight: str | None = None,
    ) -> keras.utils.PyDataset:
        """Batches for `fit`, drawn anew in every epoch.

        Args:
            batch_size: Examples per batch.
            steps: Batches per epoch.
            seed: Epoch and seed determine what is drawn, also where the `fit` of an
                adapted model goes on with a later epoch. (`fit` shuffles the
                order of an epoch's batches unless it has `shuffle=False`.)
            y: The column with labels, which a batch then has as its second
                part. KerasHub tasks that take strings need none.
            sample_weight: The column with weights, the third part of a batch. Where
                the targets are made of the texts, these are the responses' weights.

        Returns:
            A `keras.utils.PyDataset` of dicts as of `sample`, or of tuples
            `(x, y)` or `(x, y, sample_weight)`, where `y` may be `None`.
        """
        if batch_size < 1 or steps < 1:
            raise ValueError(
                "`batches` must draw at least one batch of at least one example. "
                f"Received: batch_size={batch_size!r}, steps={steps!r}. Pass positive "
                "numbers."
            )
        labels = [y] if sample_weight is None else [y, sample_weight]
        for name in labels:
            if name is not None and name not in self.datasets[0].columns:
                raise ValueError(
                    "`y` and `sample_weight` must name columns of the mixture. "
                    f"Received: {name!r}, which is none of "
                    f"{list(self.datasets[0].columns)}. Correct the name."
                )

        def draw(seeds: np.random.SeedSequence, count: int) -> np.ndarray:
            return draw_places(self.sizes, self.probabilities, count, seeds)

        # Files are read, and told what is wrong with them, without Keras.
        drawn = imported_late("keras_flix.mixtures.drawn_batches:DrawnBatches")
        return drawn(draw, self.take, batch_size, steps, seed, labels)

    def inputs(self) -> Batch:
        """All examples once, in order, as a dict as of `sample`."""
        places = [(i, row) for i, size in enumerate(self.sizes) for row in range(size)]
        return self.take(np.asarray(places, "int64"))

    def limit(self, count: int, seed: int = 0) -> Mixture:
        """At most `count` random examples of every dataset, in their order.

        Those of a smaller count are among those of a larger one.
        """
        if count < 1:
            raise ValueError(
                "A limit must leave every dataset an example. Received: "
                f"count={count}. Pass at least 1, or `split` datasets off."
            )
        seeds = np.random.SeedSequence(seed).spawn(len(self.datasets))
        chosen = [
            np.sort(np.random.default_rng(own).permutation(len(dataset))[:count])
            for dataset, own in zip(self.datasets, seeds)
        ]
        datasets = [
            dataset.select(rows) for dataset, rows in zip(self.datasets, chosen)
        ]
        return Mixture(datasets, self.temperature)
