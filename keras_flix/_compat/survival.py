"""Values of variables that survive whatever ends a run of Keras' JAX trainer.

That trainer takes the values out of a model's variables for its loops and donates their
buffers to each step. An exception, such as that of an unknown feature value or of a
layer that refuses its input, would leave variables without values: in the model that
ran, and in every model that shares them.
"""

from __future__ import annotations

import collections
import contextlib
import contextvars
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras.src.utils.jax_utils import is_in_jax_tracing_scope
from keras.src.utils.module_utils import tensorflow as tf

from keras_flix._compat.layers import BaseVariablesCheck
from keras_flix._compat.models import asks_for_shapes

_RUNNING: collections.Counter[int] = collections.Counter()
_RUNNING_LOCK = threading.Lock()
_THREADS: dict[int, int] = {}
"""By id of a model, the thread in which Keras' outermost loop with it runs."""

_MADE_FOR: contextvars.ContextVar[Any] = contextvars.ContextVar(
    "made_for", default=None
)
"""The model whose function for a step Keras' JAX trainer makes now."""

_TAKEN: dict[int, list[tuple[keras.Variable, Any]]] = {}
"""By id of a running model, its variables with the values that were taken out."""

STEPS = {
    2: ("trainable_variables", "non_trainable_variables"),
    3: ("trainable_variables", "non_trainable_variables", "metrics_variables"),
    4: (
        "trainable_variables",
        "non_trainable_variables",
        "optimizer_variables",
        "metrics_variables",
    ),
}
"""What the states of Keras' predict, test and train steps hold, by their length."""


@contextlib.contextmanager
def variables_survive(model: keras.Model) -> Iterator[None]:
    """The length of a run of Keras' loops, which no variable loses its value by."""
    with _RUNNING_LOCK:
        _RUNNING[id(model)] += 1
        _THREADS.setdefault(id(model), threading.get_ident())
    try:
        is_jax = keras.config.backend() == "jax"
        with _values_kept(model) if is_jax else contextlib.nullcontext():
            yield
    finally:
        with _RUNNING_LOCK:
            _RUNNING[id(model)] -= 1
            if not _RUNNING[id(model)]:
                del _RUNNING[id(model)], _THREADS[id(model)]


def is_running(model: keras.Model) -> bool:
    """Whether Keras loops over data with a model, and calls us from within."""
    return bool(_RUNNING[id(model)])


def is_between_steps(model: keras.Model) -> bool:
    """Whether a model's `fit` calls us, as a callback, and no step runs meanwhile."""
    with _RUNNING_LOCK:
        alone = _RUNNING[id(model)] == 1
        mine = _THREADS.get(id(model)) == threading.get_ident()
    if not alone or not mine:
        return False
    variable = next(iter(model.variables))
    if keras.config.backend() == "tensorflow":
        return not tf.inside_function()
    if keras.config.backend() == "jax":
        state = getattr(model, "_jax_state", None) or {}
        if model._jax_state_synced:
            return not _is_gone(variable._value)
        return "optimizer_variables" in state and not is_in_jax_tracing_scope()
    return True


def sync_state(model: keras.Model) -> None:
    """Gives a running model's variables the values of its last step."""
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()


def is_compiled_by_keras(variable: keras.Variable) -> bool:
    """Whether a trainer's step, or on TensorFlow any function, is compiled now.

    By a variable that it reads: on JAX, its value was taken out.
    """
    if asks_for_shapes():
        return False
    if keras.config.backend() == "tensorflow":
        return bool(tf.inside_function())
    return keras.config.backend() == "jax" and variable._value is None


def training_state(model: keras.Model) -> list[keras.Variable]:
    """All variables that training changes: weights, metrics, the optimizer's."""
    optimizer = getattr(model, "optimizer", None)
    variables = [*model.variables, *model.metrics_variables]
    return variables + (optimizer.variables if optimizer is not None else [])


@functools.cache
def protect_values() -> None:
    """Makes Keras' JAX trainer keep values, in all models that hold adapted layers.

    Other models may run adapted layers too: one that looks at a layer's output, one
    that shares a trunk, one around an adapted model. They are of Keras' own classes,
    so its trainer is wrapped; for models without adapted layers nothing changes.
    """
    if keras.config.backend() != "jax":
        return
    from keras.src.backend.jax import trainer as module

    # Keras 3.16 calls it `Trainer`.
    trainer: Any = getattr(module, "JAXTrainer", None) or module.Trainer
    for name in (
        "fit",
        "evaluate",
        "predict",
        "train_on_batch",
        "test_on_batch",
        "predict_on_batch",
    ):
        setattr(trainer, name, _keeping(getattr(trainer, name)))
    trainer._purge_model_variables = _noting(trainer._purge_model_variables)
    trainer._make_function = _publishing(trainer._make_function)
    module.jit = _publishing_jit(module.jit)


