"""`share_features`: other models over the layers of an adapted one."""

from __future__ import annotations

import dataclasses
import weakref
from typing import Any

import keras

from keras_flix import _compat
from keras_flix.layers.active_scope import carry_routing
from keras_flix.layers.holds_tables import HoldsTables
from keras_flix.models.adapted.adaptation import Model, adaptation_of, is_adapted
from keras_flix.models.adapted.devices import check_devices
from keras_flix.models.enable import hold_dropout_seed, route
from keras_flix.models.model_checks import check_names


def share_features(model: keras.Model, other: Model) -> Model:
    """Lets another model over layers of an adapted one take its features, too.

    Such as a model that looks at the output of a layer, or a second model on the
    same trunk. Its entry points then expect the feature entries as those of `model`
    do, and `adapters_disabled`, `set_trainable`, `add_values` and their like reach
    it. The adapters stay those of `model`: there they are saved, loaded, merged and
    exported. Layers that only `other` has are as before: they train if they did, and
    are saved by `other.save_weights`.

    Adapted layers refuse to be called without features, so a model that calls them
    anew is built before `enable_flix`, or within `adapters_disabled(model)`.

    Args:
        model: A model adapted by `enable_flix`.
        other: A built `keras.Model` that holds layers of it. It is changed in place.
            Compile it again if it was trained before.

    Returns:
        `other`.

    Raises:
        ValueError: If `other` is no such model. It is then left as it was.

    Example:

    >>> x = keras.Input((8,), name="x")
    >>> hidden = keras.layers.Dense(6, name="hidden")
    >>> model = keras.Model({"x": x}, keras.layers.Dense(4, name="head")(hidden(x)))
    >>> model = enable_flix(model, {"language": ["en", "sw"]}, targets=["hidden"])
    >>> looks = keras.Model(model.input, model.get_layer("hidden").output)
    >>> looks = share_features(model, looks)
    >>> looks.predict({"x": np.ones((2, 8)), "language": ["en", "sw"]}, verbose=0).shape
    (2, 6)
    """
    adaptation = adaptation_of(model)
    _check_other(adaptation, other)
    own = dataclasses.replace(
        adaptation,
        base_class=type(other),
        unwraps=not _compat.takes_dict(other),
        input_keys=_compat.input_keys(other),
        # It need not run all of the layers.
        verified=True,
        shares=True,
    )
    route(other, own)
    adaptation.sharing.append(weakref.ref(other))
    if own.dropout_seed is not None:
        hold_dropout_seed(other)
    layers = _compat.flatten_layers(other)
    of_the_model = set(map(id, _compat.flatten_layers(model)))
    own_layers = [layer for layer in layers if id(layer) not in of_the_model]
    _compat.wrap_rematerialization(own_layers, carry_routing)
    _compat.track_torch_parameters([*own_layers, other])
    return other


def _check_other(adaptation: Any, other: Any) -> None:
    name = type(other).__name__
    received = ""
    if not isinstance(other, keras.Model):
        received = f"an object of type {name}"
    elif is_adapted(other):
        received = f"an adapted {name}"
    elif not other.built:
        received = f"an unbuilt {name}"
    if received:
        raise ValueError(
            "`other` must be a built keras.Model that takes no features yet. "
            f"Received: {received}. Build it within `adapters_disabled(model)`, and "
            "share features with it once."
        )
    known = {id(layer.holder()) for layer in adaptation.layers.values()}
    adapted = [x for x in _compat.flatten_layers(other) if isinstance(x, HoldsTables)]
    strange = [layer.path for layer in adapted if id(layer) not in known]
    if strange or not adapted:
        received = f"{strange[:4]} of others" if strange else "none of them"
        raise ValueError(
            "`other` must hold adapted layers of `model`, and of no other model. "
            f"Received: {received}. Build it of `model`'s layers, or adapt it by "
            "`enable_flix`."
        )
    check_devices(other)
    check_names(other, adaptation.schema)
