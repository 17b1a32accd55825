"""Which arms there may be, and what every arm can do."""

from __future__ import annotations

import abc
import dataclasses
import time
from typing import Any

import numpy as np

from benchmarks.cost.workload import Workload


@dataclasses.dataclass(frozen=True)
class ArmSpec:
    """Which arm: its name and, for Keras' arms, values and optimizer.

    Written as `name`, `name:values` or `name:values:optimizer`.
    """

    name: str
    values: int | None = None
    optimizer: str = "adam"

    @classmethod
    def parse(cls, text: str) -> ArmSpec:
        name, values, optimizer = (*text.split(":"), "", "")[:3]
        return cls(name, int(values) if values else None, optimizer or "adam")

    def __str__(self) -> str:
        if self.values is None and self.optimizer == "adam":
            return self.name
        return f"{self.name}:{self.values or ''}:{self.optimizer}"


class Arm(abc.ABC):
    """A model, its batch and its optimizer."""

    name: str
    optimizer_seconds: float = 0.0

    @abc.abstractmethod
    def step(self) -> float:
        """One training step, which waits for its loss and returns it."""

    def steps(self, count: int) -> float:
        """Several training steps on the same batch; the last one's loss."""
        for _ in range(count - 1):
            self.step()
        return self.step()

    @abc.abstractmethod
    def use(self, workload: Workload) -> None:
        """Takes the batch of a workload that has the same model."""

    @abc.abstractmethod
    def adapted_layers(self) -> list[str]:
        """Paths of the layers that have trainable variables."""

    @abc.abstractmethod
    def facts(self) -> dict[str, Any]:
        """What the arm is."""

    def checked_step(self, count: int = 1) -> None:
        """One step, or several at once, whose loss must be a number."""
        loss = self.steps(count) if count > 1 else self.step()
        if not np.isfinite(loss):
            raise RuntimeError(f"Arm {self.name!r} has a loss of {loss}.")

    def timed_step(self, count: int = 1) -> tuple[float, ...]:
        """Seconds of one step: by wall clock, of CPU time, and of it outside of
        the optimizer (where that is watched). The mean of `count` steps at once."""
        self.optimizer_seconds = 0.0
        wall, cpu = time.perf_counter(), time.process_time()
        self.checked_step(count)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        seconds = wall, cpu, cpu - self.optimizer_seconds
        return tuple(one / count for one in seconds)
