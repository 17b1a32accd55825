"""`enable_flix`: gives a model's layers low-rank updates per feature value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import keras_hub

from keras_flix import _compat
from keras_flix.features.schema import Dropouts, Features, FeatureSchema, Ranks
from keras_flix.layers import FlixDense, FlixEinsumDense
from keras_flix.layers.active_scope import carry_routing
from keras_flix.layers.checks import check_ranks
from keras_flix.layers.expert_kernel import ExpertKernel
from keras_flix.layers.low_rank_embedding import LowRankEmbedding
from keras_flix.layers.low_rank_layer import LowRankLayer
from keras_flix.layers.quantized import rounded_logits
from keras_flix.layers.row_orders import Orders
from keras_flix.layers.token_rows import TokenRows
from keras_flix.models.adapted.adaptation import Adaptation, Model
from keras_flix.models.adapted.default_features import DefaultFeatures
from keras_flix.models.adapted.devices import creation_scope
from keras_flix.models.adapted.model import routed_class
from keras_flix.models.adapted.own_state import warn_of_own_state
from keras_flix.models.adapted.thread_lock import Turns
from keras_flix.models.adapted.trained_base import mark_trained
from keras_flix.models.layer_ranks import ByFeature, LayerRanks, find_layer_ranks
from keras_flix.models.model_checks import check_stock, checked_seed, checked_walk
from keras_flix.models.multiplied import (
    chosen_experts,
    multiply_adapted,
    readers_of,
)
from keras_flix.models.places import Places, find_places
from keras_flix.models.stated_rows import Rows, orders_by_path, stated_orders
from keras_flix.models.targets import Placed
from keras_flix.models.trainable_tokens import Tokens, find_tokens
from keras_flix.models.trial import known_orders, try_out
from keras_flix.models.whole_layers import check_whole_or_rows, find_whole_layers

ADAPTED_CLASSES: dict[type, type[LowRankLayer]] = {
    keras.layers.EinsumDense: FlixEinsumDense,
    keras.layers.Dense: FlixDense,
}


def enable_flix(
    model: Model,
    features: Features,
    *,
    rank: Ranks = 4,
    alpha: float | None = None,
    scale: str = "rank",
    dropout: Dropouts = 0.0,
    targets: str | Sequence[str] | None = None,
    experts: str | None = None,
    expert_rank: ByFeature | None = None,
    layer_ranks: LayerRanks = None,
    seed: int | None = None,
    rows: Rows = None,
    train: Sequence[str] | None = None,
    trainable_tokens: Tokens = None,
) -> Model:
    """Gives every feature value a low-rank update of the model's layers.

    The model is changed in place and stays the same object; its layer names,
    variable paths and base variables stay too. Everything but the adapters is
    frozen, except what `train` selects and the head of a classification task: layers
    that train whole and go wherever the adapters go. `layer.trainable = True` lets
    more of them train later. (On the model, `True` only undoes `False`.)

    Afterwards, all entry points (`model(...)`, `fit`, `evaluate`, `predict`,
    `generate`, ...) expect one more entry per feature in the input dict: ids
    (`int32`, shape `(batch,)`, -1 is absent), strings (`None` is absent), or one
    scalar for the whole batch. Compile the model again if it has been trained before.

    Args:
        model: A KerasHub `Backbone` or `Task`, or any built `keras.Model`
            holding `EinsumDense` or `Dense` layers.
        features: A `FeatureSchema`, a list of `Feature`, or a dict from name
            to values.
        rank: Rank of a value's update: a number, a dict by feature
            (`{"task": 8, "language": 2}`), or by value
            (`{"language": {"en": 2, "*": 4}}`). A feature's own rank wins.
        alpha: The scale of an update is `alpha / rank`; `None` means 1. A
            feature's own wins.
        scale: `"rank"`, or `"sqrt"` for `alpha / sqrt(rank)` (rsLoRA, arXiv
            2312.03732): values of different ranks then weigh alike. A feature's own
            wins.
        dropout: Probability of dropping a feature from an example in
            training: a number or a `FeatureDropout`, or a dict of them by
            feature. A feature's own wins.
        targets: Which layers: `None` for the attention projections,
            `"all-linear"` (in a task, those of its backbone; never routers,
            gates and embeddings), or a list of layer names or of regexes that
            match a layer's whole path: also of an `Embedding` or `ReversibleEmbedding`,
            where they name it (`".*"` does not). In a language model that takes images
            or sound, the first two select layers of its text decoder only. A feature's
            own win: it then has adapter weights in those layers alone.
        experts: `"shared"` adapts the kernels of a mixture's experts, too, next to
            `targets`: all experts of a layer share a value's update of a kernel, so
            that it costs as much as that of one expert. `"each"` gives every expert
            an update of its own, which costs as many times more. Features with
            targets of their own have none there. Routers are never adapted with
            them. `None` leaves experts as they are.
        expert_rank: The rank in the kernels of experts: a number, or by feature.
            `None` is that of `rank`.
        layer_ranks: Ranks of layers that have others than `rank` says: by layer name
            or regex, as `targets`, a number, or a dict by feature, as
            `{"query": 8, r".*layer_[0-3]/.*key": {"task": 2}}`. It holds for all values
            of a feature, and its scale follows from it. A layer that two patterns
            match is refused.
        seed: Seeds initial adapter weights and feature dropout. `None` draws a seed
            that follows `keras.utils.set_random_seed`.
        rows: Which example each row of a target's input belongs to, by layer name or
            regex, where that cannot be found out: `"batch"` (one per example),
            `"repeat"` (as by `keras.ops.repeat(x, k, axis=0)`), `"tile"` (as by
            `keras.ops.concatenate([x, y], axis=0)`), `"shared"` (one for all), or a
            list of these; `None` if each call of the layer brings `features=`.
            KerasHub's own models are known. Any other one is tried with a few random
            batches, here or before its first batch, and refused if some rows are in
            no such order, or depend on several examples.
        train: Which layers train whole besides, in their own dtype: a list of layer
            names or regexes, as `targets`, with all that is inside of them. Of a
            layer that is a target, too, the kernel and bias that all values share
            train. `None`: the head of a `TextClassifier` or `ImageClassifier`, that
            is what it has on its backbone, where it is not frozen or quantized; `()`:
            nothing.
        trainable_tokens: Tokens whose embeddings train whole, for all values, such
            as those a tokenizer keeps unused: a list of ids, or of tokens by name. In
            an output head, too, tied to the embeddings or not.

    Returns:
        `model`.

    Raises:
        ValueError: If an argument or a target is not valid. The model is then
            left as it was.

    Example:

    >>> inputs = keras.Input((16,), name="x")
    >>> hidden = keras.layers.Dense(32, activation="relu", name="hidden")(inputs)
    >>> outputs = keras.layers.Dense(4, name="head")(hidden)
    >>> model = keras.Model({"x": inputs}, outputs)
    >>> model = enable_flix(
    ...     model, {"language": ["en", "sw"]}, rank=2, targets=["hidden"]
    ... )
    >>> batch = {"x": np.ones((3, 16)), "language": ["en", None, "sw"]}
    >>> tuple(model(batch).shape)
    (3, 4)
    """
    schema = FeatureSchema(features).resolve(rank, dropout, alpha, scale)
    walk = checked_walk(model, schema)
    kernels = chosen_experts(experts, walk)
    layers, places = find_places(model, schema, targets, walk, kernels)
    ranks = find_layer_ranks(schema, layers, places, layer_ranks, expert_rank)
    whole = find_whole_layers(model, train, walk)
    tokens = find_tokens(model, trainable_tokens, walk)
    check_whole_or_rows(whole, tokens, layers)
    return adapt_layers(
        model,
        schema,
        layers,
        alpha=alpha,
        scale=scale,
        seed=seed,
        walk=walk,
        rows=stated_orders(rows, layers),
        places=places,
        ranks=ranks,
        whole=whole,
        tokens=tokens,
    )


def adapt_layers(
    model: Model,
    schema: FeatureSchema,
    layers: dict[str, Any],
    *,
    alpha: float | None,
    scale: str = "rank",
    seed: int | None,
    walk: Sequence[Placed] | None = None,
    rows: Mapping[str, Orders] | None = None,
    places: Places | None = None,
    ranks: Mapping[str, Mapping[str, int]] | None = None,
    whole: Sequence[Any] = (),
    tokens: Mapping[Any, Sequence[int]] | None = None,
) -> Model:
    """`enable_flix` for layers that are known, with a schema that is resolved.

    `walk` is what `checked_walk` gave, if it has run; `rows` the orders that are
    stated, by path; `places` where features are, if not in all layers; `ranks` those
    of layers with some of their own, by feature and path; `whole` the layers that train
    besides; `tokens` embeddings, with the tokens whose rows do.
    """
    schema = schema.resolve(alpha=alpha, scale=scale)
    seed = checked_seed(seed)
    walk = checked_walk(model, schema) if walk is None else walk
    inner = [layer for layer, _ in walk]
    names = {
        key: [n for n in schema.names if key in (places or {}).get(n, layers)]
        for key in layers
    }
    own_ranks = {
        key: {n: by_path[key] for n, by_path in (ranks or {}).items() if key in by_path}
        for key in layers
    }
    for key, layer in layers.items():
        check_stock(layer)
        own = own_ranks[key]
        check_ranks(layer, [schema[n].with_rank(own.get(n)) for n in names[key]])
    known = known_orders(model, schema, walk)
    orders = {**orders_by_path(layers, known, schema), **(rows or {})}
    readers = readers_of(layers, walk)
    verified = try_out(model, layers, orders, readers)
    flags = list(_compat.flags_of([model, *inner]))
    frozen = [one for one in flags if not _compat.is_on(one)]
    besides = list(_compat.flags_of(whole))

    with creation_scope(model):
        for key, layer in layers.items():
            if isinstance(layer, ExpertKernel):
                layer.adapt(schema, seed, key, names[key], own_ranks[key])
            else:
                adapted: Any = ADAPTED_CLASSES.get(type(layer), LowRankEmbedding)
                adapted.from_layer(
                    layer,
                    schema,
                    seed=seed,
                    key=key,
                    names=names[key],
                    ranks=own_ranks[key],
                )
            layer.row_orders = orders[key]
        rows_of = [TokenRows.from_layer(*pair) for pair in (tokens or {}).items()]
    multiply_adapted(layers, readers)
    parts = _parts(model)
    tables = [
        variable
        for layer in layers.values()
        for variable in layer._tables.named_variables.values()
    ]
    tables += [one for layer in rows_of for one in layer.adapter_flags()]
    _compat.switch(flags, False)
    holders = [layer.holder() for layer in layers.values()]
    _compat.switch([*parts, *holders, *tables, *besides], True)
    turns = Turns()
    added: dict[str, set[Any]] = {}
    defaults = DefaultFeatures()
    for part in parts:
        adaptation = Adaptation(
            schema=schema,
            alpha=alpha,
            scale=scale,
            layers=layers,
            readers=readers,
            base_class=type(part),
            parts=parts,
            seed=seed,
            unwraps=not _compat.takes_dict(part),
            input_keys=_compat.input_keys(part),
            verified=verified,
            turns=turns,
            rows_known=None not in orders.values(),
            rows=dict(rows or {}),
            frozen_before=frozen,
            token_rows=rows_of,
            added=added,
            defaults=defaults,
        )
        if isinstance(part, keras_hub.models.Task):
            adaptation.no_gradient = rounded_logits(inner)
        route(part, adaptation)
    if any(feature.dropout for feature in schema):
        with creation_scope(model):
            add_dropout_seed(parts, seed)
    _compat.wrap_rematerialization(inner, carry_routing)
    _compat.track_torch_parameters([*inner, model])
    warn_of_own_state(model, inner)
    if besides:
        # However it comes to its weights, and whenever it is frozen.
        mark_trained(model)
    return model


def _parts(model: keras.Model) -> list[keras.Model]:
    """The model and its backbone, which people also call on its own."""
    backbone = getattr(model, "backbone", None)
    if isinstance(model, keras_hub.models.Task) and isinstance(backbone, keras.Model):
        return [backbone, model]
    return [model]


def add_dropout_seed(users: list[Any], seed: int) -> None:
    """Gives all models that take the features what drives their dropout."""
    dropout_seed = keras.random.SeedGenerator(seed)
    for user in users:
        user._adaptation.dropout_seed = dropout_seed
    hold_dropout_seed(users[0])
    for user in users:
        if user._adaptation.shares:
            hold_dropout_seed(user)


def hold_dropout_seed(part: Any) -> None:
    """Puts the state of the dropout among the variables of a model that draws it.

    A task has that of its backbone.
    """
    with _compat.unlocked(part):
        part._flix_dropout_seed = part._adaptation.dropout_seed


def route(model: keras.Model, adaptation: Adaptation) -> None:
    _compat.change_class(model, routed_class(type(model)))  # type: ignore[arg-type]
    with _compat.unlocked(model):
        adaptation.takes_training = _compat.accept_training(model)
        # A namespace, which Keras does not look into: the layers are the
        # model's already, and tracking them twice would rename their paths.
        object.__setattr__(model, "_adaptation", adaptation)
    _compat.reset_parameters(model)
