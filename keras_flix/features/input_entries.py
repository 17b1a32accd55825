"""Feature entries among a model's inputs: taking them out, turning them to ids."""

from __future__ import annotations

import contextlib
import contextvars
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from keras import ops, tree

from keras_flix.features.encoding import ForAll, one_row, with_batch
from keras_flix.features.host_values import any_tf_symbolic, host_value
from keras_flix.features.missing import whole_numbers
from keras_flix.features.schema import FeatureSchema
from keras_flix.features.tensor_ids import Tensor, checked_tensor

TEXT_KEYS = ("prompts", "text", "responses")
"""Keys of what a task's preprocessor takes; no feature can be called so."""


def split_entries(inputs: Any, schema: FeatureSchema) -> tuple[Any, dict[str, Any]]:
    """Takes the feature entries out of an input dict.

    Args:
        inputs: What the model was called with.
        schema: The model's schema.

    Returns:
        The model's own inputs and the feature entries. Never changes `inputs`.
    """
    if not isinstance(inputs, Mapping):
        return inputs, {}
    own: dict[str, Any] = {}
    entries: dict[str, Any] = {}
    for key, value in inputs.items():
        # `always` features too: an entry for one of them is refused, not passed on.
        (entries if key in schema.entry_names else own)[key] = value
    return own, entries


def leading_size(inputs: Any, nested: bool = False) -> Any:
    """The batch length of a model's own inputs, or `None` if they tell none.

    `nested` says that a list of arrays is a list of inputs, not one of examples.
    """
    if isinstance(inputs, Mapping):
        # Prompts first: an image beside them may have no batch axis yet.
        values = []
        for key in TEXT_KEYS:
            if key in inputs:
                values.append(inputs[key])
        values = values or list(inputs.values())
    elif isinstance(inputs, tuple):
        values = list(inputs)
    else:
        values = [inputs]
    for value in values:
        if isinstance(value, (str, bytes)):
            return 1
        if isinstance(value, tuple) and value and isinstance(value[0], str):
            return len(value)
        if isinstance(value, (tuple, Mapping)):
            return leading_size(value, nested)
        if nested and isinstance(value, list) and not _is_column(value):
            return leading_size(tuple(value), nested)
        if isinstance(value, list):
            return len(value)
        shape = getattr(value, "shape", None)
        if shape is not None and len(shape):
            return shape[0]
    return None


def _is_column(values: list[Any]) -> bool:
    """Whether no leaf of a list is an array."""
    return not any(len(getattr(x, "shape", None) or ()) for x in tree.flatten(values))


def batch_length(own: Any, entries: Mapping[str, Any]) -> Any:
    """Batch length of a model's own inputs, as a tensor where it is unknown.

    1 where the inputs have several lengths, as images and the texts that they are
    compared with may have: then only one value per feature can hold for all rows.
    """
    shaped = []
    for leaf in tree.flatten(own):
        if isinstance(leaf, (str, bytes)):
            return leading_size(own) or 1
        if len(getattr(leaf, "shape", None) or ()):
            shaped.append(leaf)
    if not shaped:
        return leading_size(own) or 1
    known = set()
    for leaf in shaped:
        # Not those of exporters, which stand for any length.
        if isinstance(leaf.shape[0], int):
            known.add(leaf.shape[0])
    if len(known) > 1:
        lengths = sorted(known)
        for name, entry in entries.items():
            count = leading_size((entry,))
            if count is not None and count > 1:
                raise ValueError(
                    "Features with one entry per example need inputs of one batch "
                    f"length. Received: inputs of the lengths {lengths}, and {count} "
                    f"entries of {name!r}. Pass one value per feature, or equally "
                    "many rows of every input."
                )
        return 1
    size = shaped[0].shape[0]
    return ops.shape(shaped[0])[0] if size is None else size


