"""What training needs besides a model: the optimizer, and the loss of each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from benchmarks.quality import evidence_arms


def optimizer(
    learning_rate: float, steps: int, arm: evidence_arms.Arm | None = None
) -> keras.optimizers.Optimizer:
    """Adam with warm-up and cosine decay, clipped by the global norm.

    Args:
        learning_rate: The peak.
        steps: Of training, a tenth of them warm-up.
        arm: With the options of its recipe; `None` for plain Adam.
    """
    warmup = max(steps // 10, 1)
    course = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        warmup_target=1.0,
        warmup_steps=warmup,
        decay_steps=max(steps - warmup, 1),
    )
    arm = arm or evidence_arms.Arm("", {})
    shared = shared_tables(arm)
    return RecipeAdam(learning_rate, course, arm.b_rate, arm.decay, arm.ema, shared)


def shared_tables(arm: evidence_arms.Arm) -> list[str]:
    """Names of the tables of `A` whose values share one."""
    return [f"flix_{axis}_a" for axis in arm.one_a]


class RecipeAdam(keras.optimizers.Adam):
    """Adam as ever, clipped by the global norm, with the options of a recipe.

    The peak is a variable and no part of the schedule, so that trials of all rates
    share a compiled step.

    Args:
        peak: The highest learning rate.
        course: The part of it at each step.
        b_rate: Factor of the learning rate of every `B`.
        decay: Weight decay.
        ema: Momentum of the average of weights.
        shared: Names of variables whose rows all get the sum of their gradients.
    """

    def __init__(
        self,
        peak: float,
        course: Callable[[Any], Any],
        b_rate: float = 1.0,
        decay: float = 0.0,
        ema: float = 0.0,
        shared: Sequence[str] = (),
    ) -> None:
        super().__init__(
            peak,
            global_clipnorm=1.0,
            weight_decay=decay or None,
            use_ema=ema > 0,
            ema_momentum=ema or 0.99,
        )
        self.course, self.b_rate, self.shared = course, b_rate, tuple(shared)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        factor = self.b_rate if variable.name.endswith("_b") else 1.0
        rate = learning_rate * self.course(self.iterations) * factor
        if variable.name in self.shared:
            total = ops.sum(gradient, axis=0, keepdims=True)
            gradient = ops.broadcast_to(total, gradient.shape)
        super().update_step(gradient, variable, rate)


class LossesOfSteps(keras.callbacks.Callback):
    """Keeps the running mean of the loss, of which `at_end` is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.means: list[float] = []

    def on_train_batch_end(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        self.means.append(float((logs or {})["loss"]))

    def at_end(self) -> float:
        """The mean loss of the last tenth of the steps."""
        sums = np.array(self.means) * np.arange(1, len(self.means) + 1)
        last = max(len(sums) // 10, 1)
        before = sums[-last - 1] if len(sums) > last else 0.0
        return float((sums[-1] - before) / last)
