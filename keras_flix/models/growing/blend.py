"""`fit_blend`: a new value as a blend of known ones, learned from a few examples."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import keras_hub
import numpy as np
from keras import ops

from keras_flix import _compat
from keras_flix._utils.displayed import Displayed, Rows, cut, some
from keras_flix.features.columns import as_columns, is_table, stacked_numbers
from keras_flix.features.encoding import ABSENT
from keras_flix.features.feature import Feature, Value
from keras_flix.features.input_entries import split_entries
from keras_flix.features.schema import FeatureSchema
from keras_flix.features.tensor_ids import Tensor
from keras_flix.layers.active_scope import Routing, routing_scope
from keras_flix.layers.low_rank_update import ActiveValues
from keras_flix.models.adapted.adaptation import Adaptation, adaptation_of
from keras_flix.models.adapted.data_sources import to_numpy
from keras_flix.models.adapted.mixture_data import parts_of
from keras_flix.models.growing.add_remove import add_values
from keras_flix.models.growing.resize import check_fits
from keras_flix.models.growing.schema_changes import (
    checked_feature,
    checked_init,
    with_values,
)


@dataclasses.dataclass(frozen=True, repr=False)
class Blend(Displayed):
    """What `fit_blend` learned.

    Attributes:
        feature: The feature.
        value: The new value.
        weights: Weight of each known value. As an entry of the model's input,
            `{feature: weights}` is the blend itself.
        losses: The mean loss of each epoch.
        kept: What share of the blend's squared norm the new value's update holds,
            whose rank is lower than that of the blend: 1 is all of it.
    """

    feature: str
    value: Value
    weights: dict[Value, float]
    losses: list[float]
    kept: float

    def _line(self) -> str:
        return (
            f"Blend({self.feature} {cut(repr(self.value))} of "
            f"{some(self._largest_first())}, {self.kept:.0%} kept)"
        )

    def _tables(self) -> Iterable[tuple[str, Rows]]:
        rows = [[v, f"{self.weights[v]:.3g}"] for v in self._largest_first()]
        return [("", [[self.feature, "weight"], *rows])]

    def _largest_first(self) -> list[Value]:
        return sorted(self.weights, key=lambda v: -abs(self.weights[v]))


def fit_blend(
    model: keras.Model,
    feature: str,
    value: Value,
    data: Any,
    *,
    init: Mapping[Value, float] | None = None,
    rank: int | None = None,
    epochs: int = 30,
    batch_size: int = 16,
    learning_rate: float = 0.05,
    verbose: Any = 0,
) -> Blend:
    """Adds a value that is a blend of known ones, with weights learned from data.

    For a value with a handful of examples, such as a new language: instead of an
    update of its own, only the weights of the known values' updates are trained, one
    number each. Nothing else moves. The blend is then added as a new value by
    `add_values(model, feature, [value], init=weights)`.

    Each example of a batch holds the updates of all blended values at once: name the
    likely ones in `init` where a feature has hundreds.

    Args:
        model: A trained model adapted by `enable_flix`, compiled with a loss.
        feature: The feature, such as `"language"`.
        value: The new value, such as `"rw"`.
        data: What `fit` takes as `x`, such as `{"prompts": [...], "responses":
            [...], "task": [...]}` or a `Mixture`, or a tuple `(x, y)` or `(x, y,
            sample_weight)`, as arrays or lists. Without an entry for `feature`.
        init: The weights to start from, by value; others are left out. By default
            all known values count equally, and sum to 1.
        rank: Rank of the new value's update, see `add_values`. The higher, the closer
            it is to the blend.
        epochs: How often all examples are seen.
        batch_size: Examples per step.
        learning_rate: Of Adam, for the weights.
        verbose: As in `fit`.

    Returns:
        A `Blend`.

    Raises:
        ValueError: If an argument is not valid, or the known values have no effect
            that could be blended. The model is then left as it was.

    Example:

    >>> inputs = keras.Input((8,), name="x")
    >>> model = keras.Model({"x": inputs}, keras.layers.Dense(4)(inputs))
    >>> model = enable_flix(model, {"language": ["en", "sw"]}, targets="all-linear")
    >>> model.compile(optimizer="adam", loss="mse")
    >>> x, y = np.ones((6, 8), "float32"), np.ones((6, 4), "float32")
    >>> history = model.fit({"x": x, "language": ["en", "sw"] * 3}, y, verbose=0)
    >>> blend = fit_blend(model, "language", "rw", ({"x": x}, y), epochs=2)
    >>> sorted(blend.weights)
    ['en', 'sw']
    >>> tuple(model({"x": x, "language": "rw"}).shape)
    (6, 4)
    """
    adaptation = adaptation_of(model)
    own = checked_feature(adaptation.schema, feature)
    weights = checked_init(own, init) or dict.fromkeys(
        range(len(own.values)), 1.0 / len(own.values)
    )
    grown = with_values(own, [value], rank, None)
    check_fits(adaptation, grown)
    _check_trainable(model, adaptation)
    x, y, sample_weight = _prepared(model, own, _read(data, adaptation.schema))
    with _frozen(model):
        blended = _Blended(model, own, weights)
        blended.compile(
            optimizer=keras.optimizers.Adam(learning_rate),
            loss=model.loss,
            loss_weights=_compat.loss_weights(model),
        )
        with _compat.variables_survive(blended):
            history = blended.fit(
                x,
                y,
                sample_weight=sample_weight,
                batch_size=batch_size,
                epochs=epochs,
                verbose=verbose,
            )
        found = ops.convert_to_numpy(blended.blend)
    start = np.asarray(list(weights.values()), "float32")
    if not np.isfinite(found).all() or np.array_equal(found, start):
        raise ValueError(
            f"The weights of {feature!r} must get a finite gradient that is not zero. "
            f"Received: weights {found.tolist()} after training. Train the known "
            "values first, or lower `learning_rate`."
        )
    learned = {own.values[row]: float(w) for row, w in zip(weights, found)}
    add_values(model, feature, [value], init=learned, rank=rank)
    return Blend(
        feature,
        value,
        learned,
        history.history["loss"],
        _kept(adaptation, own, learned),
    )


class _Blended(keras.Model):
    """A model with one value more, whose only trained variable are its weights."""

    def __init__(
        self, inner: keras.Model, feature: Feature, weights: Mapping[int, float]
    ) -> None:
        super().__init__(name="blended")
        self.inner = inner
        self.blended = feature.name
        self.rows = tuple(weights)
        self.scales = tuple(feature.scales[row] for row in weights)
        self.blend = self.add_weight(
            name="blend", shape=(len(weights),), dtype="float32"
        )
        self.blend.assign(np.asarray(list(weights.values()), "float32"))

    def call(self, inputs: Any) -> Tensor:
        schema = adaptation_of(self.inner).schema
        own, entries = split_entries(inputs, schema)
        routing = Routing.from_ids(schema, schema.by_name(entries))
        assert routing.active is not None
        # Of the feature itself, the inputs have absent ids: one for every example.
        shape = (ops.shape(routing.active[self.blended].rows)[0], len(self.rows))
        blend = ActiveValues(
            rows=ops.broadcast_to(np.asarray(self.rows, "int32"), shape),
            present=ops.ones((*shape, 1), "bool"),
            filler=ops.zeros((*shape, 1)),
            weight=ops.broadcast_to(
                ops.multiply(self.blend, np.asarray(self.scales, "float32"))[:, None],
                (*shape, 1),
            ),
        )
        active = {**routing.active, self.blended: blend}
        # Feature dropout would only blur what few examples say: no training=True.
        with routing_scope(Routing(schema, active)):
            return self.inner(own, training=False)


@contextlib.contextmanager
def _frozen(model: keras.Model) -> Iterator[None]:
    """Lets no variable of a model train within the block."""
    trained = list(model.trainable_variables)
    for variable in trained:
        variable.trainable = False
    try:
        yield
    finally:
        for variable in trained:
            variable.trainable = True


def _check_trainable(model: keras.Model, adaptation: Adaptation) -> None:
    if adaptation.no_gradient:
        raise ValueError(adaptation.no_gradient)
    if not getattr(model, "loss", None):
        raise ValueError(
            "The model must be compiled with a loss. Received: a "
            f"{type(model).__name__} without one. Call `model.compile(...)`."
        )


def _read(data: Any, schema: FeatureSchema) -> tuple[Any, ...]:
    """The data as a tuple, with a table as a dict of columns."""
    data = parts_of(data, {})
    parts = data if isinstance(data, (tuple, list)) and not is_table(data) else (data,)
    return as_columns(parts[0], schema.of_strings), *parts[1:]


def _prepared(model: Any, feature: Feature, data: Any) -> tuple[Any, Any, Any]:
    """The data as arrays, preprocessed, with absent ids of the feature."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    if not isinstance(x, Mapping) or {feature.name, feature.ids_key} & set(x):
        raise ValueError(
            "`data` must be a dict of inputs, or a tuple that starts with one, "
            f"without an entry {feature.name!r}, which is what is learned. Received: "
            f"{sorted(x) if isinstance(x, Mapping) else type(x).__name__}. Pass such "
            'as {"prompts": [...], "responses": [...], ...}.'
        )
    x = {**x, feature.name: ABSENT}
    if isinstance(model, keras_hub.models.Task):
        batch = model._preprocess_batch((x, y, sample_weight))
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
    else:
        x, y, sample_weight = (
            model._encode_all(x),
            *map(stacked_numbers, (y, sample_weight)),
        )
    if y is None:
        raise ValueError(
            "`data` must hold what the model is to answer. Received: no responses and "
            'no `y`. Add "responses", or pass (x, y).'
        )
    return to_numpy(x), to_numpy(y), to_numpy(sample_weight)


def _kept(
    adaptation: Adaptation, feature: Feature, learned: Mapping[Value, float]
) -> float:
    weights = np.zeros(len(feature.values) + 1)
    for value, weight in learned.items():
        weights[feature.id_of(value)] = weight
    lost = total = 0.0
    for layer in adaptation.layers_of(feature.name).values():
        products = layer._tables.factors(feature.name).products()
        total += weights @ products @ weights
        rest = weights - np.eye(len(weights))[-1]
        lost += rest @ products @ rest
    return float(1 - lost / total) if total else 1.0
