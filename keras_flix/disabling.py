"""`adapters_disabled`: the base model, for the length of a block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras

from keras_flix import _compat
from keras_flix.plain_view import routed_parts
from keras_flix.routed_model import not_adapted


@contextlib.contextmanager
def adapters_disabled(model: keras.Model) -> Iterator[keras.Model]:
    """Within the block, the model is exactly its base model.

    Feature entries may then be left out of the inputs.

    Args:
        model: A model adapted by `enable_flix`.

    Example:

    ```python
    with keras_flix.adapters_disabled(model):
        base_logits = model.predict({"token_ids": ..., "padding_mask": ...})
    ```
    """
    routed = routed_parts(model)
    if not routed:
        raise ValueError(not_adapted(model))
    before = [(m, m._flix.disabled, _compat.reset_functions(m)) for m in routed]
    for m in routed:
        m._flix.disabled = True
    try:
        yield model
    finally:
        for m, disabled, functions in before:
            m._flix.disabled = disabled
            _compat.reset_functions(m)
            for name, function in functions.items():
                setattr(m, name, function)
