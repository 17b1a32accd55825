"""Parts of a mixture: what is held out, and what training is validated on."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from keras_flix.features.values import Value
from keras_flix.mixtures.dataset import Dataset, values_of

Combination = Mapping[str, Value | None] | Sequence[Value | None]
"""Values of some features by name, or of all features in their order."""


class Splits:
    """How a `Mixture` is parted."""

    if TYPE_CHECKING:
        datasets: Sequence[Dataset]
        temperature: float

        def __init__(self, datasets: Any, temperature: float = 1.0) -> None: ...

    def split(self, *combinations: Combination) -> tuple[Self, Self]:
        """Holds datasets out.

        Args:
            *combinations: Values of some features each: `{"task": "qa", "language":
                "sw"}` holds one cell out, `{"language": "rw"}` a language. A tuple,
                such as `("qa", "sw")`, has a value of every feature, in their order.

        Returns:
            The mixture of the other datasets, and that of those which have any
            of the combinations. Neither is empty.

        Raises:
            ValueError: If a combination matches no dataset, or nothing would be
                left on one side.

        Example:

        >>> from keras_flix.mixtures import Dataset, Mixture
        >>> mixture = Mixture(
        ...     [Dataset({"task": t}, {"prompts": ["?"]}) for t in ("qa", "parse")]
        ... )
        >>> rest, held_out = mixture.split({"task": "qa"})
        >>> held_out.datasets[0].features
        {'task': 'qa'}
        """
        named = [self._by_name(combination) for combination in combinations]
        for combination in named:
            if not any(dataset.has(combination) for dataset in self.datasets):
                raise ValueError(
                    "A combination to hold out must match a dataset. Received: "
                    f"{combination}, which matches none. The nearest dataset "
                    f"has {self._nearest(combination)}. Correct or remove it."
                )
        rest, held_out = self._parted(lambda d: any(map(d.has, named)))
        if not held_out or not rest:
            raise ValueError(
                "A split must leave datasets on both sides. Received: "
                f"{len(combinations)} combinations, which match {len(held_out)} of "
                f"{len(self.datasets)} datasets. Name "
                f"{'fewer' if held_out else 'some'} of them."
            )
        return self._of(rest), self._of(held_out)

    def hold_out(
        self, pairs: int | Sequence[Combination], *, seed: int = 0
    ) -> tuple[Self, Self]:
        """Holds combinations out whose values all occur in others, as to test mixing.

        An adapter is learned by value: of a combination that was never seen, every part
        has been. `split` holds out anything, such as a whole language.

        Args:
            pairs: The combinations, as for `split`; or how many of them to draw, of
                those with two values or more.
            seed: Of the drawing.

        Returns:
            The mixture of the other datasets, and that of those held out.

        Raises:
            ValueError: As for `split`; and if a value would be left without examples,
                or fewer combinations can be drawn.

        Example:

        >>> from keras_flix.mixtures import Mixture
        >>> tasks, languages = ["qa", "qa", "parse", "parse"], ["en", "sw"] * 2
        >>> columns = {"prompts": ["?"] * 4, "task": tasks, "language": languages}
        >>> mixture = Mixture(columns, features=["task", "language"])
        >>> train, unseen = mixture.hold_out([("qa", "sw")])
        >>> [tuple(dataset.features.values()) for dataset in train.datasets]
        [('qa', 'en'), ('parse', 'en'), ('parse', 'sw')]
        """
        if isinstance(pairs, (int, np.integer)):
            return self._drawn_out(int(pairs), seed)
        if self._is_one(pairs):
            raise ValueError(
                "`pairs` must be a list of combinations, or how many of them to draw. "
                f"Received: one combination, {pairs!r}. Write [{pairs!r}]."
            )
        rest, held_out = self.split(*pairs)
        seen = set(_values(rest.datasets))
        for name, value in _values(held_out.datasets):
            if (name, value) not in seen:
                raise ValueError(
                    "What is held out must leave every value in another combination. "
                    f"Received: {len(pairs)} combinations, with all examples of "
                    f"{name}={value!r}. Hold fewer out; `split` holds out whole values."
                )
        return rest, held_out

    def validation_split(
        self, share: float = 0.1, *, seed: int = 0
    ) -> tuple[Self, Self]:
        """Parts off random examples of every combination, to validate on.

        Each dataset gives its share, up to less than one example; together they give
        the share of all examples. Each keeps one at least.

        Args:
            share: Which share of the examples to part off, between 0 and 1.
            seed: The same seed parts off the same examples.

        Returns:
            The mixture to train on, and that to validate on. Small datasets may have no
            examples in the latter.

        Raises:
            ValueError: If `share` is out of range, or parts off no example.

        Example:

        >>> from keras_flix.mixtures import Mixture
        >>> columns = {"prompts": ["?"] * 9, "task": ["qa"] * 8 + ["parse"]}
        >>> train, validation = Mixture(columns, features=["task"]).validation_split(
        ...     0.25
        ... )
        >>> train.sizes, validation.sizes
        ((6, 1), (2,))
        """
        sizes = np.asarray([len(dataset) for dataset in self.datasets])
        seeds = np.random.SeedSequence(seed).spawn(len(sizes) + 1)
        counts = (
            _shares(sizes, share, np.random.default_rng(seeds[-1]))
            if 0 < share < 1
            else np.zeros_like(sizes)
        )
        if not counts.sum():
            raise ValueError(
                "A validation split must part off an example, by a share between 0 "
                "and 1, and leave one of every dataset. Received: "
                f"{share!r} of {sizes.sum()} examples in "
                f"{len(sizes)} datasets. Choose another share, or `split` datasets off."
            )
        train, validation = [], []
        for dataset, count, own in zip(self.datasets, counts, seeds):
            order = np.random.default_rng(own).permutation(len(dataset))
            train.append(dataset.select(np.sort(order[count:])))
            if count:
                validation.append(dataset.select(np.sort(order[:count])))
        return self._of(train), self._of(validation)

    def _of(self, datasets: Sequence[Dataset]) -> Self:
        return type(self)(datasets, self.temperature)

    def _parted(
        self, chosen: Callable[[Dataset], bool]
    ) -> tuple[list[Dataset], list[Dataset]]:
        parts: tuple[list[Dataset], list[Dataset]] = [], []
        for dataset in self.datasets:
            parts[chosen(dataset)].append(dataset)
        return parts

    def _is_one(self, pairs: Any) -> bool:
        """Whether one combination was given where a list of them belongs."""
        if isinstance(pairs, (str, Mapping)):
            return isinstance(pairs, Mapping)
        of_values = all(one is None or isinstance(one, (str, int)) for one in pairs)
        return of_values and len(pairs) == len(self.datasets[0].features)

    def _by_name(self, combination: Combination) -> dict[str, Value | None]:
        if isinstance(combination, Mapping):
            return dict(combination)
        names = list(self.datasets[0].features)
        if isinstance(combination, str) or len(combination) != len(names):
            raise ValueError(
                "A combination must be a dict, or a tuple with a value of each of the "
                f"features {names}. Received: {combination!r}. Write such as "
                f"{{{names[0]!r}: ...}}."
            )
        return dict(zip(names, combination))

    def _drawn_out(self, count: int, seed: int) -> tuple[Self, Self]:
        combinations = list(dict.fromkeys(map(_combination, self.datasets)))
        uses = Counter(pair for combination in combinations for pair in combination)
        chosen: set[Any] = set()
        for i in np.random.default_rng(seed).permutation(len(combinations)):
            own = combinations[i]
            if len(chosen) < count and len(own) > 1 and min(uses[p] for p in own) > 1:
                chosen.add(own)
                uses.subtract(own)
        if len(chosen) < max(count, 1):
            raise ValueError(
                "What is held out must be at least one combination, and leave every "
                f"value in another one. Received: pairs={count} of "
                f"{len(combinations)} combinations, of which {len(chosen)} can be held "
                "out. Ask for as many."
            )
        rest, held_out = self._parted(lambda d: _combination(d) in chosen)
        return self._of(rest), self._of(held_out)

    def _nearest(self, combination: Mapping[str, Value | None]) -> dict[str, Any]:
        def likeness(dataset: Dataset) -> float:
            pairs = [(str(v), str(dataset.features[k])) for k, v in combination.items()]
            return sum(difflib.SequenceMatcher(None, *p).ratio() for p in pairs)

        return dict(max(self.datasets, key=likeness).features)


def _combination(dataset: Dataset) -> tuple[tuple[str, Any], ...]:
    """The values of a dataset's features, each with the name of its feature."""
    return tuple(
        (name, value)
        for name, entry in sorted(dataset.features.items())
        for value in sorted(values_of(entry))
    )


def _values(datasets: Sequence[Dataset]) -> list[tuple[str, Any]]:
    return [pair for dataset in datasets for pair in _combination(dataset)]


def _shares(
    sizes: np.ndarray, share: float, generator: np.random.Generator
) -> np.ndarray:
    """How many of each to part off: whole numbers, by the largest remainders.

    >>> _shares(np.array([20, 5, 5, 1]), 0.1, np.random.default_rng(0)).tolist()
    [2, 0, 1, 0]
    """
    wanted = share * sizes
    counts = np.minimum(np.floor(wanted).astype("int64"), sizes - 1)
    left = round(share * float(sizes.sum())) - int(counts.sum())
    # Of equal remainders, any.
    order = np.lexsort([generator.random(len(sizes)), counts - wanted])
    spare = [i for i in order if counts[i] < sizes[i] - 1]
    counts[spare[: max(left, 0)]] += 1
    return counts
