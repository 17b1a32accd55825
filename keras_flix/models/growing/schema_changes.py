"""A schema with more values, fewer, or other names; and what may be asked of it."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from keras_flix._utils.near_names import hint
from keras_flix.features.feature import Feature, Value
from keras_flix.features.missing import is_missing
from keras_flix.features.schema import FeatureSchema
from keras_flix.features.values import OTHERS, plain_value
from keras_flix.models.adapted.adaptation import Choice


def checked_feature(schema: FeatureSchema, name: str) -> Feature:
    """The feature of that name; raises with the nearest if there is none."""
    if name not in schema:
        names = schema.names
        raise ValueError(
            f"A feature must be one of the model's: {names}. Received: {name!r}."
            f"{hint(name, names)}"
        )
    return schema[name]


def checked_values(feature: Feature, values: Sequence[Value]) -> tuple[Value, ...]:
    """A list of values that the feature has; raises with the nearest if not."""
    checked = tuple(Feature(feature.name, values).values)
    for value in checked:
        feature.id_of(value)
    return checked


def checked_init(feature: Feature, init: Any) -> dict[int, float]:
    """The weights of old values by id; empty for a fresh start."""
    if init is None:
        return {}
    if not isinstance(init, Mapping):
        return {feature.id_of(*checked_values(feature, [init])): 1.0}
    weights = init
    if not weights:
        raise ValueError(
            "The weights of `init` must name at least one value. Received: "
            "{}. Pass None for a fresh start."
        )
    for value, weight in weights.items():
        if isinstance(weight, bool) or not (
            isinstance(weight, numbers.Real) and math.isfinite(weight)
        ):
            raise ValueError(
                "The weights of `init` must be finite numbers. Received: "
                f"init={dict(weights)!r}. Write such as {{{value!r}: 0.5}}."
            )
    checked_values(feature, list(weights))
    return {feature.id_of(value): float(w) for value, w in weights.items()}


def check_stated(values: Iterable[Any], what: str, place: str) -> None:
    """Raises for a missing value, which names none; `what` is told of others."""
    for value in values:
        if is_missing(value):
            raise ValueError(
                f"{what} must be of values. Received: {value} in {place}. Write '*' "
                "for all others."
            )


def inits_by_value(
    feature: Feature, values: Sequence[Value], init: Any
) -> dict[Value, dict[int, float]]:
    """What each new value starts as: weights of old values by id, as `checked_init`.

    They are the same for all, unless `init` has weights of a value in it.
    """
    new = Feature(feature.name, values).values
    if not _is_by_value(init, new):
        return dict.fromkeys(new, checked_init(feature, init))
    by_value = {plain_value(value): entry for value, entry in init.items()}
    if set(by_value) != set(new):
        raise ValueError(
            "An `init` by new value must have all new values, and no others. "
            f"Received: init={dict(init)!r} for values={list(new)!r}. Write None for "
            "a fresh start."
        )
    for value, weights in by_value.items():
        if weights is not None and not isinstance(weights, Mapping):
            raise ValueError(
                "An `init` by new value must have weights, or None, for each. "
                f"Received: {weights!r} for {value!r}. For a copy of one value, write "
                "{value: 1.0}."
            )
    return {value: checked_init(feature, by_value[value]) for value in new}


def _is_by_value(init: Any, new: Sequence[Value]) -> bool:
    """Whether its entries are of new values: weights are of old ones."""
    if not isinstance(init, Mapping):
        return False
    if any(isinstance(entry, Mapping) for entry in init.values()):
        return True
    return not {plain_value(value) for value in init}.isdisjoint(new)


def with_values(
    feature: Feature, values: Sequence[Value], rank: Any, copied: Any
) -> Feature:
    """The feature with more values, and ranks for them."""
    if feature.always:
        raise ValueError(
            f"Feature {feature.name!r} must not have always=True to get more "
            "values: it has exactly one. Received: values="
            f"{values!r}. Use `add_feature` for one more feature."
        )
    new = Feature(feature.name, values).values
    known = [value for value in new if value in feature]
    if known:
        raise ValueError(
            f"The new values of feature {feature.name!r} must be new. Received: "
            f"{known[0]!r}, which it has. Leave it out."
        )
    old = feature.rank if isinstance(feature.rank, Mapping) else {OTHERS: feature.rank}
    default = old.get(OTHERS)
    if rank is not None:
        ranks = Feature(feature.name, new, rank=rank).ranks
    elif copied is not None:
        ranks = (feature.ranks[feature.id_of(copied)],) * len(new)
    elif default is not None:
        ranks = (default,) * len(new)
    else:
        raise ValueError(
            f"The rank of new values of feature {feature.name!r} must be known. "
            f"Received: rank=None, and ranks by value without '*': {dict(old)!r}. "
            "Pass rank=."
        )
    own = {value: r for value, r in zip(new, ranks) if r != default}
    return dataclasses.replace(
        feature, values=(*feature.values, *new), rank=_plain({**old, **own})
    )


def without_values(feature: Feature, values: Sequence[Value]) -> Feature:
    """The feature without some of its values; at least one must stay."""
    named = checked_values(feature, values)
    gone = set(named)
    kept = [value for value in feature.values if value not in gone]
    if not kept:
        raise ValueError(
            f"At least one value of feature {feature.name!r} must stay. Received: "
            f"values={list(named)!r}, which are all it has. Leave one out."
        )
    ranks = feature.rank
    if isinstance(ranks, Mapping):
        ranks = _plain({v: r for v, r in ranks.items() if v not in gone})
    return dataclasses.replace(feature, values=kept, rank=ranks)


def with_name(feature: Feature, old: Value, new: Value) -> Feature:
    """The feature with one of its values called otherwise."""
    row = feature.id_of(*checked_values(feature, [old]))
    values = list(feature.values)
    values[row] = new
    ranks = feature.rank
    if isinstance(ranks, Mapping):
        ranks = {new if value == old else value: r for value, r in ranks.items()}
    return dataclasses.replace(feature, values=values, rank=ranks)


def _plain(ranks: Mapping[Any, Any]) -> Any:
    """Ranks by value, as one number where they are."""
    return ranks[OTHERS] if set(ranks) == {OTHERS} else dict(ranks)


def replaced(schema: FeatureSchema, feature: Feature) -> FeatureSchema:
    """The schema with another feature in the place of that of the same name."""
    return FeatureSchema(feature if f.name == feature.name else f for f in schema)


def narrowed(choice: Choice, feature: Feature) -> Choice:
    """A choice of values that train, without those a feature has no more."""
    if choice is None or feature.name not in choice:
        return choice
    chosen = [value for value in choice[feature.name] if value in feature]
    rest = {name: values for name, values in choice.items() if name != feature.name}
    if not chosen and not rest:
        raise ValueError(
            "One of the values that train must stay. Received: removed values "
            f"{list(choice[feature.name])!r} of feature {feature.name!r}, the only "
            "ones that train. Call `set_trainable` first."
        )
    return {**rest, feature.name: chosen} if chosen else rest
