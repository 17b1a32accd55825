"""`schema_of`: the features of an adapted model."""

from __future__ import annotations

import keras

from keras_flix.features.schema import FeatureSchema
from keras_flix.models.adapted.adaptation import adaptation_of


def schema_of(model: keras.Model) -> FeatureSchema:
    """The features that a model takes, with their values, as they are now.

    Args:
        model: A model adapted by `enable_flix`, or one that shares its features.

    Returns:
        The schema, with ranks, dropout rates and scales filled in. It never changes:
        after `add_values` and its like, the model has another one.

    Raises:
        ValueError: If the model is not adapted.

    Example:

    >>> x = keras.Input((8,), name="x")
    >>> model = keras.Model({"x": x}, keras.layers.Dense(4, name="head")(x))
    >>> model = enable_flix(model, {"task": ["qa", "parse"]}, targets=["head"])
    >>> schema = schema_of(model)
    >>> schema["task"].values
    ('qa', 'parse')
    >>> schema.encode({"task": ["parse", None]})
    {'task': array([ 1, -1], dtype=int32)}
    """
    return adaptation_of(model, sharing=True).schema
