"""What training needs besides a model: the optimizer, and the loss of each step."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from benchmarks.quality import evidence_arms


def optimizer(
    learning_rate: float, steps: int, arm: evidence_arms.Arm | None = None
) -> keras.optimizers.Optimizer:
    """Adam with warm-up and cosine decay, clipped by the global norm."""
    warmup = max(steps // 10, 1)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        warmup_target=learning_rate,
        warmup_steps=warmup,
        decay_steps=max(steps - warmup, 1),
    )
    if arm is None:
        return keras.optimizers.Adam(schedule, global_clipnorm=1.0)
    return RecipeAdam(arm.b_rate, schedule, arm.decay, arm.ema)


class RecipeAdam(keras.optimizers.Adam):
    """Adam as ever, with the options of a recipe.

    Args:
        b_rate: Factor of the learning rate of every `B`.
        schedule: The learning rate of the others.
        decay: Weight decay.
        ema: Momentum of the average of weights.
    """

    def __init__(self, b_rate: float, schedule: Any, decay: float, ema: float) -> None:
        super().__init__(
            schedule,
            global_clipnorm=1.0,
            weight_decay=decay or None,
            use_ema=ema > 0,
            ema_momentum=ema or 0.99,
        )
        self.b_rate = b_rate

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        factor = self.b_rate if variable.name.endswith("_b") else 1.0
        super().update_step(gradient, variable, learning_rate * factor)


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
