"""The arms that Keras trains."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import keras_flix
from benchmarks.cost.arm import Arm, ArmSpec
from benchmarks.cost.workload import AXES, TARGETS, Workload

KERAS_ARMS = {
    "floor": "frozen Gemma, one norm scale below all layers trains",
    "lora": "KerasHub `enable_lora(rank=8)`",
    "flix": "`enable_flix`, 2 axes of 8 values, rank 4 each",
}
OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "adam": lambda: keras.optimizers.Adam(1e-4),
    "lazy_adam": lambda: keras_flix.LazyAdam(1e-4),
    "sgd": lambda: keras.optimizers.SGD(1e-4),
    "lazy_sgd": lambda: keras_flix.LazySGD(1e-4),
    "none": lambda: None,
}
"""`none` computes the loss and all gradients, and leaves the weights alone."""


@dataclasses.dataclass
class KerasArm(Arm):
    """A compiled Keras model and its batch."""

    name: str
    model: keras.Model
    x: dict[str, np.ndarray]
    y: np.ndarray
    gradients: Callable[[], float] | None = None
    values: int | None = None

    def __post_init__(self) -> None:
        if keras.config.backend() == "torch" and self.gradients is None:
            self.watch_optimizer()

    def watch_optimizer(self) -> None:
        """Sums up CPU time of `optimizer.apply`; tells only when run eagerly."""
        apply = self.model.optimizer.apply

        def watched(*args: Any, **kwargs: Any) -> None:
            start = time.process_time()
            apply(*args, **kwargs)
            self.optimizer_seconds += time.process_time() - start

        self.model.optimizer.apply = watched

    def step(self) -> float:
        if self.gradients is not None:
            return self.gradients()
        return float(np.ravel(self.model.train_on_batch(self.x, self.y))[0])

    def steps(self, count: int) -> float:
        # `fit` starts a step before the last one is done.
        def batches() -> Any:
            for _ in range(count):
                yield self.x, self.y

        # KerasHub's own `fit` takes no generators; that of an adapted model does.
        adapted = self.values is not None
        fit = (
            self.model.fit
            if adapted
            else functools.partial(keras.Model.fit, self.model)
        )
        history = fit(batches(), steps_per_epoch=count, verbose=0)
        return history.history["loss"][-1]

    def use(self, workload: Workload) -> None:
        self.x, self.y = workload.data(self.values)

    def adapted_layers(self) -> list[str]:
        layers = self.model._flatten_layers(include_self=False)
        return sorted(
            layer.path for layer in layers if any(v.trainable for v in own(layer))
        )

    def facts(self) -> dict[str, Any]:
        size = sum(int(np.prod(v.shape)) for v in self.model.trainable_variables)
        return {
            "what": KERAS_ARMS.get(self.name, self.name),
            "jit_compile": self.model.jit_compile,
            "trainable_parameters": size,
        }


def keras_arm(spec: ArmSpec, workload: Workload) -> KerasArm:
    """An arm of `KERAS_ARMS`."""
    model = workload.model()
    values = None
    if spec.name == "floor":
        model.trainable = False
        scale = model.backbone.transformer_layers[0].pre_attention_norm
        scale.trainable = model._trainable = model.backbone._trainable = True
    elif spec.name == "lora":
        model.backbone.enable_lora(rank=workload.rank)
    else:
        values = spec.values or workload.values
        rank = workload.rank // len(AXES)
        features = workload.features(values)
        keras_flix.enable_flix(model, features, rank=rank, targets=TARGETS, seed=0)
    model.compile(
        optimizer=OPTIMIZERS[spec.optimizer]() or "sgd",
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=True if workload.compiled else "auto",
    )
    x, y = workload.data(values)
    gradients = forward_backward(model, x, y) if spec.optimizer == "none" else None
    return KerasArm(spec.name, model, x, y, gradients, values)


def own(layer: keras.layers.Layer) -> list[keras.Variable]:
    """A layer's variables without those of its sublayers."""
    return layer._trainable_variables + layer._non_trainable_variables


def forward_backward(model: keras.Model, x: Any, y: Any) -> Callable[[], float]:
    """A function that computes the loss and every gradient, compiled as a step is.

    The gradients are outputs, so that no compiler leaves them out.
    """
    backend = keras.config.backend()
    x, y = keras.tree.map_structure(keras.ops.convert_to_tensor, (x, y))
    if backend == "torch":

        def step() -> Any:
            model.zero_grad()
            loss = model.compute_loss(x, y, model(x, training=True))
            loss.backward()
            return loss

    elif backend == "tensorflow":
        import tensorflow as tf

        @tf.function
        def both() -> Any:
            with tf.GradientTape() as tape:
                loss = model.compute_loss(x, y, model(x, training=True))
            return loss, tape.gradient(
                loss, [v.value for v in model.trainable_variables]
            )

        def step() -> Any:
            return both()[0]

    else:
        import jax

        def values(variables: list[Any]) -> list[Any]:
            return [v.value for v in variables]

        compute = jax.value_and_grad(model.compute_loss_and_updates, has_aux=True)

        @jax.jit
        def compiled(trainable: Any, others: Any, metrics: Any, optimizer: Any) -> Any:
            return compute(
                trainable,
                others,
                metrics,
                x,
                y,
                None,
                training=True,
                optimizer_variables=optimizer,
            )

        def step() -> Any:
            (loss, _), _ = compiled(
                values(model.trainable_variables),
                values(model.non_trainable_variables),
                values(model.metrics_variables),
                values(model.optimizer.variables),
            )
            return loss

    return lambda: float(step())
