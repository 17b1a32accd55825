"""Optimizers whose step costs what the values of a batch cost, not all values."""

from __future__ import annotations

from typing import Any

import keras

from keras_flix import _compat
from keras_flix.features.tensor_ids import Tensor
from keras_flix.layers.row_scope import current_row_scope

eager = _compat.eager_ops


class LazyOptimizer(_compat.LazyRows):
    """Mixin of optimizers that know the scope; the Keras optimizer comes after it."""

    def __init__(self, *args: Any, step_counts: str = "all", **kwargs: Any) -> None:
        if step_counts not in ("all", "value"):
            raise ValueError(
                "Steps are counted for 'all' values together or for each 'value'. "
                f"Received: step_counts={step_counts!r}. Pass one of the two."
            )
        super().__init__(*args, **kwargs)
        self.step_counts = step_counts
        self.counts_values = step_counts == "value"
        if self.counts_values:
            _compat.check_counts(self)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "step_counts": self.step_counts}

    def apply(self, grads: Any, trainable_variables: Any = None) -> Any:
        scope = current_row_scope()
        if scope is not None and scope.taken:
            variables = trainable_variables or _compat.trained_by(self)
            grads = scope.taken_gradients(grads, variables)
        return super().apply(grads, trainable_variables)

    def stateless_apply(
        self, optimizer_variables: Any, grads: Any, trainable_variables: Any
    ) -> Any:
        scope = current_row_scope()
        if scope is not None and scope.used:
            grads = scope.gradients(grads)
            trainable_variables = scope.with_tables(trainable_variables)
        return super().stateless_apply(optimizer_variables, grads, trainable_variables)


@keras.saving.register_keras_serializable(package="keras_flix")
class LazyAdam(LazyOptimizer, keras.optimizers.Adam):
    """Adam that leaves values alone which had no gradient in a step.

    `keras.optimizers.Adam` passes over all values in every step, which dominates the
    step from some thousand values on. It also goes on moving a value by the momentum
    of former steps. This one updates only the rows, and their moments, of values
    whose gradient is not zero: of the values that occur in the batch. What they
    become is what Adam (Kingma and Ba, arXiv 1412.6980) makes of them, with the
    count of all steps for the correction of the bias. So it is Adam itself where
    every value occurs in every batch, and elsewhere lazy: moments decay by the
    steps in which a value occurs.

    The cost is that of the values in the batch in `fit` and `train_on_batch` of a
    model adapted by `enable_flix`. Elsewhere the updates are the same, but gradients
    are dense and each step passes over all values: in loops of your own, with a
    `train_step` or an optimizer's `apply` of your own, with clipping,
    `gradient_accumulation_steps` or a `LossScaleOptimizer`, on JAX under a
    `keras.distribution`, on TensorFlow in rematerialized layers. `weight_decay` and
    `use_ema` apply to all values, as they do in Adam, and pass over all of them too.
    Variables other than adapter weights are updated as by Adam.

    By default there is one count of steps for all values. The correction of
    the bias, `sqrt(1 - beta_2**t) / (1 - beta_1**t)` for step `t`, is then over for a
    value that first occurs late, while its moments are still close to zero: its first
    update is `(1 - beta_1) / sqrt(1 - beta_2)` times the learning rate, which is 3.2
    with Adam's defaults, and those after it are up to 6.6 where the gradient stays the
    same. With `beta_2=0.99`, it is 1 at first and 2.1 at most.

    With `step_counts="value"`, each value has an Adam of its own: the correction of the
    bias and a schedule of the learning rate go by the count of that value's own
    updates, those in which it had a gradient. A value that comes late then begins
    where the schedule begins. `step_counts(model, feature)` says where values are, and
    `limit_steps` when each is done. The counts are part of the optimizer's state, and
    are saved with it.

    Args:
        *args: As in `keras.optimizers.Adam`.
        step_counts: `"all"` counts all steps; `"value"` those of each value. That
            excludes weight decay and averages of weights, which move values without
            a gradient, and strategies of `tf.distribute`.
        **kwargs: As in `keras.optimizers.Adam`.

    Raises:
        ValueError: If an argument does not fit.

    Example:

    >>> x = keras.Input((8,), name="x")
    >>> model = keras.Model({"x": x}, keras.layers.Dense(4, name="head")(x))
    >>> users = [f"user_{i}" for i in range(1000)]
    >>> model = enable_flix(model, {"user": users}, targets=["head"])
    >>> model.compile(LazyAdam(1e-3), loss="mse")
    >>> batch = {"x": np.ones((2, 8)), "user": ["user_7", "user_900"]}
    >>> history = model.fit(batch, np.zeros((2, 4)), verbose=0)
    """

    slot_names = ("_momentums", "_velocities", "_velocity_hats")

    def new_rows(
        self,
        gradient: Tensor,
        learning_rate: Tensor,
        rows: Tensor,
        *slots: Tensor,
        step: Tensor,
    ) -> list[Tensor]:
        dtype = gradient.dtype
        step = eager.cast(step, dtype)
        beta_1_power, beta_2_power = self.beta_1**step, self.beta_2**step
        alpha = learning_rate * eager.sqrt(1 - beta_2_power) / (1 - beta_1_power)
        m, v, *v_hat = slots
        m = eager.lerp(m, gradient, 1 - self.beta_1)
        v = eager.lerp(v, eager.square(gradient), 1 - self.beta_2)
        v_hat = [eager.maximum(v_hat[0], v)] if v_hat else []
        rows = rows - m * alpha / (eager.sqrt([v, *v_hat][-1]) + self.epsilon)
        return [rows, m, v, *v_hat]


@keras.saving.register_keras_serializable(package="keras_flix")
class LazySGD(LazyOptimizer, keras.optimizers.SGD):
    """SGD that leaves values alone which had no gradient in a step.

    Without momentum it does exactly what `keras.optimizers.SGD` does. With momentum it
    is lazy: the momentum of a value decays and moves it in the steps in which its
    gradient is not zero. For what this saves, and when, see `LazyAdam`.

    Args:
        *args: As in `keras.optimizers.SGD`.
        step_counts: As in `LazyAdam`: by `"value"`, a schedule of the learning rate
            goes by each value's own updates.
        **kwargs: As in `keras.optimizers.SGD`.

    Raises:
        ValueError: If an argument does not fit.

    Example:

    >>> optimizer = LazySGD(0.1, momentum=0.9, nesterov=True)
    """

    slot_names = ("momentums",)

    def new_rows(
        self,
        gradient: Tensor,
        learning_rate: Tensor,
        rows: Tensor,
        *slots: Tensor,
        step: Tensor,
    ) -> list[Tensor]:
        if not slots:
            return [rows - gradient * learning_rate]
        momentum = slots[0] * self.momentum - gradient * learning_rate
        if self.nesterov:
            return [
                rows + momentum * self.momentum - gradient * learning_rate,
                momentum,
            ]
        return [rows + momentum, momentum]
