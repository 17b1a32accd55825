"""Trained models that grow: more values or fewer, other names, more features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from keras_flix._utils.renamed import renamed_keyword
from keras_flix.features.dropout import FeatureDropout
from keras_flix.features.feature import Feature, Value
from keras_flix.features.languages import language_weights
from keras_flix.features.schema import FeatureSchema
from keras_flix.features.values import plain_value
from keras_flix.layers.checks import check_ranks
from keras_flix.models.adapted.adaptation import Model
from keras_flix.models.growing.all_or_nothing import all_or_nothing
from keras_flix.models.growing.resize import (
    Start,
    add_feature_tables,
    changeable,
    check_fits,
    initial_pairs,
    resize,
    set_schema,
)
from keras_flix.models.growing.schema_changes import (
    checked_feature,
    inits_by_value,
    replaced,
    with_name,
    with_values,
    without_values,
)
from keras_flix.models.layer_ranks import find_layer_ranks
from keras_flix.models.model_checks import check_names, checked_seed
from keras_flix.models.places import places_among

Weights = Mapping[Value, float]
Init = Weights | Mapping[Value, Weights | None]
"""Weights of known values, the same for all new values or by new value."""

TYPOLOGY, NEAREST = "typology", 3
"""The start by what languages are like, and of how many: the best that was measured."""


@renamed_keyword("axis", "feature")
def add_values(
    model: Model,
    feature: str,
    values: Sequence[Value],
    init: Value | Init | None = None,
    *,
    rank: int | Mapping[Value, int] | None = None,
    seed: int | None = None,
) -> Model:
    """Gives a feature of an adapted model more values, also during and after training.

    What the model computes for the values it had does not change, bit by bit
    (to rounding, if a higher `rank` makes room for itself), and training goes on from
    where it was, without another `compile`: the optimizer stays the same object and
    keeps its iterations and all it knows of the old values. For new ones it starts
    as it does for new variables. With Adam, whose averages are of all examples'
    steps, their first updates can be three times the learning rate. (Optimizers
    that look at whole variables, such as Adafactor, then take other steps for the
    old values too.) In training loops of your own, make what you compiled and
    torch's optimizers again.

    May be called while `fit` runs, from callbacks: the step is then compiled anew, once
    per call. Batches may then hold the new values: those of a generator, a `PyDataset`
    or a loader, which are encoded as they are made. That may be some steps ahead, so
    let the data name a value only once the model has it. Arrays and `tf.data` are
    encoded, or compiled, when `fit` begins, and refuse values that come later.

    Args:
        model: A model adapted by `enable_flix`. It is changed in place.
        feature: Name of the feature.
        values: The new values. Their ids follow those of the old ones.
        init: What the new values start as. `None`: like all values, with no effect.
            A value the feature has: its copy, bit by bit. Weights by value, such as
            `{"sw": 0.5, "yo": 0.5}`: in each layer, the matrix of the new value's
            rank that is closest to the weighted sum of the updates; it is exact
            where that rank reaches the sum of the others'. (Averages of `A` and of
            `B` would be the update of none.) Such weights by new value, `{"rw":
            {"sw": 0.5, "yo": 0.5}, "lg": None}`, start each as its own says, as those
            of `language_weights` do. `"typology"`, where no value is called so:
            languages start as the three that are most like them, by
            `language_weights(values, known, kind="typology", nearest=3)`.
        rank: Rank of the new values: an integer, or a dict by value in which `"*"`
            stands for all others. `None` takes that of the value which `init`
            copies, else what the feature's `rank` says.
        seed: Seeds fresh adapter weights, by layer and value. `None` takes the seed of
            `enable_flix`.

    Returns:
        `model`.

    Raises:
        ImportError: If `init="typology"` and its extra is not installed.
        ValueError: If the feature or a value is not as it must be, or the state
            of the optimizer cannot be kept. The model is then left as it was.

    Example:

    >>> x = keras.Input((8,), name="x")
    >>> model = keras.Model({"x": x}, keras.layers.Dense(4, name="head")(x))
    >>> model = enable_flix(model, {"language": ["en", "sw"]}, targets=["head"])
    >>> model = add_values(model, "language", ["rw"], init={"sw": 0.7, "en": 0.3})
    >>> model.predict({"x": np.ones((2, 8)), "language": ["rw", "en"]}, verbose=0).shape
    (2, 4)
    """
    adaptation = changeable(model, within_fit=True)
    known = checked_feature(adaptation.schema, feature)
    if init == TYPOLOGY and TYPOLOGY not in known:
        init = _by_typology(Feature(feature, values).values, known.values)
    copied = None if isinstance(init, Mapping) else init
    grown = with_values(known, values, rank, copied)
    inits = inits_by_value(known, values, init)
    seed = adaptation.seed if seed is None else checked_seed(seed)
    starts = {
        grown.id_of(value): Start(weights, copied is not None, seed)
        for value, weights in inits.items()
    }
    schema = replaced(adaptation.schema, grown)
    check_fits(adaptation, grown)
    tables = {
        path: initial_pairs(layer, path, grown, starts)
        for path, layer in adaptation.layers_of(feature).items()
    }
    resize(adaptation, schema, grown, range(len(known.values)), tables)
    return model


def _by_typology(new: Any, known: Any) -> Any:
    """Weights by new value; raises where one is no language."""
    return language_weights(list(new), known, kind=TYPOLOGY, nearest=NEAREST)


@renamed_keyword("axis", "feature")
def remove_values(model: Model, feature: str, values: Sequence[Value]) -> Model:
    """Takes values from a feature of an adapted model.

    The ids of later values move up. All else stays as it was, with the same care
    as in `add_values`; the adapter weights become narrower if no value is left that
    needs their rank.

    Args:
        model: A model adapted by `enable_flix`. It is changed in place.
        feature: Name of the feature.
        values: Which values; at least one other must stay.

    Returns:
        `model`.

    Raises:
        ValueError: If the feature or a value is not as it must be, or the state
            of the optimizer cannot be kept. The model is then left as it was.

    Example:

    >>> x = keras.Input((8,), name="x")
    >>> model = keras.Model({"x": x}, keras.layers.Dense(4, name="head")(x))
    >>> model = enable_flix(model, {"language": ["en", "sw"]}, targets=["head"])
    >>> model = remove_values(model, "language", ["en"])
    >>> tuple(model({"x": np.ones((1, 8)), "language": "sw"}).shape)
    (1, 4)
    """
    adaptation = changeable(model)
    known = checked_feature(adaptation.schema, feature)
    fewer = without_values(known, values)
    rows = [known.id_of(value) for value in fewer.values]
    resize(adaptation, replaced(adaptation.schema, fewer), fewer, rows, {})
    return model


@renamed_keyword("axis", "feature")
def rename_value(model: Model, feature: str, old: Value, new: Value) -> Model:
    """Gives a value of an adapted model's feature another name.

    Its id, its adapter weights and all that training knows of it stay. May be called
    while `fit` runs, from callbacks.

    Args:
        model: A model adapted by `enable_flix`. It is changed in place.
        feature: Name of the feature.
        old: The value as it is called.
        new: The value as it is to be called.

    Returns:
        `model`.

    Raises:
        ValueError: If the feature or a value is not as it must be. The model is
            then left as it was.

    Example:

    >>> x = keras.Input((8,), name="x")
    >>> model = keras.Model({"x": x}, keras.layers.Dense(4, name="head")(x))
    >>> model = enable_flix(model, {"language": ["en", "iw"]}, targets=["head"])
    >>> model = rename_value(model, "language", "iw", "he")
    >>> tuple(model({"x": np.ones((1, 8)), "language": "he"}).shape)
    (1, 4)
    """
    adaptation = changeable(model, within_fit=True)
    old, new = plain_value(old), plain_value(new)
    renamed = with_name(checked_feature(adaptation.schema, feature), old, new)
    choice = adaptation.trainable
    if choice is not None and feature in choice:
        choice = {**choice, feature: [new if v == old else v for v in choice[feature]]}
    with all_or_nothing(adaptation):
        if adaptation.rates is not None:
            adaptation.rates = adaptation.rates.renamed(feature, old, new)
        set_schema(adaptation, replaced(adaptation.schema, renamed), choice)
    adaptation.defaults.rename(feature, old, new)
    return model


def add_feature(
    model: Model,
    feature: Feature,
    *,
    rank: int | Mapping[Value, int] = 4,
    dropout: float | FeatureDropout = 0.0,
    layer_ranks: Mapping[str, int] | None = None,
    seed: int | None = None,
) -> Model:
    """Gives an adapted model one more feature, also after training.

    What the model computes does not change until the feature is trained: its
    updates start at zero. Inputs must state it from now on, unless it has
    always=True. The optimizer stays the same object and keeps its iterations and
    its state of the other features; training goes on without another
    `compile`. (Where the model had feature dropout and the new feature has some too,
    later draws are others.)

    Args:
        model: A model adapted by `enable_flix`. It is changed in place.
        feature: The new feature, the last of the model's from now on. Its `targets`, if
            it states some, are among the layers that are adapted.
        rank: Rank of its values' updates, if the feature states none: a number, or
            a dict by value.
        dropout: Its feature dropout, if it states none.
        layer_ranks: Ranks of layers, or kernels of experts, in which it has another
            one: by layer name or regex. Those of other features do not hold for it.
        seed: Seeds its adapter weights. `None` takes the seed of `enable_flix`.

    Returns:
        `model`.

    Raises:
        ValueError: If the feature does not fit the model, or the state of the
            optimizer cannot be kept. The model is then left as it was.

    Example:

    >>> x = keras.Input((8,), name="x")
    >>> model = keras.Model({"x": x}, keras.layers.Dense(4, name="head")(x))
    >>> model = enable_flix(model, {"language": ["en", "sw"]}, targets=["head"])
    >>> model = add_feature(model, Feature("shared", always=True))
    >>> model = add_feature(model, Feature("domain", ["news", "web"], rank=2))
    >>> batch = {"x": np.ones((2, 8)), "language": "en", "domain": ["web", None]}
    >>> tuple(model(batch).shape)
    (2, 4)
    """
    adaptation = changeable(model)
    (feature,) = FeatureSchema([feature])
    by_name = {feature.name: rank} if isinstance(rank, Mapping) else rank
    (feature,) = FeatureSchema([feature]).resolve(
        by_name, dropout, adaptation.alpha, adaptation.scale
    )
    schema = FeatureSchema([*adaptation.schema, feature])
    for part in adaptation.users:
        check_names(part, schema)
    paths = places_among(adaptation.layers, feature)
    chosen = {path: adaptation.layers[path] for path in paths}
    ranks = find_layer_ranks(FeatureSchema([feature]), chosen, {}, layer_ranks)
    own = ranks.get(feature.name, {})
    for path, layer in chosen.items():
        check_ranks(layer, [feature.with_rank(own.get(path))])
    seed = adaptation.seed if seed is None else checked_seed(seed)
    add_feature_tables(adaptation, schema, feature, seed, paths, own)
    return model
