"""`save_adapters` and `load_adapters`: a model's adapters and its file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_flix import _compat
from keras_flix._utils.shapes import unlike
from keras_flix.files.adapter_file import (
    Adapters,
    checked_path,
    read_adapters,
    write_adapters,
)
from keras_flix.files.counted_names import named_as_in
from keras_flix.files.fingerprint import BaseFingerprint
from keras_flix.files.same_features import check_layer_ranks, check_schema
from keras_flix.files.stand_ins import table_names
from keras_flix.files.weight_digests import fingerprint_without
from keras_flix.layers.checks import check_backend, matrix_shape
from keras_flix.layers.expert_kernel import ExpertKernel
from keras_flix.layers.row_orders import as_orders
from keras_flix.layers.token_rows import names_of_rows
from keras_flix.models.adapted.adaptation import Model, adaptation_of, is_adapted
from keras_flix.models.adapted.frozen_values import guard_optimizer
from keras_flix.models.adapted.plain_view import stated_rows, token_ids
from keras_flix.models.adapted.trained_base import (
    base_variables,
    let_train,
    token_variables,
    trained_base,
)
from keras_flix.models.enable import adapt_layers
from keras_flix.models.growing.resize import between_steps
from keras_flix.models.multiplied import expert_kernels
from keras_flix.models.targets import keyed_layers
from keras_flix.models.trainable_tokens import placed_tokens


def save_adapters(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Saves the adapters of a model.

    The file holds the adapter weights by the path of their layer, the schema, a
    fingerprint of the base model, which is not in it itself, and a digest of all
    that, by which damage is noticed. The same file loads on every backend.

    Where layouts split a model across processes of JAX, all of them must call this, and
    the first one writes. To load such a model's adapters, all must reach the file.
    What was let train besides the adapters since `enable_flix`, such as a head by
    `layer.trainable = True`, is in the file too, in float32.

    Args:
        model: A model adapted by `enable_flix`.
        path: A file name that ends in `.flix.safetensors`. An existing file is
            replaced only once the new one is complete. A process that is killed
            before may leave a hidden file beside it, `.<random>.tmp.<name>`.
    """
    adaptation_of(model)
    path = checked_path(path)
    adapters = adapters_of(model)
    _compat.written_once(
        lambda: write_adapters(adapters, path), _compat.is_split(model.variables)
    )


def load_adapters(
    model: Model, path: str | os.PathLike[str], *, check_base: bool = True
) -> Model:
    """Loads adapters into a model.

    Args:
        model: An adapted model, whose schema and layers must be those of the
            file; or a plain one, which is then adapted as the file says, with
            the schema's dropout rates. It must have the weights that trained besides
            the adapters, such as a head; in a plain model, these train on.
        path: A file that `save_adapters` wrote; or where one is on a hub, such as
            `"hf://owner/name"`, `"hf://owner/name@revision/file.flix.safetensors"`
            or `"kaggle://owner/model/framework/variation"` (extra `hub`).
        check_base: Whether to compare the model's base with that which the adapters
            were trained on: the variables and settings that both have, by
            `base_fingerprint`. Files of 0.1 have no settings, or no fingerprint.

    Returns:
        `model`, changed in place.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not such a file, is damaged, or does not fit the
            model. The model is then left as it was. `update_from` takes the values of
            a file that has others, or fewer, than the model.
    """
    check_backend()
    between_steps(model)
    layers: dict[str, Any] = {}
    embeddings: dict[Any, list[int]] = {}

    def check(found: Adapters) -> None:
        found = named_as_in(model, found)
        if is_adapted(model):
            adaptation = adaptation_of(model)
            check_schema(adaptation.schema, found.schema, found.source)
            check_layer_ranks(adaptation, found)
            expected = _shapes(_adapter_variables(model))
            _check_tables(expected, found)
        else:
            layers.update(_check_layers(model, found))
        embeddings.update(_check_tokens(model, found))
        _check_trained(model, found, embeddings)
        if check_base and found.base is not None:
            own = fingerprint_without(model, found.trained)
            check_same_base(own, found.base, found.source)

    # Before the tables are read: a file may claim to hold any number of bytes.
    adapters = named_as_in(model, read_adapters(path, check))
    plain = not is_adapted(model)
    if plain:
        adapt_layers(
            model,
            adapters.schema,
            layers,
            alpha=adapters.alpha,
            scale=adapters.scale,
            seed=0,
            rows={p: as_orders(o) for p, o in adapters.rows.items() if p in layers},
            places=adapters.places,
            ranks=adapters.ranks,
            tokens=embeddings,
        )
    for name, variable in token_variables(model).items():
        variable.assign(adapters.trained[name])
    for name, layer, variable in base_variables(model):
        if name in adapters.trained:
            variable.assign(adapters.trained[name])
            let_train(layer, variable, on=plain)
    for name, variable in _adapter_variables(model).items():
        variable.assign(adapters.tables[name])
    # Averages of frozen values are what the weights now are.
    guard_optimizer(model)
    return model


