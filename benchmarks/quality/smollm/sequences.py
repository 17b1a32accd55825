"""The mixture of real words as token sequences, and as schemas want its features."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import ops

from benchmarks.quality.smollm.base import END, START
from benchmarks.quality.smollm.fast_llama import Ragged
from keras_flix.mixtures import Dataset, Mixture
from keras_flix.models.adapted.prompts import preprocess_prompts

LENGTH = 64
"""`sequence_length` of the preprocessor: all examples fit in, and `fit`'s loss is a
mean over so many positions of each."""


def as_prompt(instruction: str) -> str:
    """What the base was tuned to answer. Its preprocessor puts the first token."""
    return f"user\n{instruction}{END}\n{START}assistant\n"


def cell_of(example: Any) -> str:
    """`task/language`."""
    return f"{example.task}/{example.language}"


def columns(examples: Sequence[Any], known: Sequence[str]) -> dict[str, list[Any]]:
    """The examples as `fit` takes them, with the values of their features.

    Args:
        examples: Of the mixture.
        known: The languages of training; others have no value.
    """
    return {
        "prompts": [as_prompt(example.prompt) for example in examples],
        "responses": [example.response for example in examples],
        "task": [example.task for example in examples],
        "language": [e.language if e.language in known else None for e in examples],
        "family": [example.family for example in examples],
        "cell": [cell_of(example) for example in examples],
    }


def mixture(mix: Any, temperature: float) -> Mixture:
    """The training examples, a dataset for each cell."""
    cells: dict[str, list[Any]] = {}
    for example in mix.splits["train"]:
        cells.setdefault(cell_of(example), []).append(example)
    datasets = [
        Dataset(
            {
                "task": examples[0].task,
                "language": examples[0].language,
                "family": examples[0].family,
                "cell": name,
            },
            {
                "prompts": [as_prompt(example.prompt) for example in examples],
                "responses": [example.response for example in examples],
            },
        )
        for name, examples in cells.items()
    ]
    return Mixture(datasets, temperature=temperature)


@dataclasses.dataclass(frozen=True)
class Sequences:
    """Tokenized examples.

    Attributes:
        tokens: Those of each example, without the last one, which is only predicted.
        places: Per example, where the next token belongs to the response.
        targets: Those next tokens.
        ids: By feature, int32 `(examples,)`.
        cells: `task/language` of each.
    """

    tokens: list[np.ndarray]
    places: list[np.ndarray]
    targets: list[np.ndarray]
    ids: dict[str, np.ndarray]
    cells: list[str]

    def __len__(self) -> int:
        return len(self.tokens)

    def first_of_cells(self, count: int, chosen: Callable[[str], bool]) -> Sequences:
        """So many examples of each of some cells."""
        taken: dict[str, int] = {}
        rows = []
        for row, cell in enumerate(self.cells):
            taken[cell] = taken.get(cell, 0) + 1
            if chosen(cell) and taken[cell] <= count:
                rows.append(row)
        return Sequences(
            tokens=[self.tokens[row] for row in rows],
            places=[self.places[row] for row in rows],
            targets=[self.targets[row] for row in rows],
            ids={name: ids[rows] for name, ids in self.ids.items()},
            cells=[self.cells[row] for row in rows],
        )

    def without_end(self) -> Sequences:
        """Without the token that ends each response, for those that were cut."""
        return dataclasses.replace(
            self,
            tokens=[tokens[:-1] for tokens in self.tokens],
            places=[places[:-1] for places in self.places],
            targets=[targets[:-1] for targets in self.targets],
        )

    def batch(self, rows: Sequence[int]) -> Batch:
        """Some of them, without any padding."""
        starts = np.cumsum([0, *(len(self.tokens[row]) for row in rows[:-1])])
        counts = [len(self.places[row]) for row in rows]
        return Batch(
            ragged=Ragged.of([self.tokens[row] for row in rows]),
            ids={name: ids[list(rows)] for name, ids in self.ids.items()},
            places=np.concatenate(
                [start + self.places[row] for start, row in zip(starts, rows)]
            ),
            targets=np.concatenate([self.targets[row] for row in rows]),
            owners=np.repeat(np.arange(len(rows)), counts),
        )


@dataclasses.dataclass(frozen=True)
class Batch:
    """Some examples.

    Attributes:
        ragged: Their tokens.
        ids: By feature, int32 `(examples,)`.
        places: Indices of all tokens whose next one belongs to a response.
        targets: Those next tokens.
        owners: To which example they belong.
    """

    ragged: Ragged
    ids: dict[str, np.ndarray]
    places: np.ndarray
    targets: np.ndarray
    owners: np.ndarray


def tokenize(
    preprocessor: Any, examples: dict[str, Any], ids: dict[str, np.ndarray]
) -> Sequences:
    """Tokenizes as `fit` does.

    Args:
        preprocessor: Of the causal LM, of `sequence_length=LENGTH`.
        examples: Columns, `"prompts"`, `"responses"` and `"cell"` among them.
        ids: Their ids by feature.

    Raises:
        ValueError: If an example is too long.
    """
    texts = {name: list(examples[name]) for name in ("prompts", "responses")}
    x, y, weight = preprocess_prompts(preprocessor, texts)
    tokens, mask, y, weight = (
        np.asarray(ops.convert_to_numpy(one))
        for one in (x["token_ids"], x["padding_mask"], y, weight)
    )
    lengths = mask.sum(axis=1)
    # A padded position is left in each whole sequence: the end has been predicted.
    if lengths.max() == tokens.shape[1]:
        raise ValueError(
            f"Every example must fit into {tokens.shape[1]} tokens. Received: "
            f"{int((lengths == tokens.shape[1]).sum())} longer ones, such as "
            f"{texts['prompts'][int(lengths.argmax())]!r}. Raise `LENGTH`."
        )
    places = [np.flatnonzero(row) for row in weight]
    return Sequences(
        # What comes after the last prediction has no effect on any.
        tokens=[row[: at[-1] + 1] for row, at in zip(tokens, places)],
        places=places,
        targets=[row[at] for row, at in zip(y, places)],
        ids=ids,
        cells=list(examples["cell"]),
    )
