"""An adapted model as the plain one it was: for its config, and for copies."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
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
            # By position: paths may change where a model is made again.
            "layers": layer_positions(self, surgery.layers),
            "seed": surgery.seed,
        }


def linear_layers(model: Any) -> list[Any]:
    """All layers of a model that have a kernel, adapted or not, in order."""
    kinds = (keras.layers.EinsumDense, keras.layers.Dense)
    return [lyr for lyr in _compat.flatten_layers(model) if isinstance(lyr, kinds)]


def layer_positions(model: Any, layers: Mapping[str, Any]) -> list[list[Any]]:
    """Position and name of adapted layers among all linear layers of a model."""
    positions = {id(layer): i for i, layer in enumerate(linear_layers(model))}
    return [[positions[id(layer)], layer.name] for layer in layers.values()]


@contextlib.contextmanager
def plain_view(model: Any) -> Iterator[Any]:
    """Gives a model and its adapted layers their own classes back in the block.

    What Keras and KerasHub derive from classes, such as configs and copies, is
    then that of the plain model. Nothing may be computed inside.

    Args:
        model: A model adapted by `enable_flix`.
    """
    swaps = [(p, type(p), p._flix.base_class) for p in model._flix.parts]
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