def encode_inputs(
    schema: FeatureSchema,
    entries: Mapping[str, Any],
    batch_size: Any = None,
    beside: Any = (),
) -> dict[str, Any]:
    """Turns feature entries into ids, as far as their values are known.

    Entries with values become numpy ids, checked against the vocabulary.
    Traced and symbolic integer tensors become int32, or are looked up where the
    values are integers: their range is checked by the layers, which answer with NaN.

    Args:
        schema: The model's schema.
        entries: One entry per feature, without `always` features.
        batch_size: Number of examples, or `None` to read it from the entries.
        beside: The model's own inputs, which errors list if it is a dict.

    Returns:
        Ids by feature: int32, of shape `(batch,)` or `(batch, k)`, or `(batch, k, 2)`
        with weights.
    """
    beside = beside if isinstance(beside, Mapping) else ()
    stated = schema.check_entries(entries, beside)
    known: dict[str, Any] = {}
    traced: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for feature, entry, is_ids in stated:
        if feature.has_integers and not is_ids:
            feature.integers_are_announced  # noqa: B018
        values[feature.name] = host_value(entry)
    encoders = []
    for feature, entry, is_ids in stated:
        if values[feature.name] is None and entry is not None:
            traced[feature.name] = checked_tensor(feature, entry, is_ids)
        else:
            encoders.append(feature.encoder(is_ids))
    for encoder in encoders:
        known[encoder.name] = encoder(values[encoder.name])
    size = batch_size if isinstance(batch_size, int) else None
    for name, entry in traced.items():
        if not len(entry.shape) and batch_size is not None:
            # Such as one of several ids inside of `vectorized_map`.
            entry = ops.reshape(entry, (1,))
            traced[name] = entry = ops.broadcast_to(entry, (batch_size,))
        if size is not None and entry.shape[0] not in (None, size):
            raise ValueError(
                "Every feature must have one entry per example. Received: "
                f"{entry.shape[0]} entries of {name!r} for a batch of {size}. "
                "Pass one value for the whole batch, or one per example."
            )
    ids: dict[str, Any] = {}
    if size is None and batch_size is not None:
        # A batch of unknown length: what holds for all examples is repeated.
        for name, value in known.items():
            if not value.ndim:
                row = one_row(value)
                ids[name] = ops.broadcast_to(row, (batch_size, *row.shape[1:]))
        known = {name: value for name, value in known.items() if value.ndim}
    ids |= with_batch(known, size, schema.multiple) if known else {}
    return ids | traced


def layer_ids(
    schema: FeatureSchema,
    features: Mapping[str, Any],
    batch_size: Any,
    beside: Any = (),
) -> dict[str, Tensor]:
    """Ids as tensors, for a layer or model that is about to use them."""
    of, known = _encoded.get()
    if known and of is schema and len(known) == len(features):
        # No `for` with `else`: TensorFlow's AutoGraph warns of it.
        names, same = schema.entry_names, True
        for key, value in features.items():
            same = same and known.get(names.get(key, key)) is value
        if same:
            return known
    ids = encode_inputs(schema, features, batch_size, beside)
    for name, value in ids.items():
        if isinstance(value, np.ndarray):
            ids[name] = ops.convert_to_tensor(value, "int32")
    return ids


_encoded: contextvars.ContextVar[tuple[FeatureSchema | None, dict[str, Tensor]]] = (
    contextvars.ContextVar("keras_flix_encoded", default=(None, {}))
)


@contextlib.contextmanager
def encoded(schema: FeatureSchema, ids: dict[str, Tensor]) -> Iterator[None]:
    """Within the block, these very ids are known to be what `layer_ids` gives.

    A model's `__call__` checks ids, and its `call` gets them from Keras: to check them
    again would cost each step as much once more.
    """
    token = _encoded.set((schema, ids))
    try:
        yield
    finally:
        _encoded.reset(token)