def _holds_adapters(model: Any) -> bool:
    return any(isinstance(one, BaseVariablesCheck) for one in model._flatten_layers())


def _keeping(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def keeping(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not _holds_adapters(self):
            return method(self, *args, **kwargs)
        with _values_kept(self):
            return method(self, *args, **kwargs)

    return keeping


def _noting(purge: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(purge)
    def noting(self: Any, *args: Any, **kwargs: Any) -> Any:
        taken = _TAKEN.get(id(self))
        if taken is not None:
            variables = training_state(self)
            taken[:] = [(v, v._value) for v in variables if v._value is not None]
        return purge(self, *args, **kwargs)

    return noting


def _publishing(make: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(make)
    def publishing(self: Any, step: Any, *args: Any, **kwargs: Any) -> Any:
        if not _holds_adapters(self):
            return make(self, step, *args, **kwargs)
        token = _MADE_FOR.set(self)
        try:
            return make(self, _published(self, step), *args, **kwargs)
        finally:
            _MADE_FOR.reset(token)

    return publishing


def _publishing_jit(jit: Callable[..., Any]) -> Callable[..., Any]:
    """Publishes steps that are compiled while a model's function is made.

    From Keras 3.16 on, that is the place: there, several steps are one function, too.
    """

    @functools.wraps(jit)
    def publishing_jit(function: Any, *args: Any, **kwargs: Any) -> Any:
        compiled = jit(function, *args, **kwargs)
        model = _MADE_FOR.get()
        # What does not donate its state, such as the concatenation of outputs, is no
        # step.
        if model is None or "donate_argnums" not in kwargs:
            return compiled
        return _published(model, compiled)

    return publishing_jit


def _published(model: Any, step: Callable[..., Any]) -> Callable[..., Any]:
    """A step whose new state is where Keras looks for it as soon as it is there.

    The step has eaten the old one. Keras notes the new one only after all
    `steps_per_execution`, and an interrupt may come before it does.
    """

    def published(state: Any, data: Any) -> Any:
        if _is_traced(state):
            return step(state, data)
        done: list[Any] = []
        try:
            # Between a call and an assignment, an interrupt would lose the result;
            # `extend` has no such place.
            done.extend(map(step, (state,), (data,)))
        finally:
            for _, new in done:
                model._jax_state = dict(zip(STEPS[len(new)], new))
        return done[0]

    return published


def _is_traced(state: Any) -> bool:
    """Whether a step is compiled, as part of another function, and not run."""
    leaves = [leaf for values in state for leaf in values or ()]
    return bool(leaves) and is_in_jax_tracing_scope(leaves[0])


@contextlib.contextmanager
def _values_kept(model: Any) -> Iterator[None]:
    if id(model) in _TAKEN:
        yield
        return
    taken = _TAKEN[id(model)] = []
    if getattr(model, "_jax_state_synced", True):
        # `train_on_batch` leaves its state, which Keras would put back for that of a
        # run that raises before its first step.
        model._jax_state = None
    try:
        yield
    except BaseException:
        _put_back(model, taken)
        raise
    finally:
        del _TAKEN[id(model)]


def _put_back(model: Any, taken: list[tuple[keras.Variable, Any]]) -> None:
    """The values of the last step that ended, else those that were taken out."""
    last: list[tuple[keras.Variable, Any]] = []
    if not getattr(model, "_jax_state_synced", True):
        for name, values in (getattr(model, "_jax_state", None) or {}).items():
            of = model.optimizer if name == "optimizer_variables" else model
            name = "variables" if of is not model else name
            last += zip(getattr(of, name), values or ())
    for variable, value in last:
        if not _is_gone(value):
            variable._value = value
    for variable, value in taken:
        if _is_gone(variable._value) and not _is_gone(value):
            variable._value = value
    model._jax_state, model._jax_state_synced = None, True


def _is_gone(value: Any) -> bool:
    return value is None or bool(getattr(value, "is_deleted", bool)())
