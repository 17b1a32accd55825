"""Keras' loss, optimizer and learning rate in PyTorch, to the last epsilon."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

from benchmarks.shared.torch_gemma import optional

BETAS = (0.9, 0.999)
EPSILON = 1e-7
"""Keras' defaults of Adam."""


def weighted_loss(logits: Any, y: Any, sample_weight: Any) -> Any:
    """Keras' `SparseCategoricalCrossentropy(from_logits=True)` with sample weights.

    Its `sum_over_batch_size` divides by the number of all positions, those of weight
    zero included: by `examples * length`, not by the sum of the weights.

    Args:
        logits: Tensor `(examples, length, vocabulary)`.
        y: Integer tensor `(examples, length)`.
        sample_weight: Tensor `(examples, length)`.

    Returns:
        A scalar.
    """
    torch = optional("torch")
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), y.flatten(), reduction="none"
    )
    return (losses * sample_weight.flatten()).sum() / y.numel()


def learning_rate_at(step: int, *, peak: float, steps: int, warmup: int) -> float:
    """The learning rate of a step, counted from 0.

    It rises from 0 to the peak in `warmup` steps and falls to 0 by half a cosine:
    `keras.optimizers.schedules.CosineDecay` with `initial_learning_rate=0.0`,
    `warmup_target=peak`, `warmup_steps=warmup` and `decay_steps=steps - warmup`.

    Args:
        step: At most `steps`.
        peak: The highest rate.
        steps: Number of steps.
        warmup: How many of them are warm-up.

    Example:
        >>> rates = [
        ...     learning_rate_at(step, peak=1.0, steps=6, warmup=2) for step in range(6)
        ... ]
        >>> [round(rate, 3) for rate in rates]
        [0.0, 0.5, 1.0, 0.854, 0.5, 0.146]
    """
    if step < warmup:
        return peak * step / warmup
    decayed = (step - warmup) / max(steps - warmup, 1)
    return peak * 0.5 * (1.0 + math.cos(math.pi * decayed))


class KerasAdam:
    """`keras.optimizers.Adam(schedule, global_clipnorm=clip)` for PyTorch.

    Args:
        parameters: What it trains.
        peak: The highest learning rate of `learning_rate_at`.
        steps: Number of steps.
        warmup: How many of them are warm-up.
        clip: Highest global norm of the gradients.
        fused: Whether PyTorch takes a step in one operation, which is faster.
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        *,
        peak: float,
        steps: int,
        warmup: int,
        clip: float,
        fused: bool = False,
    ) -> None:
        self.parameters = list(parameters)
        self.rate = functools.partial(
            learning_rate_at, peak=peak, steps=steps, warmup=warmup
        )
        self.clip = clip
        self.done = 0
        self.adam = optional("torch").optim.Adam(
            self.parameters, betas=BETAS, fused=fused
        )

    def step(self, loss: Any) -> None:
        """Takes one step down the gradients of a loss."""
        self.adam.zero_grad()
        loss.backward()
        self._clip_gradients()
        self.adam.param_groups[0].update(
            lr=self.rate(self.done),
            # Keras adds its epsilon before the bias correction, PyTorch after it.
            eps=EPSILON / math.sqrt(1.0 - BETAS[1] ** (self.done + 1)),
        )
        self.adam.step()
        self.done += 1

    def _clip_gradients(self) -> None:
        # PyTorch's own function adds an epsilon to the norm.
        torch = optional("torch")
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norms = torch.stack([torch.linalg.vector_norm(g) for g in gradients])
        norm = torch.linalg.vector_norm(norms)
        scale = self.clip / torch.clamp(norm, min=self.clip)
        if scale < 1.0:
            for gradient in gradients:
                gradient.mul_(scale)
