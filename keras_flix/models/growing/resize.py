"""Changes of the tables of an adapted model, and of all that holds its schema."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_flix import _compat
from keras_flix.features.feature import Feature
from keras_flix.features.schema import FeatureSchema
from keras_flix.layers.checks import check_ranks
from keras_flix.layers.factors import weighted_sum
from keras_flix.layers.low_rank_layer import LowRankLayer
from keras_flix.models.adapted.adaptation import Adaptation, Choice, adaptation_of
from keras_flix.models.adapted.devices import check_devices, creation_scope
from keras_flix.models.adapted.frozen_values import choose
from keras_flix.models.enable import add_dropout_seed
from keras_flix.models.growing.all_or_nothing import all_or_nothing
from keras_flix.models.growing.new_tables import fill_with_product
from keras_flix.models.growing.schema_changes import narrowed

Pair = tuple[np.ndarray, np.ndarray]


def changeable(model: Any, within_fit: bool = False) -> Adaptation:
    """What `enable_flix` did to a model whose tables can be changed now.

    Args:
        model: The model.
        within_fit: Whether that may be within `fit`, from a callback: what the batches
            on their way hold must mean the same after the change.
    """
    adaptation = adaptation_of(model)
    for part in adaptation.users:
        if _compat.is_running(part) and not within_fit:
            raise ValueError(
                "A model's features, and values that it has, must not change while "
                "Keras runs the model. Received: a call from within `fit`, such as "
                "from a callback. Call it before or after `fit`."
            )
        between_steps(part)
        check_devices(part)
    return adaptation


def between_steps(model: Any) -> None:
    """Raises unless no step of Keras' loops runs now; puts the state into the model."""
    if not _compat.is_running(model):
        return
    if not _compat.is_between_steps(model):
        raise ValueError(
            "A model that runs can be changed from a callback of its `fit` only, in "
            "the thread of `fit`, while nothing else runs it. Received: a call from "
            "elsewhere, such as a thread, a step or `predict`. Call it from "
            "`on_train_batch_end` or `on_epoch_end`, or after `fit`."
        )
    _compat.sync_state(model)


def check_fits(adaptation: Adaptation, feature: Feature) -> None:
    """Raises if a layer of a feature is too small for new ranks of it."""
    for layer in adaptation.layers_of(feature.name).values():
        if feature.name not in layer._tables.ranks:
            check_ranks(layer, [feature])


def set_schema(adaptation: Adaptation, schema: FeatureSchema, choice: Choice) -> None:
    """Makes all that holds a model's schema, and what trains, hold other ones."""
    for layer in adaptation.layers.values():
        layer._tables.schema = schema
    rates = adaptation.rates and adaptation.rates.narrowed(schema)
    for part in adaptation.users:
        part._adaptation.schema = schema
        part._adaptation.rates = rates
    choose(adaptation, choice)


def optimizers_of(
    adaptation: Adaptation, built: bool = True
) -> dict[int, tuple[Any, Any]]:
    """The optimizers of all that use the tables, with the model, by id.

    Only those that are `built`, or all.
    """
    pairs = [(getattr(part, "optimizer", None), part) for part in adaptation.users]
    found = [(o, part) for o, part in pairs if o is not None]
    return {id(o): (o, part) for o, part in found if o.built or not built}


@dataclasses.dataclass(frozen=True)
class Start:
    """What new values start as.

    Attributes:
        weights: The weights of known values by id; empty for a fresh start.
        copies: Whether they say to copy a value's tables, where ranks allow.
        seed: Seeds fresh tables, by layer and value.
    """

    weights: Mapping[int, float]
    copies: bool
    seed: int

    def initial(
        self,
        layer: LowRankLayer,
        key: str,
        old: Feature,
        pair: Pair,
        grown: Feature,
        row: int,
    ) -> Pair:
        """The tables of a new value in one layer.

        Args:
            layer: The layer.
            key: Its path.
            old: The feature as it is, with the ranks that it has in the layer.
            pair: Its tables there.
            grown: The feature with the new values, likewise.
            row: Which of its values.
        """
        a, b = pair
        rank, experts = grown.ranks[row], layer._tables.experts
        if self.copies:
            (source,) = self.weights
            if old.ranks[source] == rank:
                return a[source], b[source]
        name = f"{key}/{grown.name}/{grown.values[row]}"
        seed = (self.seed, name)
        start = layer.initial_tables((rank,), a.shape[1], b.shape[2], seed, experts)
        new_a, new_b = (part[0] for part in start)
        if self.weights:
            factors, others = weighted_sum(a, b, old.scales, self.weights)
            if not np.isfinite(factors).all() or not np.isfinite(others).all():
                raise ValueError(
                    "The values that `init` names must have finite adapter weights. "
                    f"Received: NaN or infinity in layer {key!r}. Load better ones, "
                    "or name other values."
                )
            factors = factors / grown.scales[row]
            for e in range(experts):
                # They stand side by side along the rank.
                product = factors[:, e::experts], others[e::experts]
                fill_with_product(new_a[:, e::experts], new_b[e::experts], product)
        return new_a, new_b


