"""`adapters_disabled`: the base model, for the length of a block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from keras_flix import _compat
from keras_flix.layers.active_scope import switched_off
from keras_flix.models.adapted.adaptation import Model, adaptation_of


@contextlib.contextmanager
def adapters_disabled(model: Model) -> Iterator[Model]:
    """Within the block, the model is exactly its base model.

    Feature entries may then be left out of the inputs. So are its layers and blocks
    where they are called on their own, its `score`, models over its layers that are
    called, and those that `share_features` knows in everything. What functions of
    your own compiled of this model beforehand, or compile within the block, does not
    follow: make those of the plain model.

    The block is its own thread's, and its own task's: other threads that use the
    model wait for its end, and other tasks of the same thread get an error.
    Workers that belong to the block take part in it if they run in its context,
    as those of `asyncio.to_thread` and of `contextvars.copy_context().run` do.

    Args:
        model: A model adapted by `enable_flix`, or one that shares its features.

    Example:

    ```python
    with keras_flix.adapters_disabled(model):
        base_logits = model.predict(inputs)
    ```
    """
    # A task and its backbone share layers, so they go together.
    adaptation = adaptation_of(model, sharing=True)
    before: list[tuple[Any, bool, dict[str, Any], tuple[Any, int]]] = []

    def known_by_functions(m: Any) -> tuple[Any, int]:
        return _compat.compilation(m), m._adaptation.changes

    def begin() -> None:
        for m in adaptation.users:
            known, functions = known_by_functions(m), _compat.reset_functions(m)
            before.append((m, m._adaptation.disabled, functions, known))
            m._adaptation.disabled = True

    def end() -> None:
        for m, disabled, functions, (compiled, changes) in before:
            m._adaptation.disabled = disabled
            _compat.reset_functions(m)
            now = known_by_functions(m)
            # Else they know another optimizer, loss, or other values.
            if now[0] is compiled and now[1] == changes:
                for name, function in functions.items():
                    setattr(m, name, function)

    with (
        adaptation.turns.block(begin, end),
        switched_off([*adaptation.layers.values(), *adaptation.token_rows]),
    ):
        yield model
