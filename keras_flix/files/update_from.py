"""`update_from`: brings in values that somebody else trained on the same base."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_flix import _compat
from keras_flix.features.feature import Feature, Value
from keras_flix.features.schema import FeatureSchema
from keras_flix.files.adapter_file import Adapters, read_adapters
from keras_flix.files.counted_names import named_as_in
from keras_flix.files.same_features import check_layer_ranks
from keras_flix.files.saving import adapters_of, check_same_base
from keras_flix.files.weight_digests import fingerprint_without
from keras_flix.models.adapted.adaptation import Adaptation, Model
from keras_flix.models.adapted.frozen_values import guard_optimizer
from keras_flix.models.adapted.plain_view import token_ids
from keras_flix.models.adapted.trained_base import base_variables, token_variables
from keras_flix.models.growing.resize import (
    Pair,
    changeable,
    check_fits,
    optimizers_of,
    resize,
)
from keras_flix.models.growing.schema_changes import (
    checked_feature,
    checked_values,
    replaced,
    with_values,
)

Chosen = dict[str, tuple[Value, ...]]


def update_from(
    model: Model,
    other: keras.Model | str | os.PathLike[str],
    values: Mapping[str, Sequence[Value]] | None = None,
    *,
    check_base: bool = True,
) -> Model:
    """Takes over values that were trained elsewhere, on the same base.

    Their adapter weights come over bit by bit, with their ranks; those of all others
    stay as they are, bit by bit. A value's update was trained beside those of the
    other features: it means the same here if these are the same, as when both models
    began from one adapter file and the new values were trained alone.

    Args:
        model: A model adapted by `enable_flix`. It is changed in place.
        other: An adapter file (or its handle on a hub), or an adapted model, with
            the same adapted layers and the same scale. Other features of it do not
            matter.
        values: Which values, by feature, such as `{"language": ["rw"]}`. Those that
            the model has are overwritten, and must have the same rank; new ones are
            appended, as by `add_values`. `None`: all that the model does not have.
        check_base: Whether to compare the base weights of both, as in
            `load_adapters`.

    Returns:
        `model`. Its optimizer goes on as after `add_values`; of values that were
        overwritten, it still knows how the old ones were trained: compile the model
        again before you train those.

    Raises:
        ValueError: If the two do not fit. The model is then left as it was.

    Example:

    >>> def make(languages):
    ...     x = keras.Input((8,), name="x")
    ...     head = keras.layers.Dense(4, name="head", kernel_initializer="ones")
    ...     model = keras.Model({"x": x}, head(x))
    ...     return enable_flix(model, {"language": languages}, targets=["head"])
    >>> model = update_from(make(["en", "sw"]), make(["sw", "rw"]))
    >>> model.get_layer("head").features["language"].values
    ('en', 'sw', 'rw')
    """
    adaptation = changeable(model)
    theirs = adapters_of(other) if _is_model(other) else read_adapters(other)
    theirs = named_as_in(model, theirs)
    chosen = _chosen(adaptation.schema, theirs, values)
    _check_layers(adaptation, theirs)
    for feature in chosen:
        _check_feature(adaptation, theirs, feature)
    check_layer_ranks(adaptation, theirs, list(chosen))
    grown = {}
    for feature, names in chosen.items():
        own, saved = adaptation.schema[feature], theirs.schema[feature]
        ranks = {name: saved.ranks[saved.id_of(name)] for name in names}
        more = [name for name in names if name not in own]
        _check_overwritten(own, ranks, theirs.source)
        if more:
            grown[feature] = with_values(
                own, more, {name: ranks[name] for name in more}, None
            )
    _check_growth(adaptation, grown)
    if check_base and theirs.base is not None:
        check_same_base(
            fingerprint_without(model, theirs.trained), theirs.base, theirs.source
        )
        _check_trained_alike(model, theirs)

    for feature, new in grown.items():
        old = adaptation.schema[feature].values
        added = {
            key: _pairs(theirs, key, feature, new.values[len(old) :])
            for key in adaptation.layers_of(feature)
        }
        schema = replaced(adaptation.schema, new)
        resize(adaptation, schema, new, range(len(old)), added)
    for feature, names in chosen.items():
        _overwrite(adaptation, theirs, feature, names)
    for part in adaptation.users:
        # Averages of frozen values are what the weights now are.
        guard_optimizer(part)
    return model


def _is_model(other: Any) -> bool:
    return isinstance(other, keras.Model)


def _chosen(own: FeatureSchema, theirs: Adapters, values: Any) -> Chosen:
    """The values to take over, by feature."""
    if values is None:
        for feature in theirs.schema:
            if feature.name not in own:
                raise ValueError(
                    "Without `values`, all features of `other` must be the model's: "
                    f"{own.names}. Received: values=None, and {theirs.source!r} with "
                    f"the feature {feature.name!r}. Name the values to take over, "
                    f"such as values={{{own.names[0]!r}: [...]}}."
                )
        values = {
            feature.name: [v for v in feature.values if v not in own[feature.name]]
            for feature in theirs.schema
            if not feature.always
        }
        values = {name: new for name, new in values.items() if new}
        if not values:
            raise ValueError(
                "Without `values`, `other` must have values that the model does not "
                f"have. Received: values=None, and {theirs.source!r} without any. "
                "Name those that are to be overwritten."
            )
    if not isinstance(values, Mapping) or not values:
        raise ValueError(
            "`values` must be None or a dict from the name of a feature to a list of "
            f"values. Received: values={values!r}. Write such as "
            f"{{{own.names[0]!r}: [...]}}."
        )
    chosen = {}
    for feature, names in values.items():
        checked_feature(own, feature)
        if feature not in theirs.schema:
            raise ValueError(
                "`values` must name features that `other` has. Received: "
                f"{feature!r}, and {theirs.source!r} with {theirs.schema.names}. "
                "Leave it out."
            )
        chosen[feature] = checked_values(theirs.schema[feature], names)
    return chosen


def _check_layers(adaptation: Adaptation, theirs: Adapters) -> None:
    # It may have fewer, as files of some values do: features compare theirs.
    unlike = sorted(set(theirs.layers) - adaptation.layers.keys())
    if unlike:
        raise ValueError(
            "The adapted layers of `other` must be those of the model. Received: "
            f"{theirs.source!r}, where {len(unlike)} differ: {unlike[0]!r} is adapted "
            "in `other` only. Adapt both with the same `targets`."
        )


def _check_feature(adaptation: Adaptation, theirs: Adapters, feature: str) -> None:
    own, other = adaptation.schema[feature].scaling, theirs.schema[feature].scaling
    if own != other:
        raise ValueError(
            f"The scale of feature {feature!r} must be the same in both. Expected: "
            f"{own.arguments()}. Received: {other.arguments()} in "
            f"{theirs.source!r}. Adapt both with the same alpha and scale."
        )
    own_layers = adaptation.layers_of(feature)
    if set(own_layers) != set(theirs.layers_of(feature)):
        unlike = sorted(set(own_layers) ^ set(theirs.layers_of(feature)))
        place = "the model" if unlike[0] in own_layers else "`other`"
        raise ValueError(
            f"Feature {feature!r} must be in the same layers of both. Received: "
            f"{theirs.source!r}, where {len(unlike)} differ: {unlike[0]!r} has adapter "
            f"weights of it in {place} only. Adapt both with the same `targets`."
        )
    for key, layer in own_layers.items():
        a, b = theirs.pair(key, feature)
        own_a, own_b = layer._tables.variables[feature]
        expected, found = (own_a.shape[1], own_b.shape[2]), (a.shape[1], b.shape[2])
        if expected != found:
            raise ValueError(
                "The layers of `other` must have the sizes of the model's. At "
                f"{key!r}, expected: (d_in, d_out)={expected}. Received: {found} in "
                f"{theirs.source!r}. Use adapters of the same base."
            )


def _check_overwritten(own: Feature, ranks: Mapping[Value, int], source: str) -> None:
    for value, rank in ranks.items():
        if value in own and own.ranks[own.id_of(value)] != rank:
            raise ValueError(
                "A value that is overwritten must have the rank it has in the model. "
                f"Expected: rank={own.ranks[own.id_of(value)]} of "
                f"{own.name}={value!r}. Received: rank={rank} in {source!r}. "
                "Remove the value with `remove_values` first, or give it another "
                "name with `rename_value`."
            )


def _check_growth(adaptation: Adaptation, grown: Mapping[str, Feature]) -> None:
    """Raises for all that could keep one of several features from growing."""
    for feature in grown.values():
        check_fits(adaptation, feature)
    tables = [
        table.variable for feature in grown for table in adaptation.tables(feature)
    ]
    for optimizer, _ in optimizers_of(adaptation).values():
        _compat.check_growable(optimizer, tables)


def _check_trained_alike(model: keras.Model, theirs: Adapters) -> None:
    """Raises if what trained besides the adapters is not what the model has."""
    own = {one.name: one.variable for one in base_variables(model)}
    own |= token_variables(model)
    tokens = token_ids(model._adaptation)
    if tokens != {path: list(ids) for path, ids in theirs.tokens.items()}:
        raise ValueError(
            "The tokens that train must be the same in `other` and in the model. "
            f"Expected: {tokens or 'none'}. Received: {dict(theirs.tokens) or 'none'} "
            f"in {theirs.source!r}. Adapt both with the same `trainable_tokens`, or "
            "pass check_base=False to go without this check."
        )
    for name, value in theirs.trained.items():
        if name not in own or not np.array_equal(
            np.asarray(_compat.to_host(own[name]), "float32"), value
        ):
            raise ValueError(
                "What trained besides the adapters of `other` must be the same in the "
                f"model. Received: {theirs.source!r}, with another {name!r}. Begin "
                "both from one adapter file and train values only, or pass "
                "check_base=False to go without this check."
            )


def _pairs(
    theirs: Adapters, key: str, feature: str, names: Sequence[Value]
) -> list[Pair]:
    """The own tables of values, without what is beyond their rank."""
    saved, experts = theirs.feature_in(key, feature), theirs.experts.get(key, 1)
    a, b = theirs.pair(key, feature)
    rows = [saved.id_of(name) for name in names]
    ranks = [saved.ranks[row] * experts for row in rows]
    return [(a[i, :, :rank], b[i, :rank]) for i, rank in zip(rows, ranks)]


def _overwrite(
    adaptation: Adaptation, theirs: Adapters, feature: str, names: Sequence[Value]
) -> None:
    own = adaptation.schema[feature]
    for table in adaptation.tables(feature):
        value = np.array(_compat.to_host(table.variable))
        place = "ab".index(table.part)
        for name, pair in zip(names, _pairs(theirs, table.layer, feature, names)):
            taken = pair[place]
            rows, columns = taken.shape
            value[own.id_of(name), :rows, :columns] = taken
        table.variable.assign(value)
