"""Trains and scores an adapted Llama with `FastLlama`."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.quality.smollm.fast_llama import FastLlama
from benchmarks.quality.smollm.sequences import LENGTH, Batch, Sequences
from benchmarks.quality.torch_training import KerasAdam

TOKENS = 600
"""How many a batch has in scoring, about."""


def loss_of(model: FastLlama, batch: Batch, training: bool = True) -> torch.Tensor:
    """The loss that `fit` has for the same examples, in sequences of `LENGTH`."""
    return nats_of(model, batch, training).sum() / (batch.ragged.shape[0] * LENGTH)


def nats_of(model: FastLlama, batch: Batch, training: bool = False) -> torch.Tensor:
    """`-log p` of every token of the responses, the last one ends them."""
    places = torch.from_numpy(batch.places)
    hidden = model.hidden(batch.ragged, batch.ids, places, training)
    return model.nats(hidden, torch.from_numpy(batch.targets.astype("int64")))


class Training:
    """A run of training that may be stopped between steps, and go on later.

    Args:
        model: What trains.
        sequences: The examples, in their order.
        steps, batch_size: Of training.
        rate: The peak of the learning rate.
    """

    def __init__(
        self,
        model: FastLlama,
        sequences: Sequences,
        *,
        steps: int,
        batch_size: int,
        rate: float,
    ) -> None:
        self.model, self.sequences = model, sequences
        self.steps, self.batch_size = steps, batch_size
        warmup = max(steps // 10, 1)
        self.adam = KerasAdam(
            model.tables, peak=rate, steps=steps, warmup=warmup, clip=1.0, fused=True
        )
        self.losses: list[float] = []

    def until(self, step: int) -> None:
        """Takes the steps up to one."""
        while self.adam.done < step:
            start = self.adam.done * self.batch_size
            batch = self.sequences.batch(range(start, start + self.batch_size))
            loss = loss_of(self.model, batch)
            self.adam.step(loss)
            self.losses.append(loss.item())

    def save(self, file: pathlib.Path, **others: Any) -> None:
        """Writes all that goes on from here."""
        seed = self.model.adaptation.dropout_seed
        state = {
            "tables": [table.detach() for table in self.model.tables],
            "adam": self.adam.adam.state_dict(),
            "done": self.adam.done,
            "losses": self.losses,
            "dropout": None if seed is None else seed.state.value.detach(),
            **others,
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(file)

    def restore(self, file: pathlib.Path) -> dict[str, Any]:
        """Goes back to what `save` wrote; returns it."""
        state = torch.load(file, weights_only=True)
        with torch.no_grad():
            for table, saved in zip(self.model.tables, state["tables"]):
                table.copy_(saved)
        self.adam.adam.load_state_dict(state["adam"])
        self.adam.done, self.losses = state["done"], state["losses"]
        seed = self.model.adaptation.dropout_seed
        if seed is not None:
            seed.state.assign(state["dropout"])
        return state


def by_length(sequences: Sequences) -> Iterator[list[int]]:
    """Batches of examples that are equally long, about."""
    rows: list[int] = []
    order = sorted(range(len(sequences)), key=lambda row: len(sequences.tokens[row]))
    for row in order:
        rows.append(row)
        if len(rows) * len(sequences.tokens[row]) >= TOKENS:
            yield rows
            rows = []
    if rows:
        yield rows


def scores(model: FastLlama, sequences: Sequences) -> dict[str, dict[str, float]]:
    """By cell, the exact match in percent, nats per answer and number of examples.

    Greedy decoding gives a reference if and only if every token of it is the most
    likely one after those before it, which one forward pass tells.
    """
    nats, hits = np.zeros(len(sequences)), np.ones(len(sequences))
    for rows in by_length(sequences):
        batch = sequences.batch(rows)
        with torch.no_grad():
            places = torch.from_numpy(batch.places)
            hidden = model.hidden(batch.ragged, batch.ids, places)
            log = model.logits(hidden).log_softmax(dim=-1)
        targets = torch.from_numpy(batch.targets.astype("int64"))
        own = -log.gather(1, targets[:, None])[:, 0].numpy()
        right = (log.argmax(dim=-1) == targets).numpy()
        owners = np.asarray(rows)[batch.owners]
        np.add.at(nats, owners, own)
        np.multiply.at(hits, owners, right)
    cells: dict[str, list[int]] = {}
    for row, cell in enumerate(sequences.cells):
        cells.setdefault(cell, []).append(row)
    return {
        cell: {
            "exact_match": round(100.0 * float(hits[rows].mean()), 3),
            "nats": round(float(nats[rows].mean()), 4),
            "count": len(rows),
        }
        for cell, rows in cells.items()
    }


def mean_of(
    cells: dict[str, dict[str, float]],
    metric: str,
    chosen: Callable[[str], bool] = lambda cell: True,
) -> float:
    """The mean over some cells."""
    return float(np.mean([one[metric] for cell, one in cells.items() if chosen(cell)]))
