"""What a change made of variables, optimizers, layers and models, undone.

Tensors are held, not copied: a change gives variables others (`resize_variable`), and
there may be no room for copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras

from keras_flix._compat.layers import own_variables
from keras_flix._compat.optimizer_guard import workers
from keras_flix._compat.optimizer_state import innermost
from keras_flix._compat.trainers import functions_of, put_functions

Undo = Callable[[], None]


def undo_shapes(variables: Iterable[keras.Variable]) -> Undo:
    """What gives variables back their shapes, with the values they had."""
    held = [(v, v._value, v._shape) for v in variables]

    def undo() -> None:
        for variable, value, shape in held:
            if variable._value is not value:
                variable._shape = shape
                variable._value = value

    return undo


def undo_optimizer(optimizer: Any) -> Undo:
    """What gives an optimizer, and those inside of it, back the state they had."""
    every = [optimizer, innermost(optimizer), *workers(optimizer)]
    each = list({id(one): one for one in every}.values())
    undos = [undo_shapes(one._variables) for one in each]
    held = [(one, dict(vars(one)), _tracked(one)) for one in each]

    def undo() -> None:
        for one, attributes, untrack in held:
            vars(one).clear()
            vars(one).update(attributes)
            untrack()
        for each in undos:
            each()

    return undo


def undo_variables(layers: Sequence[keras.layers.Layer]) -> Undo:
    """What takes variables out of layers that they did not have."""
    held = [(layer, {id(v) for v in own_variables(layer)}) for layer in layers]

    def undo() -> None:
        for layer, before in held:
            for variable in own_variables(layer):
                if id(variable) not in before:
                    layer._untrack_variable(variable)

    return undo


def undo_model(model: Any, attribute: str) -> Undo:
    """What gives a model back its compiled functions, and takes an attribute away.

    The attribute stays if the model has it now.
    """
    functions, untrack = functions_of(model), _tracked(model)
    had = hasattr(model, attribute)

    def undo() -> None:
        put_functions(model, functions)
        if hasattr(model, attribute) and not had:
            delattr(model, attribute)
        untrack()

    return undo


def _tracked(instance: Any) -> Undo:
    """What gives Keras' lists of what an object holds their content back."""
    tracker = instance._tracker
    config = dict(tracker.config)
    held = [(store, list(store)) for _, store in config.values()]
    ids = {name: set(found) for name, found in tracker.stored_ids.items()}

    def undo() -> None:
        tracker.config.update(config)
        for store, content in held:
            if len(store) != len(content):
                store[:] = content
        tracker.stored_ids.update(ids)

    return undo
