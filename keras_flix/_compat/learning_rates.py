"""Learning rates of single variables and of their rows, under any Keras optimizer.

All of Keras' optimizers update a variable by `update_step(gradient, variable,
learning_rate)`, or, some of them on PyTorch, many at once by `_parallel_update_step`.
These are given other rates. As in `optimizer_guard`, the methods are wrapped on the
object: a class of its own would not be found again by Keras' files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_flix._compat import eager_ops
from keras_flix._compat.optimizer_guard import workers

Tensor = Any

METHODS = ("update_step", "_parallel_update_step", "_apply_weight_decay")


@dataclasses.dataclass(frozen=True, eq=False)
class Rate:
    """How a variable learns.

    Attributes:
        factor: What its learning rate is multiplied by; or one for each of its rows,
            float32 `(rows, 1, ...)`. Where it is 0, `guard_rows` must keep the rows as
            they are: optimizers such as Ftrl divide by the rate.
        decay: Its weight decay, instead of the optimizer's; `None` for that.
    """

    factor: float | np.ndarray = 1.0
    decay: float | None = None

    def scaled(self, rate: Tensor, dtype: str) -> Tensor:
        """A learning rate of the variable, or of its rows."""
        return ops.multiply(ops.cast(rate, dtype), self._constant(dtype))

    def rows(self, count: int) -> np.ndarray:
        """The factor of each row, float32 `(rows,)`."""
        flat = np.asarray(self.factor, "float32").reshape(-1)
        return np.broadcast_to(flat, (count,))

    def of_rows(self, rows: Tensor) -> Tensor:
        """The factor of some rows: float32 `(n, 1)`."""
        if isinstance(self.factor, np.ndarray):
            return eager_ops.take(self.factor.reshape(-1, 1), rows)
        return ops.full((ops.shape(rows)[0], 1), self.factor, "float32")

    def decayed(self, optimizer: Any, variable: Any, rate: Tensor) -> None:
        """Pulls a variable towards zero, as a step of its optimizer does at first."""
        decay = _decay_of(optimizer, variable) if self.decay is None else self.decay
        if decay:
            pull = ops.multiply(decay, self.scaled(rate, variable.dtype))
            value = ops.convert_to_tensor(variable)
            optimizer.assign(variable, value - value * pull)

    def _constant(self, dtype: str) -> Any:
        if isinstance(self.factor, np.ndarray):
            return ops.convert_to_tensor(np.where(self.factor, self.factor, 1), dtype)
        return self.factor or 1.0


def _decay_of(optimizer: Any, variable: Any) -> float | None:
    """The weight decay that an optimizer has for a variable."""
    if not optimizer._use_weight_decay(variable):
        return None
    # Muon has another one for what it updates as Adam does.
    if hasattr(optimizer, "adam_weight_decay"):
        if optimizer._should_use_adamw(variable):
            return optimizer.adam_weight_decay
    return optimizer.weight_decay


def set_rates(optimizer: Any, rates: Mapping[int, Rate]) -> None:
    """Gives an optimizer rates of variables; what it was told before is forgotten.

    Args:
        optimizer: Built or not.
        rates: By id of a variable; empty for none.
    """
    for inner in workers(optimizer):
        for name in METHODS:
            if hasattr(vars(inner).get(name), "rates"):
                del vars(inner)[name]
        if hasattr(inner, "rates"):  # It knows what to do, row by row.
            object.__setattr__(inner, "rates", rates)
        elif rates:
            _wrap(inner, "update_step", _update_step(inner, inner.update_step, rates))
            if hasattr(inner, "_parallel_update_step"):
                original = inner._parallel_update_step
                parallel = _parallel_update_step(inner, original, rates)
                _wrap(inner, "_parallel_update_step", parallel)
        if rates:
            original = inner._apply_weight_decay
            decay = _apply_weight_decay(inner, original, rates)
            _wrap(inner, "_apply_weight_decay", decay)


def _wrap(optimizer: Any, name: str, function: Any) -> None:
    function.rates = True
    object.__setattr__(optimizer, name, function)


def _rate_of(optimizer: Any, variable: Any, rates: Mapping[int, Rate]) -> Rate | None:
    # TensorFlow's optimizers are given its own variables.
    index = optimizer._get_variable_index(variable)
    return rates.get(id(optimizer._trainable_variables[index]))


def _update_step(
    optimizer: Any, original: Callable[..., Any], rates: Mapping[int, Rate]
) -> Callable[..., Any]:
    def update_step(gradient: Tensor, variable: Any, learning_rate: Tensor) -> Any:
        own = _rate_of(optimizer, variable, rates)
        if own is not None:
            own.decayed(optimizer, variable, learning_rate)
            learning_rate = own.scaled(learning_rate, variable.dtype)
        return original(gradient, variable, learning_rate)

    return update_step


def _apply_weight_decay(
    optimizer: Any, original: Callable[..., Any], rates: Mapping[int, Rate]
) -> Callable[..., Any]:
    def apply_weight_decay(variables: Sequence[Any]) -> None:
        others = [v for v in variables if _rate_of(optimizer, v, rates) is None]
        if others:
            original(others)

    return apply_weight_decay


def _parallel_update_step(
    optimizer: Any, original: Callable[..., Any], rates: Mapping[int, Rate]
) -> Callable[..., Any]:
    """On PyTorch: all variables of one rate at once; those with rows, one by one."""
    import torch
    from keras.src.backend.torch.optimizers.torch_parallel_optimizer import (
        TorchParallelOptimizer,
    )

    def parallel(
        gradients: Sequence[Any], variables: Sequence[Any], learning_rate: Tensor
    ) -> None:
        by_factor: dict[float, list[tuple[Any, Any]]] = {}
        by_row: list[tuple[Any, Any]] = []
        for pair in zip(gradients, variables):
            own = _rate_of(optimizer, pair[1], rates) or Rate(1.0, 0.0)
            if isinstance(own.factor, np.ndarray):
                by_row.append(pair)
                continue
            own.decayed(optimizer, pair[1], learning_rate)
            by_factor.setdefault(own.factor or 1.0, []).append(pair)
        # Nadam has one for all variables, which each of these calls moves on.
        single = list(_single_state(optimizer))
        before = [v.value.clone() for v in single]
        if by_row:
            one_by_one = super(TorchParallelOptimizer, optimizer)._backend_update_step
            one_by_one(*zip(*by_row), learning_rate)
        for i, (factor, pairs) in enumerate(by_factor.items()):
            if by_row or i:
                for variable, value in zip(single, before):
                    variable.assign(value)
            rate = learning_rate
            if factor != 1:
                rate = ops.multiply(ops.cast(rate, pairs[0][1].dtype), factor)
            original(*map(list, zip(*pairs)), rate)

    return torch.no_grad()(parallel)


def _single_state(optimizer: Any) -> Iterator[keras.Variable]:
    """What an optimizer holds of no variable, and changes as it updates some."""
    for name, value in vars(optimizer).items():
        if isinstance(value, keras.Variable):
            if name not in ("_iterations", "_learning_rate"):
                yield value