def adapters_of(model: keras.Model) -> Adapters:
    """The adapters of a model, as they would be in its file."""
    if _compat.is_running(model) and _compat.is_between_steps(model):
        # JAX's loops hold the weights themselves.
        _compat.sync_state(model)
    adaptation = adaptation_of(model)
    trained = trained_base(model) | token_variables(model)
    return Adapters(
        source=f"the {type(model).__name__} {model.name!r}",
        schema=adaptation.schema,
        alpha=adaptation.alpha,
        scale=adaptation.scale,
        layers=list(adaptation.layers),
        places=adaptation.places,
        ranks=adaptation.ranks,
        experts=adaptation.experts,
        tables={
            name: np.ascontiguousarray(_compat.to_host(variable))
            for name, variable in _adapter_variables(model).items()
        },
        rows=stated_rows(adaptation),
        base=fingerprint_without(model, trained),
        trained={
            name: np.array(_compat.to_host(variable), "float32", order="C")
            for name, variable in trained.items()
        },
        tokens=token_ids(adaptation),
    )


def check_same_base(own: BaseFingerprint, saved: BaseFingerprint, source: str) -> None:
    """Raises if a model's base is not that of adapters; `source` names these."""
    settings = own.other_settings(saved)
    if settings:
        raise ValueError(
            "Adapters must be loaded into a base model that computes what the one does "
            f"that they were trained on. Received: {source!r}, from a base with other "
            f"settings than the model's: {'; '.join(settings[:3])}"
            f"{'; ...' * (len(settings) > 3)}. Make the base as it was, or pass "
            "check_base=False to go without this check."
        )
    different = own.differences(saved)
    if different:
        shared = len(own.variables.keys() & saved.variables.keys())
        names = ", ".join(map(repr, different[:3])) + ", ..." * (len(different) > 3)
        remedy = (
            "Load the right base, or pass check_base=False to go without this check."
        )
        if 2 * len(different) < shared:
            # Such as a head that trained with adapters which 0.1 saved.
            remedy = (
                "Load the right base. If these trained along, save the adapters again "
                "from the model that was trained: the file then holds them. "
                "check_base=False goes without this check, with the model's own."
            )
        raise ValueError(
            "Adapters must be loaded into the base model that they were trained "
            f"on. Received: {source!r}, from a base that differs from the model in "
            f"{len(different)} of the {shared} variables that both have: {names}. "
            f"{remedy}"
        )


def _check_tokens(model: keras.Model, adapters: Adapters) -> dict[Any, list[int]]:
    """Raises if an adapted model trains other tokens than those of a file.

    Returns:
        The embedding that a plain model has for them, with their ids.
    """
    saved = {path: list(ids) for path, ids in adapters.tokens.items()}
    if not is_adapted(model):
        return placed_tokens(model, saved, repr(adapters.source))
    own = token_ids(adaptation_of(model))
    if own != saved:
        raise ValueError(
            "The tokens that train in an adapter file must be those of the model. "
            f"Expected: {own or 'none'}. Received: {saved or 'none'} in "
            f"{adapters.source!r}. Load it into a plain model, or adapt the model with "
            "the same `trainable_tokens`."
        )
    return {}


