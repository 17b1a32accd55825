"""Flags of what trains: read and set one by one, past the setter that sets them all."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import keras

from keras_flix._compat.layers import Mixin
from keras_flix._compat.models import flatten_layers

Flagged: TypeAlias = "keras.layers.Layer | keras.Variable"
"""What has a flag of its own. A layer's counts for what trains without gradients, such
as the averages of batch normalization."""


def with_flags(model: keras.layers.Layer) -> Iterator[Flagged]:
    """A model, its layers, and those of their variables that can be trained."""
    return flags_of([model, *flatten_layers(model)])


def flags_of(layers: Iterable[keras.layers.Layer]) -> Iterator[Flagged]:
    """Layers, and those of their own variables that can be trained."""
    for layer in layers:
        yield layer
        yield from by_gradients(layer)


def by_gradients(layer: keras.layers.Layer) -> list[keras.Variable]:
    """A layer's own variables that gradients can train, whether they do or not."""
    return list(layer._trainable_variables)


def is_on(one: Any) -> bool:
    """Whether that very flag is set."""
    return bool(
        one._trainable if isinstance(one, keras.layers.Layer) else one.trainable
    )


def switch(flagged: Iterable[Any], on: bool) -> None:
    """Sets just these flags."""
    for one in flagged:
        if isinstance(one, keras.layers.Layer):
            one._trainable = on
        else:
            one.trainable = on


class KeepsFrozen(Mixin):
    """Mixin of adapted layers and models, whose base `trainable = True` leaves frozen.

    Keras' own setter lets everything below train. Here, `True` undoes `False`: what
    trained before trains again.
    """

    def _set_trainable(self, value: bool) -> None:
        if not value:
            if self._trainable:
                self._before_freezing()
                self.remember_flags([one for one in with_flags(self) if is_on(one)])
            # Keras' own setter does not reach what is in layers that are frozen
            # already: TensorFlow leaves out assignments that change nothing.
            switch(with_flags(self), False)
        elif not self._trainable:
            default = functools.partial(switch, self._adapter_flags(), True)
            getattr(self, "_thaw", default)()
        else:
            self._nothing_to_thaw()

    # Keras reads it several times in each step.
    trainable = property(
        operator.attrgetter("_trainable"),
        _set_trainable,
        doc="Whether the adapters train, and what else was let train.",
    )

    def remember_flags(self, on: list[Flagged]) -> None:
        """Makes these flags the ones that `True` sets."""
        # Not as a list: Keras' files would hold what is in it once more.
        object.__setattr__(self, "_thaw", functools.partial(switch, on, True))

    def _before_freezing(self) -> None:
        """Called when all that trains is about to be frozen."""

    def _nothing_to_thaw(self) -> None:
        """Called where `trainable = True` changes nothing."""

    def _adapter_flags(self) -> list[Flagged]:
        """What trains where it is not known what did before."""
        raise NotImplementedError
