"""An adapted model as the plain one it was: for its config, and for copies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from keras_flix import _compat


class PlainView(_compat.Mixin):
    """The part of an adapted model that describes it."""

    def __reduce__(self) -> tuple[Any, ...]:
        _, *rest = super().__reduce__()
        return (_compat.unpickle_function(), *rest)

    def get_config(self) -> dict[str, Any]:
        """The plain model's config, and what `enable_flix` did to it."""
        surgery = self._flix
        with plain_view(self):
            base = keras.saving.serialize_keras_object(self)
        # Compiling is left to the adapted model, which has other variables.
        base.pop("compile_config", None)
        return {
            "base": base,
            "schema": surgery.schema.get_config(),
            "alpha": surgery.alpha,
            "layers": list(surgery.layers),
            "seed": surgery.seed,
        }


def routed_parts(model: Any) -> list[Any]:
    """The model and, if it is a task, its backbone: all that `enable_flix` routes."""
    parts = [getattr(model, "backbone", None), model]
    return [part for part in parts if isinstance(part, PlainView)]


@contextlib.contextmanager
def plain_view(model: Any) -> Iterator[Any]:
    """Gives a model and its adapted layers their own classes back in the block.

    What Keras and KerasHub derive from classes, such as configs and copies, is
    then that of the plain model. Nothing may be computed inside.

    Args:
        model: A model adapted by `enable_flix`.
    """
    swaps = [(p, type(p), p._flix.base_class) for p in routed_parts(model)]
    swaps += [
        (layer, type(layer), layer.plain_class) for layer in model._flix.layers.values()
    ]
    for instance, _, plain in swaps:
        instance.__class__ = plain
    try:
        yield model
    finally:
        for instance, adapted, _ in swaps:
            instance.__class__ = adapted
