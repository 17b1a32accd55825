"""Ids as tensors of the backend: narrowed, out of weights, dropped at random."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import keras
from keras import ops

from keras_flix import _compat
from keras_flix.features.dropout import as_dropout
from keras_flix.features.encoding import ABSENT, MAX_WEIGHT, WEIGHT_UNIT
from keras_flix.features.feature import Feature

INT32_MAX = 2**31 - 1

Tensor = Any
"""A tensor of the current Keras backend."""


def narrow_ids(ids: Tensor, num_values: int) -> Tensor:
    """Ids as int32; those out of range become `num_values`, not what they wrap to."""
    dtype = keras.backend.standardize_dtype(ids.dtype)
    # No unsigned id is absent, but the highest ones wrap to -1 when widened.
    lowest = 0 if dtype.startswith("uint") else ABSENT
    if dtype not in ("int32", "int64"):
        # As an int8, a number of values above 127 would itself wrap.
        ids = ops.cast(ids, "int64" if dtype in ("uint32", "uint64") else "int32")
    valid = ops.logical_and(ids >= lowest, ids < num_values)
    return ops.cast(ops.where(valid, ids, num_values), "int32")


def checked_tensor(feature: Feature, entry: Tensor, is_ids: bool) -> Tensor:
    """The ids of an entry whose values only a compiled function knows.

    Args:
        feature: The feature.
        entry: An integer tensor of values or ids; or a float one, with weights.
        is_ids: Whether integers are ids, also where the values are integers.

    Returns:
        int32 of shape `(batch,)` or `(batch, k)`, or `(batch, k, 2)` with weights.
    """
    dtype = str(getattr(entry, "dtype", "")).rpartition(".")[2]
    shape = getattr(entry, "shape", ())
    if getattr(shape, "rank", 0) is None:
        # TensorFlow's compiled functions give up on what differs between batches.
        raise ValueError(
            f"All batches must give feature {feature.name!r} entries of one kind. "
            "Received: entries with weights and without, or one value and several "
            "values, in batches of the same compiled function. Write all of them "
            "alike, such as lists of values, or dicts from values to weights."
        )
    shape = tuple(shape)
    if "float" in dtype and shape[1:] == (len(feature.values),):
        return weights_of_all(entry)
    if "int" not in dtype:
        raise ValueError(
            f"The entry of feature {feature.name!r} must hold integer ids inside "
            f"a compiled function. Received: {feature.name} of dtype {dtype}. "
            "Cast ids to int32; encode strings with `schema.encode(...)`."
        )
    rank = len(shape)
    weighted = rank == 3 and shape[2] in (None, 2)
    # A scalar is one of several ids, inside of `vectorized_map`.
    ranks = (1, 2) if feature.multiple else (0, 1)
    if rank not in ranks and not weighted:
        wanted = "(batch,) or (batch, k)" if feature.multiple else "(batch,)"
        raise ValueError(
            f"The ids of feature {feature.name!r} must have the shape {wanted}. "
            f"Received: {feature.name} of shape {shape}. Pass one entry per example."
        )
    if feature.has_integers and not is_ids and not weighted:
        return ids_of_values(feature, entry)
    if keras.backend.standardize_dtype(entry.dtype) == "int32":
        return entry
    if weighted:
        ids = narrow_ids(entry[..., 0], len(feature.values))
        return ops.stack([ids, ops.cast(entry[..., 1], "int32")], axis=-1)
    return narrow_ids(entry, len(feature.values))


def ids_of_values(feature: Feature, values: Tensor) -> Tensor:
    """Ids of integer values that are only known once a compiled function runs.

    Args:
        feature: A feature of integer values.
        values: An integer tensor of any shape; -1 is absent.

    Returns:
        int32 of the same shape. What is no value makes a NaN of its example, as an
        id out of range does.
    """
    known, order = feature.in_order
    largest = max(abs(int(known[0])), abs(int(known[-1])))
    if largest > INT32_MAX:
        raise ValueError(
            f"The values of feature {feature.name!r} must fit in 32 bits to be looked "
            f"up in a compiled function. Received: one of size {largest}. Encode them "
            f"before, by `schema.encode(...)`, and pass {feature.ids_key!r}."
        )
    dtype = keras.backend.standardize_dtype(values.dtype)
    # As in `narrow_ids`: an unsigned one may wrap around when it is widened.
    lowest = 0 if dtype.startswith("uint") else -INT32_MAX
    if dtype not in ("int32", "int64"):
        values = ops.cast(values, "int64" if dtype in ("uint32", "uint64") else "int32")
    dtype = keras.backend.standardize_dtype(values.dtype)
    ordered = ops.convert_to_tensor(known, dtype)
    flat = ops.reshape(values, (-1,))
    at = _last_not_above(ordered, len(known), flat)
    is_known = ops.logical_and(ops.equal(_take(ordered, at), flat), flat >= lowest)
    found = _take(ops.convert_to_tensor(order, "int32"), at)
    ids = ops.where(is_known, found, len(known))
    if lowest:
        ids = ops.where(ops.equal(flat, ABSENT), ABSENT, ids)
    return ops.reshape(ops.cast(ids, "int32"), ops.shape(values))


def _last_not_above(ordered: Tensor, count: int, numbers: Tensor) -> Tensor:
    """Where the last of ordered numbers is that is not above each of others, else 0.

    A binary search of plain operations: ONNX has no `searchsorted`.
    """
    at = ops.zeros_like(numbers, dtype="int32")
    for bit in reversed(range(count.bit_length())):
        further = ops.minimum(at + 2**bit, count - 1)
        at = ops.where(_take(ordered, further) <= numbers, further, at)
    return at


def _take(numbers: Tensor, at: Tensor) -> Tensor:
    """Numbers at some places. What `ops.take` does on torch besides breaks in ONNX."""
    return _compat.take_rows(numbers[:, None], at)[:, 0]


def weights_of_all(weights: Tensor) -> Tensor:
    """The weights of all values, float `(batch, values)`, as ids with weights.

    Returns:
        int32 of shape `(batch, values, 2)`, see `ActiveValues.from_ids`. What is
        no weight makes a NaN of its example, as an id out of range does.
    """
    weights = ops.cast(weights, "float32")
    count = weights.shape[1]
    # Not the other way round: of "not at most", TensorFlow's graphs make "more than".
    known = ops.abs(weights) <= MAX_WEIGHT
    ids = ops.where(known, ops.arange(count, dtype="int32")[None], count)
    ids = ops.where(ops.equal(weights, 0.0), ABSENT, ids)
    units = ops.round(ops.where(known, weights, 0.0) / WEIGHT_UNIT)
    return ops.stack([ids, ops.cast(units, "int32")], axis=-1)


def drop_features(
    features: Iterable[Feature],
    ids: Mapping[str, Tensor],
    batch_size: Tensor,
    seed: keras.random.SeedGenerator,
) -> dict[str, Tensor]:
    """Feature dropout: makes features absent at random, see `FeatureDropout`.

    Args:
        features: The features of `ids`, and those that are always active.
        ids: Ids by feature, as the layers get them.
        batch_size: The number of examples.
        seed: Drawn from.

    Returns:
        The ids, -1 where a feature is dropped.
    """
    kept = dict(ids)
    for feature in features:
        dropout = as_dropout(feature.dropout or 0.0)
        if not dropout.rate:
            continue
        if feature.always:
            own_ids = ops.zeros((batch_size,), "int32")
        else:
            own_ids = ids[feature.name]
        draws = 1 if dropout.per_batch else ops.shape(own_ids)[0]
        shape = (draws,) + (1,) * (len(own_ids.shape) - 1)
        keep = keras.random.uniform(shape, seed=seed) >= dropout.rate
        kept[feature.name] = ops.where(keep, own_ids, ABSENT)
    return kept
