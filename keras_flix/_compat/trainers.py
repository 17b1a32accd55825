"""What trainers hold of a model: functions, optimizer, data."""

from __future__ import annotations

import contextlib
import inspect
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
from keras.src.trainers import data_adapters
from keras.src.trainers.data_adapters import py_dataset_adapter
from keras.src.utils.module_utils import tensorflow as tf

_NUMBERING_LOCK = threading.Lock()
_drafted_by: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
"""By model, a reference to the assistant that its compiled function drafts with."""
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
    old = functions_of(model)
    put_functions(model, dict.fromkeys(old))
    return old


def functions_of(model: keras.Model) -> dict[str, Any]:
    """The compiled functions of a model, by attribute."""
    # The last is Gemma 4's, with an assistant that drafts.
    names = [*DATA_FUNCTIONS, "generate_function", "_cached_spec_generate_fn"]
    return {name: getattr(model, name, None) for name in names if hasattr(model, name)}


def put_functions(model: keras.Model, functions: Mapping[str, Any]) -> None:
    """Gives a model the functions that `functions_of` found."""
    for name, function in functions.items():
        setattr(model, name, function)


def compilation(model: keras.Model) -> Any:
    """What the last `compile` left: another object after the next one."""
    return getattr(model, "_compile_config", None)


def loss_weights(model: keras.Model) -> Any:
    """The weights of the losses, as `compile` was told; Keras has them nowhere else."""
    return getattr(model._compile_loss, "_user_loss_weights", None)


@contextlib.contextmanager
def drafting(model: keras.Model, assistant: keras.Model | None) -> Iterator[None]:
    """Lets a model generate with an assistant, which is no part of it afterwards.

    KerasHub makes it an attribute while it drafts, and what Keras has tracked once
    stays among a model's layers: it would be trained, saved and merged with it. What it
    has compiled for one assistant, KerasHub would take for the next one, too.
    """
    if assistant is None:
        yield
        return
    last = _drafted_by.get(model)
    if last is not None and last() is not assistant:
        model._cached_spec_generate_fn = None
    _drafted_by[model] = weakref.ref(assistant)
    try:
        yield
    finally:
        untrack_assistant(model)


def untrack_assistant(model: keras.Model) -> None:
    """Takes an assistant that drafted for a model out of its layers.

    KerasHub forgets an assistant afterwards, unless an error came; Keras, having
    tracked it, does not.
    """
    if not hasattr(model, "_assistant_model"):
        return
    model._assistant_model = None
    known = {id(one) for one in [*model._operations, *vars(model).values()]}
    for layer in list(model._layers):
        if isinstance(layer, keras.Model) and id(layer) not in known:
            model._tracker.untrack(layer)


def reset_parameters(model: keras.Model) -> dict[str, Any]:
    """Drops what knows the parameters that there were, besides the functions.

    From Keras 3.16 on, it averages gradients over processes of torch.

    Returns:
        The functions that were there, by attribute.
    """
    old = reset_functions(model)
    if averages_gradients(model):
        # As Keras sets it: it holds the model, and must be no part of it.
        object.__setattr__(model, "ddp_model", None)
    return old


def remake_functions(model: keras.Model, old: Mapping[str, Any]) -> None:
    """Makes the functions anew that Keras' running loops call."""
    for name in DATA_FUNCTIONS:
        if old.get(name) is not None:
            getattr(model, f"make_{name}")()


def averages_gradients(model: keras.Model) -> bool:
    """Whether torch averages the gradients of a step over processes."""
    return getattr(model, "ddp_model", None) is not None


def fitting_processes() -> int:
    """How many processes of torch `fit` averages gradients over, from Keras 3.16 on."""
    if keras.config.backend() != "torch" or not hasattr(keras.Model, "_initialize_ddp"):
        return 1
    import torch.distributed

    if not torch.distributed.is_initialized():
        return 1
    return int(torch.distributed.get_world_size())


def track_torch_parameters(layers: Iterable[keras.layers.Layer]) -> None:
    """Lists new variables among `model.parameters()`, before the first `fit`."""
    if keras.config.backend() != "torch":
        return
    for layer in layers:
        if hasattr(layer, "_torch_params"):
            layer._track_variables()


def begin_at_epoch(model: keras.Model, epoch: int | None) -> None:
    """Makes the `fit` that has just called `on_train_begin` start with an epoch.

    Keras never forgets it by itself: `None` does.
    """
    model._initial_epoch = epoch


def initial_epoch(model: keras.Model) -> int | None:
    """The epoch that a callback makes `fit` start with; `None` if none does."""
    return model._initial_epoch


def in_replica() -> bool:
    """Whether this is a thread that `tf.distribute` runs a step in, or may be."""
    return bool(keras.config.backend() == "tensorflow" and tf.distribute.has_strategy())


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


def cannot_read_data(error: ValueError) -> bool:
    """Whether Keras raised it for data of no form that it knows, all of it in words."""
    return str(error).startswith("Unrecognized data type: x=")


def tokenized_both_ways(tokenizer: Any, texts: list[str]) -> tuple[Any, Any]:
    """What a KerasHub tokenizer makes of texts inside of a `tf.data` pipeline.

    Returns:
        Token ids there, and elsewhere. The first are `None` where a tokenizer of a
        user's own knows no other way.
    """
    tokenize = getattr(tokenizer, "_tokenize_tf", None)
    # Out of the pipeline that is being traced.
    with tf.init_scope():
        there = None if tokenize is None else tokenize(tf.constant(texts))
        return there, tokenizer(texts)


def renew_tokenizer(tokenizer: Any) -> None:
    """Gives a SentencePiece tokenizer a resource of TensorFlow's again, if it is gone.

    `tf.random.set_seed`, which `keras.utils.set_random_seed` calls, ends those of all
    tokenizers that there are: "Resource ... does not exist".
    """
    made = getattr(tokenizer, "_sentence_piece", None)
    if made is None:
        return
    with tf.init_scope():
        try:
            made.vocab_size()
        except tf.errors.NotFoundError:
            tokenizer._set_proto_tf(tokenizer.proto)
