"""Ids as tensors of the backend: narrowed, out of weights, dropped at random."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import keras
from keras import ops

from keras_flix.features.dropout import as_dropout
from keras_flix.features.encoding import ABSENT, MAX_WEIGHT, WEIGHT_UNIT
from keras_flix.features.feature import Feature

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
            if len(own_ids.shape) < 3:
                own_ids = narrow_ids(own_ids, len(feature.values))
        draws = 1 if dropout.per_batch else ops.shape(own_ids)[0]
        shape = (draws,) + (1,) * (len(own_ids.shape) - 1)
        keep = keras.random.uniform(shape, seed=seed) >= dropout.rate
        kept[feature.name] = ops.where(keep, own_ids, ABSENT)
    return kept
