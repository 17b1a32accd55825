"""`adapters_disabled`: the base model, for the length of a block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras

from keras_flix import _compat
from keras_flix.routed_model import surgery_of


@contextlib.contextmanager
def adapters_disabled(model: keras.Model) -> Iterator[keras.Model]:
    """Within the block, the model is exactly its base model.

    Feature entries may then be left out of the inputs. What other models or
    functions compiled of this model beforehand, or compile within the block,
    does not follow: make those of the plain model.

    Args:
        model: A model adapted by `enable_flix`.

    Example:

    ```python
    with keras_flix.adapters_disabled(model):
        base_logits = model.predict(inputs)
    ```
    """
    # A task and its backbone share layers, so they go together.
    routed = surgery_of(model).parts
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
