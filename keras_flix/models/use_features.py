"""`use_features` and `set_default_features`: features for calls that bring none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from keras_flix.models.adapted.adaptation import Model, adaptation_of
from keras_flix.models.adapted.default_features import checked_values


@contextlib.contextmanager
def use_features(
    model: Model, features: Mapping[str, Any] | None = None, /, **by_name: Any
) -> Iterator[Model]:
    """Within the block, states features for calls whose inputs bring none.

    For code that knows no features, such as a chat loop or an evaluator of another
    library: `model.generate("text")`, `model(x)`, `predict`, `score`, `evaluate`,
    `fit` and their like then take the model's own inputs alone, and compute what they
    do with the same features in an input dict. They travel as ids among the inputs:
    other values need no new compilation, and no compiled function keeps old ones.

    Each feature is stated once: by the input dict, else by the innermost block that
    names it, else by `set_default_features`. An entry of `None` in the input dict
    states absence, and wins too. A feature that nothing states raises, as ever.

    The block is its own thread's and its own task's; what begins within it in a copy of
    its context, as `asyncio.to_thread` does, takes part. A data source is read with the
    features of the block in which `fit` or its like was called. The block reaches the
    model's backbone, and models that share its features, but no layers that are called
    on their own. Within `adapters_disabled`, nothing needs features.

    Args:
        model: A model adapted by `enable_flix`, or one that shares its features.
        features: Entries by feature, for names that are no identifiers.
        **by_name: The same, by name. An entry holds for all examples: a value, an id,
            or `None` for absence; a list of values on a `multiple` feature; a dict from
            values to weights.

    Raises:
        ValueError: If the model is not adapted, an entry is none of its features, or
            not valid for all examples; in a call, if it is compiled by code of your own
            (`jax.jit`, `tf.function`) without features among its inputs.

    Example:

    >>> x = keras.Input((8,), name="x")
    >>> model = keras.Model({"x": x}, keras.layers.Dense(4, name="head")(x))
    >>> features = {"task": ["qa", "parse"], "language": ["en", "sw"]}
    >>> model = enable_flix(model, features, targets=["head"])
    >>> batch = np.ones((3, 8))
    >>> with use_features(model, task="qa", language="sw"):
    ...     stated = model.predict(batch, verbose=0)
    ...     english = model.predict({"x": batch, "language": "en"}, verbose=0)
    >>> with use_features(model, {"task": "qa", "language": {"sw": 0.5}}):
    ...     half = model(batch)
    """
    adaptation = adaptation_of(model, sharing=True)
    schema = adaptation.schema
    stated = checked_values(schema, {} if features is None else features)
    named = checked_values(schema, by_name)
    if twice := sorted(set(stated) & set(named)):
        raise ValueError(
            f"A feature must be stated once. Received: {twice} in the dict and by "
            "name. Remove one."
        )
    with adaptation.defaults.block({**stated, **named}):
        yield model


def set_default_features(
    model: keras.Model, features: Mapping[str, Any] | None
) -> None:
    """States features for calls whose inputs bring none, from now on.

    As `use_features`, for all threads and until they are set again, such as where a
    model is served; blocks of `use_features` win. Only for asking: `fit`,
    `train_on_batch` and calls with `training=True` raise where they would take features
    from here, since data whose features were forgotten would train those of a chat.

    They are not part of the model: neither saved nor copied, and a merged model has
    none. A value that `remove_values` or `rename_value` took away raises in the calls
    that would take it.

    Args:
        model: A model adapted by `enable_flix`, or one that shares its features.
        features: Entries by feature, as for `use_features`, in place of all that were
            set before. `None` clears them.

    Raises:
        ValueError: As `use_features` does. What was set before then stays.

    Example:

    >>> x = keras.Input((8,), name="x")
    >>> model = keras.Model({"x": x}, keras.layers.Dense(4, name="head")(x))
    >>> model = enable_flix(model, {"language": ["en", "sw"]}, targets=["head"])
    >>> set_default_features(model, {"language": "sw"})
    >>> tuple(model(np.ones((3, 8))).shape)
    (3, 4)
    >>> set_default_features(model, None)
    """
    adaptation = adaptation_of(model, sharing=True)
    stated = {} if features is None else features
    adaptation.defaults.of_model = checked_values(adaptation.schema, stated)
