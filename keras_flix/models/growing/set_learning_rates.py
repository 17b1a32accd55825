"""`set_learning_rates`: how fast features, values, `A` and `B` learn."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

from keras_flix import _compat
from keras_flix.features.feature import Feature, Value
from keras_flix.features.schema import FeatureSchema
from keras_flix.features.values import OTHERS, plain_value
from keras_flix.models.adapted.adaptation import Model
from keras_flix.models.adapted.frozen_values import choose
from keras_flix.models.adapted.learning_rates import Rates
from keras_flix.models.growing.resize import changeable, optimizers_of
from keras_flix.models.growing.schema_changes import check_stated, checked_feature

Factors = float | Mapping[str, float | Mapping[Value, float]]
ByFeature = float | Mapping[str, float]


def set_learning_rates(
    model: Model,
    factors: Factors | None = None,
    *,
    a: ByFeature = 1.0,
    b: ByFeature = 1.0,
    weight_decay: ByFeature | None = None,
) -> Model:
    """Multiplies the learning rate, by feature, by value, of `A` and of `B`.

    An adapter weight is updated as its optimizer would update it with the learning
    rate `factor * learning_rate`, whatever the schedule. (Adam's updates do not follow
    the scale of a gradient, so it is not gradients that are multiplied.) With `b=16`
    this is LoRA+ (Hayou et al., arXiv 2402.12354), which recommends that `B` learns
    faster than `A`.

    It holds under every Keras optimizer, `LazyAdam` and `LazySGD` included, in `fit`
    and `train_on_batch`, and in loops of your own that use the optimizer which the
    model is compiled with at the call. In optimizers of torch's own it does not. Each
    call takes the place of the one before; `set_learning_rates(model)` undoes all. It
    stays when the model is compiled again, and in `.keras` files and copies. Adapter
    files do not hold it, as they hold no optimizer.

    Args:
        model: A model adapted by `enable_flix`. It is changed in place, and need not
            be compiled again.
        factors: A number for all features, also for those that are added later; or by
            feature a number, or a dict by value in which `"*"` stands for all others,
            as `{"task": 0.5, "language": {"sw": 2, "*": 1}}`. Features and values that
            are not named have 1. 0 freezes, bit by bit and with what the optimizer
            holds, as `set_trainable` does.
        a: A further factor of `A`: a number, or by feature.
        b: A further factor of `B`.
        weight_decay: Decoupled weight decay of the adapter weights: each step
            subtracts `weight_decay * factor * learning_rate` times them, before the
            update. A number, or by feature; 0 is none. `None`, and features that are
            not named: that of the optimizer. As Keras' own, it pulls at all values,
            also those that do not occur, and passes over all of them.

    Returns:
        `model`.

    Raises:
        ValueError: If a feature or a value is not the model's, or a number is negative
            or not finite, or there is to be weight decay under an optimizer that counts
            steps by value. The rates are then left as they were.

    Example:

    >>> x = keras.Input((8,), name="x")
    >>> model = keras.Model({"x": x}, keras.layers.Dense(4, name="head")(x))
    >>> model = enable_flix(model, {"language": ["en", "sw"]}, targets=["head"])
    >>> model.compile(keras.optimizers.Adam(1e-3), loss="mse")
    >>> model = set_learning_rates(model, {"language": {"sw": 2.0}}, b=16.0)
    >>> batch = {"x": np.ones((2, 8)), "language": ["en", "sw"]}
    >>> history = model.fit(batch, np.zeros((2, 4)), verbose=0)
    """
    adaptation = changeable(model, within_fit=True)
    schema = adaptation.schema
    rates = Rates(
        factors=_checked_factors(schema, factors),
        a=_by_feature(schema, "a", a),
        b=_by_feature(schema, "b", b),
        decay={}
        if weight_decay is None
        else _by_feature(schema, "weight_decay", weight_decay),
    )
    for optimizer, _ in optimizers_of(adaptation, built=False).values():
        worker = _compat.innermost(optimizer)
        if any(rates.decay.values()) and getattr(worker, "counts_values", False):
            _compat.check_counts(worker, decays=True)
    for part in adaptation.users:
        part._adaptation.rates = None if rates == NONE else rates
    choose(adaptation, adaptation.trainable)
    return model


NONE = Rates({}, {OTHERS: 1.0}, {OTHERS: 1.0}, {})


def _checked_factors(
    schema: FeatureSchema, factors: Any
) -> dict[str, dict[Value, float]]:
    if factors is None:
        return {}
    if not isinstance(factors, Mapping):
        return {OTHERS: {OTHERS: _checked_number("factors", factors)}}
    return {
        name: _by_value(checked_feature(schema, name), by_value)
        for name, by_value in factors.items()
    }


def _by_value(feature: Feature, factors: Any) -> dict[Value, float]:
    if not isinstance(factors, Mapping):
        return {OTHERS: _checked_number(f"factors[{feature.name!r}]", factors)}
    check_stated(factors, "Learning rates", f"factors[{feature.name!r}]")
    found = {}
    for value, factor in factors.items():
        if value != OTHERS:
            feature.id_of(value)
        label = f"factors[{feature.name!r}][{value!r}]"
        found[plain_value(value)] = _checked_number(label, factor)
    return found


def _by_feature(schema: FeatureSchema, label: str, numbers_: Any) -> dict[str, float]:
    if not isinstance(numbers_, Mapping):
        return {OTHERS: _checked_number(label, numbers_)}
    return {
        checked_feature(schema, name).name: _checked_number(f"{label}[{name!r}]", x)
        for name, x in numbers_.items()
    }


def _checked_number(label: str, number: Any) -> float:
    if (
        isinstance(number, bool)
        or not isinstance(number, numbers.Real)
        or not 0 <= float(number) < math.inf
    ):
        raise ValueError(
            "Factors of the learning rate, and weight decay, must be finite numbers of "
            f"at least 0. Received: {label}={number!r}. 1 leaves the rate as it is."
        )
    return float(number)
