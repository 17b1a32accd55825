"""What trainers hold of a model: functions, optimizer, data."""

from __future__ import annotations

import collections
import contextlib
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
from keras import tree
from keras.src.trainers import data_adapters
from keras.src.trainers.data_adapters import py_dataset_adapter
from keras.src.utils.module_utils import tensorflow as tf

_RUNNING: collections.Counter[int] = collections.Counter()
_RUNNING_LOCK = threading.Lock()
_NUMBERING_LOCK = threading.Lock()
DATA_FUNCTIONS = ("train_function", "test_function", "predict_function")


def accept_training(model: keras.Model) -> bool:
    """Makes trainers pass `training` to a model whose `call` does not take it.

    Returns:
        Whether the model's own `call` takes it.
    """
    if model._call_has_training_arg:
        return True
    parameters = list(model._call_signature.parameters.values())
    training = inspect.Parameter(
        "training", inspect.Parameter.KEYWORD_ONLY, default=None
    )
    last = parameters[-1] if parameters else None
    at = len(parameters)
    if last is not None and last.kind is inspect.Parameter.VAR_KEYWORD:
        at -= 1
    parameters.insert(at, training)
    model._call_signature = model._call_signature.replace(parameters=parameters)
    model.call_signature_parameters = [p.name for p in parameters]
    model._call_has_training_arg = True
    model._call_has_context_arg["training"] = True
    return False


def reset_functions(model: keras.Model) -> dict[str, Any]:
    """Drops the compiled functions, which know nothing of a change.

    Returns:
        The functions that were there, by attribute.
    """
    names = [*DATA_FUNCTIONS, "generate_function"]
    old = {name: getattr(model, name, None) for name in names if hasattr(model, name)}
    for name in old:
        setattr(model, name, None)
    return old


def track_torch_parameters(layers: Iterable[keras.layers.Layer]) -> None:
    """Lists new variables among `model.parameters()`, before the first `fit`."""
    if keras.config.backend() != "torch":
        return
    for layer in layers:
        if hasattr(layer, "_torch_params"):
            layer._track_variables()


def begin_at_epoch(model: keras.Model, epoch: int) -> None:
    """Makes the `fit` that has just called `on_train_begin` start with an epoch."""
    model._initial_epoch = epoch


def initial_epoch(model: keras.Model) -> int | None:
    """The epoch that a callback makes `fit` start with; `None` if none does."""
    return model._initial_epoch


def training_state(model: keras.Model) -> list[keras.Variable]:
    """All variables that training changes: weights, metrics, the optimizer's."""
    optimizer = getattr(model, "optimizer", None)
    variables = [*model.variables, *model.metrics_variables]
    return variables + (optimizer.variables if optimizer is not None else [])


@contextlib.contextmanager
def variables_survive(model: keras.Model) -> Iterator[None]:
    """Puts variables back if a data source raises while Keras loops over it.

    Keras' JAX trainer takes the values out of the variables for the loop, and an
    exception, such as that of an unknown feature value, would lose them.
    """
    with _running(model):
        if keras.config.backend() != "jax":
            yield
            return
        yield from _survive(model)


def is_running(model: keras.Model) -> bool:
    """Whether Keras loops over data with a model, and calls us from within."""
    return bool(_RUNNING[id(model)])


@contextlib.contextmanager
def _running(model: keras.Model) -> Iterator[None]:
    with _RUNNING_LOCK:
        _RUNNING[id(model)] += 1
    try:
        yield
    finally:
        with _RUNNING_LOCK:
            _RUNNING[id(model)] -= 1
            if not _RUNNING[id(model)]:
                del _RUNNING[id(model)]


def in_replica() -> bool:
    """Whether this is a thread that `tf.distribute` runs a step in, or may be."""
    return bool(keras.config.backend() == "tensorflow" and tf.distribute.has_strategy())


def _survive(model: keras.Model) -> Iterator[None]:
    before = [(variable, variable._value) for variable in training_state(model)]
    try:
        yield
    except BaseException:
        if getattr(model, "_jax_state", None):
            model.jax_state_sync()
        for variable, value in before:
            if variable._value is None:
                variable._value = value
        raise


def optimizer_knows(model: keras.Model, variables: Sequence[keras.Variable]) -> bool:
    """Whether a model's optimizer, if it is built, was built with these variables."""
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None or not optimizer.built:
        return True
    known = {id(v) for v in optimizer._trainable_variables}
    return all(id(v) in known for v in variables)


def number_sources() -> None:
    """Makes the counter that tells `PyDataset`s apart, before threads need it.

    Keras makes it on its first use, and two threads at once would make one each:
    both would then read the data of one of them.
    """
    with _NUMBERING_LOCK:
        if py_dataset_adapter._SEQUENCE_COUNTER is None:
            # An enqueuer that is never started takes a number.
            py_dataset_adapter.PyDatasetEnqueuer(None)


def source_kind(x: Any) -> str:
    """Which kind of data source `x` is, by Keras' own criteria."""
    if isinstance(x, keras.utils.PyDataset):
        return "py_dataset"
    if data_adapters.is_tf_dataset(x):
        return "tf"
    if data_adapters.is_torch_dataloader(x):
        return "torch"
    if data_adapters.is_grain_dataset(x):
        return "grain_dataset" if hasattr(x, "map") else "grain_loader"
    if inspect.isgenerator(x) or (hasattr(x, "__next__") and hasattr(x, "__iter__")):
        return "generator"
    return "arrays"


def wrap_rematerialization(
    layers: Iterable[keras.layers.Layer],
    wrapper: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> None:
    """Passes what rematerialized layers run, and run again, through `wrapper`."""

    def wrap(layer: keras.layers.Layer) -> None:
        original = layer.rematerialized_call

        def rematerialized_call(call: Any, *args: Any, **kwargs: Any) -> Any:
            call, tensors = _by_position(wrapper(call), args, kwargs)
            rematerialized = original(call, *args, **kwargs)
            return lambda *_, **__: rematerialized(*tensors)

        object.__setattr__(layer, "rematerialized_call", rematerialized_call)

    for layer in layers:
        if layer._remat_mode is not None:
            wrap(layer)


def _by_position(
    call: Callable[..., Any], args: Any, kwargs: Any
) -> tuple[Callable[..., Any], list[Any]]:
    """A call as a function of its tensors alone, and these.

    TensorFlow's graphs cannot rematerialize a call that has keywords, and would
    make a tensor of every other argument.
    """
    leaves = tree.flatten((args, kwargs))
    is_tensor = [keras.ops.is_tensor(leaf) for leaf in leaves]

    def positional(*tensors: Any) -> Any:
        given = iter(tensors)
        filled = [next(given) if own else x for x, own in zip(leaves, is_tensor)]
        own_args, own_kwargs = tree.pack_sequence_as((args, kwargs), filled)
        return call(*own_args, **own_kwargs)

    return positional, [x for x, own in zip(leaves, is_tensor) if own]


def tokenized_both_ways(tokenizer: Any, texts: list[str]) -> tuple[Any, Any]:
    """What a KerasHub tokenizer makes of texts inside of a `tf.data` pipeline.

    Returns:
        Token ids there, and elsewhere. The first are `None` where a tokenizer knows no
        other way, as in older versions.
    """
    tokenize = getattr(tokenizer, "_tokenize_tf", None)
    # Out of the pipeline that is being traced.
    with tf.init_scope():
        there = None if tokenize is None else tokenize(tf.constant(texts))
        return there, tokenizer(texts)