def encode_in_tf(
    schema: FeatureSchema,
    entries: Mapping[str, Any],
    batch_size: Any,
    beside: Any = (),
) -> dict[str, Any]:
    """`encode_inputs` for a `tf.data` pipeline, which is traced by TensorFlow.

    Runs the same numpy code from inside the pipeline, so unknown strings and
    ids out of range raise there too.
    """
    import tensorflow as tf

    routed = schema.routed
    known = [
        (entry, is_ids) for _, entry, is_ids in schema.check_entries(entries, beside)
    ]
    keys = [f.ids_key if is_ids else f.name for f, (_, is_ids) in zip(routed, known)]

    # What holds for all examples is no tensor.
    for_all = {k: e for k, (e, _) in zip(keys, known) if isinstance(e, ForAll)}

    def encode(batch: Any, *values: Any) -> list[np.ndarray]:
        named = {key: _from_tf(value) for key, value in zip(keys, values)} | for_all
        ids = encode_inputs(schema, named, None if batch < 0 else int(batch))
        return [ids[f.name] for f in routed]

    values: list[Any] = []
    for entry, _ in known:
        if isinstance(entry, tf.RaggedTensor):
            filler = "" if entry.dtype == tf.string else -1
            entry = entry.to_tensor(default_value=filler)
        values.append(-1 if isinstance(entry, ForAll) else entry)
    outputs = tf.numpy_function(
        encode,
        [-1 if batch_size is None else batch_size, *values],
        [tf.int32] * len(routed),
    )
    for feature, ids, value, (entry, _) in zip(routed, outputs, values, known):
        weighted = tf.is_tensor(value) and value.dtype.is_floating
        # Integers that became floats beside a NaN are no weights.
        weighted = weighted and value.shape.rank != 1
        if isinstance(entry, ForAll):
            weighted = entry.row.ndim == 2
        shape = (None, None) if feature.multiple else (None,)
        ids.set_shape((None, None, 2) if weighted else shape)
    return {feature.name: ids for feature, ids in zip(routed, outputs)}


@contextlib.contextmanager
def tf_errors_as_value_errors() -> Iterator[None]:
    """Turns what `encode_in_tf` raised inside a pipeline back into a ValueError.

    TensorFlow passes an exception of Python code on as an error of its own,
    with the text and the traceback in its message.
    """
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("tensorflow"):
            raise
        found = re.search(r"ValueError: (.*?)\n\s*Traceback", str(error), re.DOTALL)
        if found is None:
            raise
        raise ValueError(found.group(1).strip()) from error


def _from_tf(values: np.ndarray) -> Any:
    if values.dtype.kind == "f" and values.ndim == 1:
        # One batch of a column may have a NaN, and the next one none.
        return whole_numbers(values.tolist(), besides_nan=False)
    return none_for_empty(values)


def none_for_empty(values: np.ndarray) -> np.ndarray:
    """String tensors cannot hold `None`: there, the empty string is absent."""
    if values.dtype.kind == "O":
        values = values.copy()
        values[values == b""] = None
    return values


def encode_batch(schema: FeatureSchema, inputs: Any, nested: bool = False) -> Any:
    """A model's input dict with its feature entries encoded, from any source.

    For `nested` see `leading_size`.
    """
    own, entries = split_entries(inputs, schema)
    if not schema.routed or not isinstance(inputs, Mapping):
        return inputs
    size = leading_size(own, nested)
    # Of lists, such as the texts of a whole data set, none is half symbolic.
    first = []
    for value in inputs.values():
        first.append(value[:1] if isinstance(value, list) else value)
    if any_tf_symbolic(tree.flatten(first)):
        if size is None:
            import tensorflow as tf

            leaf = tree.flatten(own)[0] if own else None
            size = tf.shape(leaf)[0] if leaf is not None else None
        ids = encode_in_tf(schema, entries, size, own)
    else:
        ids = encode_inputs(schema, entries, size, own)
    return {**own, **schema.as_inputs(ids)}