def _check_trained(
    model: keras.Model, adapters: Adapters, embeddings: Mapping[Any, Sequence[int]]
) -> None:
    """Raises if a model has no place for what trained besides the adapters."""
    own = {one.name: tuple(one.variable.shape) for one in base_variables(model)}
    rows = {name: tuple(v.shape) for name, v in token_variables(model).items()}
    for layer, ids in embeddings.items():
        rows |= {name: (len(ids), layer.output_dim) for name in names_of_rows(layer)}
    own |= rows
    for name in rows:
        if name not in adapters.trained:
            raise ValueError(
                "The rows of tokens that train must be in an adapter file. Expected: "
                f"shape {rows[name]} at {name!r}. Received: none in "
                f"{adapters.source!r}. Save it again, from the same base model."
            )
    for name, value in adapters.trained.items():
        if own.get(name) != value.shape:
            raise ValueError(
                "What trained besides the adapters must be in the model. At "
                f"{name!r}, expected: shape {own.get(name, 'none')}. Received: "
                f"{value.shape} in {adapters.source!r}. Make the model as the one that "
                "was trained: a task with its head, of as many classes."
            )


def _adapter_variables(model: keras.Model) -> dict[str, keras.Variable]:
    return {table.name: table.variable for table in adaptation_of(model).tables()}


def _shapes(tables: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(table.shape) for name, table in tables.items()}


def _check_tables(expected: dict[str, tuple[int, ...]], adapters: Adapters) -> None:
    for name, own, found in unlike(expected, _shapes(adapters.tables)):
        raise ValueError(
            "The adapter weights of a file must fit those of the model. At "
            f"{name!r}, expected: shape {own}. Received: {found} in "
            f"{adapters.source!r}. Use the base model and the targets it was trained "
            "with."
        )


def _check_layers(model: keras.Model, adapters: Adapters) -> dict[str, Any]:
    """Compares a file with the plain model it is about to adapt.

    Returns:
        The layers to adapt, by path.
    """
    by_path: dict[str, Any] = dict(keyed_layers(model))
    by_path |= expert_kernels(_compat.layers_with_parents(model))
    expected: dict[str, tuple[int, ...]] = {}
    for name in adapters.layers:
        if name not in by_path:
            raise ValueError(
                "The layers of an adapter file must be in the model. Received: "
                f"layer {name!r} in {adapters.source!r}; the model's layers look like "
                f"{list(by_path)[:3]}. Use the base model it was trained with. Keras "
                "counts up the names of layers that have none of their own, such as "
                "'dense_1': give them some."
            )
        kernel = by_path[name]
        experts = adapters.experts.get(name, 1)
        _check_experts(name, kernel, experts, adapters.source)
        d_in, d_out = matrix_shape(kernel)
        for feature in adapters.schema:
            if name not in adapters.layers_of(feature.name):
                continue
            own = adapters.feature_in(name, feature.name)
            count, rank = len(own.values), max(own.ranks) * experts
            shapes = (count, d_in, rank), (count, rank, d_out)
            expected |= zip(table_names(name, feature.name), shapes)
    _check_tables(expected, adapters)
    return {name: by_path[name] for name in adapters.layers}


def _check_experts(path: str, kernel: Any, experts: int, source: str) -> None:
    """Has each expert of a kernel adapters of its own, if a file says so."""
    if experts > 1 and isinstance(kernel, ExpertKernel):
        kernel.each = True
    own = kernel.own_experts if isinstance(kernel, ExpertKernel) else 1
    if own != experts:
        raise ValueError(
            "A layer must have as many experts as in an adapter file. Expected: "
            f"{experts} with adapters of their own at {path!r}. Received: a model "
            f"with {own}, for {source!r}. Use the base model it was trained with."
        )