def initial_pairs(
    layer: LowRankLayer, key: str, grown: Feature, starts: Mapping[int, Start]
) -> list[Pair]:
    """The tables of new values in one layer.

    Args:
        layer: The layer.
        key: Its path.
        grown: The feature with the new values.
        starts: What they start as, by their row in it.
    """
    # Once, not for each: there may be very many values.
    old = layer._tables.feature(grown.name)
    grown = grown.with_rank(layer._tables.ranks.get(grown.name))
    a, b = map(_compat.to_host, layer._tables.variables[grown.name])
    return [
        start.initial(layer, key, old, (a, b), grown, row)
        for row, start in starts.items()
    ]


def resize(
    adaptation: Adaptation,
    schema: FeatureSchema,
    feature: Feature,
    rows: Sequence[int],
    added: Mapping[str, Sequence[Pair]],
) -> None:
    """Gives the tables of a feature their old `rows` and then new ones, by layer."""
    tables = adaptation.tables(feature.name)
    choice = narrowed(adaptation.trainable, feature)
    optimizers = optimizers_of(adaptation)
    for optimizer, _ in optimizers.values():
        _compat.check_growable(optimizer, [table.variable for table in tables])
    count = len(feature.values)
    values = []
    for table in tables:
        layer = adaptation.layers[table.layer]._tables
        own = feature.with_rank(layer.ranks.get(feature.name))
        width = max(own.ranks) * layer.experts
        old = _compat.to_host(table.variable)
        place = "ab".index(table.part)
        shape = (old.shape[1], width) if place == 0 else (width, old.shape[2])
        value = np.zeros((count, *shape), "float32")
        for row, pair in enumerate(added.get(table.layer, ()), start=len(rows)):
            m, n = pair[place].shape
            value[row, :m, :n] = pair[place]
        values.append(_compat.carried_rows(old, value, rows))
    with all_or_nothing(adaptation):
        with creation_scope(adaptation.parts[-1]):
            for table, value in zip(tables, values, strict=True):
                _compat.resize_variable(table.variable, value)
            for optimizer, _ in optimizers.values():
                _compat.regrow_optimizer(
                    optimizer, None, {id(table.variable): rows for table in tables}
                )
        set_schema(adaptation, schema, choice)
        more = feature.values[len(rows) :]
        adaptation.added.setdefault(feature.name, set()).update(more)
        for part in adaptation.users:
            _compat.track_torch_parameters([*_compat.flatten_layers(part), part])


def add_feature_tables(
    adaptation: Adaptation,
    schema: FeatureSchema,
    feature: Feature,
    seed: int,
    paths: Sequence[str],
    ranks: Mapping[str, int],
) -> None:
    """Gives layers the tables of one more feature, the last one of the schema.

    `ranks` are those of layers in which it has another one than its own.
    """
    optimizers = [
        (optimizer, part)
        for optimizer, part in optimizers_of(adaptation).values()
        if _compat.optimizer_knows(part, part.trainable_variables)
    ]
    for optimizer, _ in optimizers:
        _compat.check_growable(optimizer, [])
    with all_or_nothing(adaptation):
        with creation_scope(adaptation.parts[-1]):
            for path in paths:
                layer = adaptation.layers[path]
                if path in ranks:
                    own = {**layer._tables.ranks, feature.name: ranks[path]}
                    layer._tables.ranks = own
                layer.add_tables(feature, seed, path)
            if feature.dropout and adaptation.dropout_seed is None:
                add_dropout_seed(adaptation.users, adaptation.seed)
            for optimizer, part in optimizers:
                _compat.regrow_optimizer(optimizer, part.trainable_variables, {})
        set_schema(adaptation, schema, adaptation.trainable)
        for part in adaptation.users:
            _compat.track_torch_parameters([*_compat.flatten_layers(part), part])
