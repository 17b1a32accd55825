"""Rematerialized layers, whose `call` runs again in the backward pass."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
from keras import tree
from keras.src.utils.module_utils import tensorflow as tf

Tensor = Any


def wrap_rematerialization(
    layers: Iterable[keras.layers.Layer],
    wrapper: Callable[[Callable[..., Any]], Callable[..., Any]],
) -> None:
    """Passes what rematerialized layers run, and run again, through `wrapper`."""

    def wrap(layer: keras.layers.Layer) -> None:
        original = layer.rematerialized_call

        def rematerialized_call(call: Any, *args: Any, **kwargs: Any) -> Any:
            call, tensors = _by_position(wrapper(call), args, kwargs)
            runs_again = layer._remat_mode.mode != "activations"
            if runs_again and _updates_may_overtake():
                call = _marked(call)
                rematerialized = original(call, *args, **kwargs)
                if rematerialized is not call:
                    rematerialized = _before_updates(rematerialized, layer)
            else:
                rematerialized = original(call, *args, **kwargs)
            return lambda *_, **__: rematerialized(*tensors)

        object.__setattr__(layer, "rematerialized_call", rematerialized_call)

    for layer in layers:
        if layer._remat_mode is not None:
            wrap(layer)


def _by_position(
    call: Callable[..., Any], args: Any, kwargs: Any
) -> tuple[Callable[..., Any], list[Any]]:
    """A call as a function of its tensors alone, and these.

    TensorFlow's graphs cannot rematerialize a call that has keywords, and would
    make a tensor of every other argument. From Keras 3.16 on, `rematerialized_call`
    states `training` once more, when it runs what it was given: `kwargs` has it.
    """
    leaves = tree.flatten((args, kwargs))
    is_tensor = [keras.ops.is_tensor(leaf) for leaf in leaves]

    def positional(*tensors: Any, training: Any = None) -> Any:
        given = iter(tensors)
        filled = [next(given) if own else x for x, own in zip(leaves, is_tensor)]
        own_args, own_kwargs = tree.pack_sequence_as((args, kwargs), filled)
        return call(*own_args, **own_kwargs)

    return positional, [x for x, own in zip(leaves, is_tensor) if own]


_inside: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "keras_flix_rematerialized", default=False
)
"""Whether a rematerialized call runs, whose gradients wait for those inside of it."""


def _updates_may_overtake() -> bool:
    """Whether `_before_updates` is needed: in TensorFlow's graphs, outermost."""
    return (
        keras.config.backend() == "tensorflow"
        and not tf.executing_eagerly()
        and not _inside.get()
    )


def _marked(call: Callable[..., Any]) -> Callable[..., Any]:
    def marked(*args: Any, **kwargs: Any) -> Any:
        token = _inside.set(True)
        try:
            return call(*args, **kwargs)
        finally:
            _inside.reset(token)

    return marked


def _before_updates(
    rematerialized: Callable[..., Any], layer: keras.layers.Layer
) -> Callable[..., Any]:
    """A rematerialized call of a layer whose gradients exist all at once.

    What runs again reads variables again, and a variable's own gradient need not
    depend on that. TensorFlow orders the read before the update by an edge of the
    graph. Its graph optimizer takes that edge away where another path leads through the
    `IdentityN` of `tf.recompute_grad`, and then takes that apart (in 2.21): other
    gradients may be those of the updated variable. So all pass one `IdentityN` that it
    must leave alone.
    """

    @tf.custom_gradient
    def ordered(*tensors: Tensor) -> Any:
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([x for x in tensors if x.dtype.is_floating])
            result = rematerialized(*tensors)

        def gradient(*upstream: Tensor, variables: Sequence[Any] = ()) -> Any:
            pairs = list(zip(tf.nest.flatten(result), upstream))
            pairs = [(one, given) for one, given in pairs if one.dtype.is_floating]
            found = tape.gradient(
                [one for one, _ in pairs],
                [*tensors, *variables],
                output_gradients=[given for _, given in pairs],
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
            # Those of frozen kernels would be computed for nothing. By each one's flag:
            # that of a layer of the base is off, whatever trains inside of it.
            frozen = {id(v.value) for v in layer.variables if not v.trainable}
            needed = [x.dtype.is_floating for x in tensors]
            needed += [id(v) not in frozen for v in variables]
            kept = iter(_kept_together([g for g, own in zip(found, needed) if own]))
            found = [next(kept) if own else g for g, own in zip(found, needed)]
            return found[: len(tensors)], found[len(tensors) :]

        return result, gradient

    return ordered


def _kept_together(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same tensors, of which none exists before all of them do."""
    if not tensors:
        return []
    tensors = [tf.convert_to_tensor(one) for one in tensors]
    keep = {"_grappler_do_not_remove": tf.compat.v1.AttrValue(b=True)}
    with tf.compat.v1.get_default_graph()._attr_scope(keep):
        return list(tf.identity_n(tensors))
