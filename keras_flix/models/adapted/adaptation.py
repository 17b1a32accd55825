"""`Adaptation`: what `enable_flix` did to a model, for all that works on it."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from keras_flix.features.feature import Feature, Value
from keras_flix.features.schema import FeatureSchema
from keras_flix.layers.row_orders import Orders

if TYPE_CHECKING:
    import keras

    from keras_flix.layers.low_rank_kernel import LowRankKernel
    from keras_flix.layers.tables import Tables
    from keras_flix.layers.token_rows import TokenRows
    from keras_flix.models.adapted.cut_counts import CutTexts
    from keras_flix.models.adapted.default_features import DefaultFeatures
    from keras_flix.models.adapted.learning_rates import Rates
    from keras_flix.models.adapted.thread_lock import Turns

Model = TypeVar("Model", bound="keras.Model")
"""Functions that change a model in place, or copy it, keep its class."""

Choice = Mapping[str, Sequence[Value]] | None
"""By feature, the values that train, the others being frozen; `None` for all."""


class Table(NamedTuple):
    """One table of an adapted model.

    Attributes:
        layer: The path of its layer.
        feature: The name of its feature.
        part: `"a"` or `"b"`.
        variable: `(values, d_in, rank)` or `(values, rank, d_out)`.
    """

    layer: str
    feature: str
    part: str
    variable: keras.Variable

    @property
    def name(self) -> str:
        """What the table is called in an adapter file."""
        return f"{self.layer}/flix_{self.feature}_{self.part}"


@dataclasses.dataclass
class Adaptation:
    """What `enable_flix` did to a model.

    Attributes:
        schema: The features, with ranks, dropout rates and scales resolved.
        alpha: As given to `enable_flix`, for features that are added later.
        scale: Likewise.
        layers: The adapted layers, and kernels of experts, by path.
        base_class: The model's class before.
        readers: The layers that multiply by adapted kernels themselves, by the path of
            the latter.
        parts: The models that route: the adapted one, and a task's backbone.
        seed: As given to `enable_flix`, or the one it drew.
        dropout_seed: Drives feature dropout; `None` if there is none.
        takes_training: Whether the model's own `call` takes `training`.
        unwraps: Whether the model's own input is not a dict.
        input_keys: The keys of the model's own input dict, if they are known.
        verified: Whether every adapted layer is known to run.
        called: Whether the model was called since, all its parameters being whole.
        disabled: Whether the adapters are off.
        no_gradient: Why the model cannot be trained; empty if it can.
        turns: The threads that use the model or its backbone.
        defaults: What is stated for calls that bring no features; the same for the
            model, its backbone and those that share its features.
        rows_known: Whether the rows of every adapted layer are known, of which
            examples they are.
        rows: The orders of the rows that the user stated, by path of the layer.
        token_rows: Embeddings of which some rows train.
        frozen_before: The layers and variables that were frozen before; the same list
            for the model and its backbone.
        added: By feature, the values that were added later; shared likewise.
        rates: How the tables learn, if `set_learning_rates` was told.
        said: What users were told once.
        sharing: Other models that `share_features` lets take the features.
        shares: Whether this is of such a model.
        changes: How often values, what trains, or rates were changed.
        cut_texts: Where a running `fit` or `evaluate` counts texts that are cut.
    """

    schema: FeatureSchema
    alpha: float | None
    layers: dict[str, LowRankKernel]
    base_class: Any
    turns: Turns
    defaults: DefaultFeatures
    readers: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    parts: list[Any] = dataclasses.field(default_factory=list)
    seed: int = 0
    scale: str = "rank"
    dropout_seed: keras.random.SeedGenerator | None = None
    takes_training: bool = True
    unwraps: bool = False
    input_keys: list[str] | None = None
    verified: bool = False
    called: bool = False
    disabled: bool = False
    no_gradient: str = ""
    rows_known: bool = False
    rows: dict[str, Orders] = dataclasses.field(default_factory=dict)
    token_rows: list[TokenRows] = dataclasses.field(default_factory=list)
    frozen_before: list[Any] = dataclasses.field(default_factory=list)
    added: dict[str, set[Value]] = dataclasses.field(default_factory=dict)
    rates: Rates | None = None
    said: set[str] = dataclasses.field(default_factory=set)
    sharing: list[weakref.ref[Any]] = dataclasses.field(default_factory=list)
    shares: bool = False
    changes: int = 0
    cut_texts: CutTexts | None = None

    @property
    def adapted_layers(self) -> list[Any]:
        """All layers that are of another class than before, each once."""
        holders = [layer.holder() for layer in self.layers.values()]
        return list({id(x): x for x in [*holders, *self.readers.values()]}.values())

    @property
    def users(self) -> list[Any]:
        """All models that take the features: the parts, and those that share them."""
        others = [found for one in self.sharing if (found := one()) is not None]
        return [*self.parts, *others]

    @property
    def trainable(self) -> Choice:
        """Which values train, see `set_trainable`."""
        return self._any_tables.trainable

    @property
    def trained(self) -> Mapping[str, np.ndarray]:
        """Which values train, bool `(values,)`, of features where some do not."""
        return self._any_tables.trained()

    @property
    def _any_tables(self) -> Tables:
        # The choice is the same in all layers.
        return next(iter(self.layers.values()))._tables

    def layers_of(self, feature: str) -> dict[str, LowRankKernel]:
        """The layers that have tables of a feature, by path."""
        return {
            path: layer
            for path, layer in self.layers.items()
            if feature in layer._tables.variables
        }

    @property
    def places(self) -> dict[str, list[str]]:
        """By feature, the paths of its layers; those that are in all are not named."""
        found = {name: list(self.layers_of(name)) for name in self.schema.names}
        return {n: paths for n, paths in found.items() if len(paths) < len(self.layers)}

    @property
    def ranks(self) -> dict[str, dict[str, int]]:
        """By feature, the rank of all its values in layers with one of their own."""
        found: dict[str, dict[str, int]] = {}
        for path, layer in self.layers.items():
            for name, rank in layer._tables.ranks.items():
                found.setdefault(name, {})[path] = rank
        return found

    @property
    def experts(self) -> dict[str, int]:
        """How many experts have adapters of their own, by path of their kernel."""
        counts = {p: layer._tables.experts for p, layer in self.layers.items()}
        return {path: count for path, count in counts.items() if count > 1}

    def feature_in(self, path: str, feature: str) -> Feature:
        """A feature with the ranks that it has in a layer."""
        return self.layers[path]._tables.feature(feature)

    def tables(self, feature: str | None = None) -> list[Table]:
        """The tables of all layers, or those of one feature, layer by layer."""
        found = []
        for path, layer in self.layers.items():
            for name, pair in layer._tables.variables.items():
                if feature in (None, name):
                    for part, variable in zip("ab", pair):
                        found.append(Table(path, name, part, variable))
        return found


def is_adapted(model: Any) -> bool:
    """Whether `enable_flix` adapted this model."""
    return isinstance(getattr(model, "_adaptation", None), Adaptation)


def not_adapted(model: Any) -> str:
    """The error for a model that must be adapted."""
    return (
        "The model must have been adapted by `enable_flix`. Received: a "
        f"{type(model).__name__} without adapters. Call `enable_flix(model, ...)` "
        "first."
    )


def adaptation_of(model: Any, sharing: bool = False) -> Adaptation:
    """What `enable_flix` did to a model; raises if it did nothing.

    Args:
        model: An adapted model.
        sharing: Whether it may be one that `share_features` lets take the features.
    """
    if not is_adapted(model):
        raise ValueError(not_adapted(model))
    if model._adaptation.shares and not sharing:
        raise ValueError(only_shares(model))
    return model._adaptation


def only_shares(model: Any) -> str:
    """The error for what only the model that `enable_flix` adapted can do."""
    return (
        "The model must be the one that `enable_flix` adapted, which holds the "
        f"adapters. Received: a {type(model).__name__} that takes its features by "
        "`share_features`. Pass that model instead; weights of this one's own are "
        "saved by its `save_weights`."
    )
