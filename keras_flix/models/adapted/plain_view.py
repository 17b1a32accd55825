"""An adapted model as the plain one it was: for configs, copies and weight files."""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import keras_hub
import numpy as np
from keras import ops

from keras_flix import _compat
from keras_flix.layers.expert_kernel import ExpertKernel
from keras_flix.layers.low_rank_embedding import LowRankEmbedding
from keras_flix.models.adapted.adaptation import only_shares
from keras_flix.models.adapted.devices import creation_scope
from keras_flix.models.adapted.frozen_values import guard_optimizer
from keras_flix.models.adapted.keras_files import (
    WEIGHTS,
    check_archive,
    check_undamaged,
    errors_name_the_file,
    save_whole,
)
from keras_flix.models.adapted.thread_lock import USES
from keras_flix.models.adapted.trained_base import flags_config, mark_trained

REGISTERED_NAME = "keras_flix>AdaptedModel"
"""What Keras' files call an adapted model."""

NEEDS = "`import keras_flix` before `keras.models.load_model`"
"""Keras imports no packages for a file. Its error is long, but it begins with this."""

EMBEDDINGS_OF = "embeddings"
"""In configs, the attribute that an adapted embedding is described by."""

SEEDS = "flix_seeds"
"""Under this name, Keras' weight files hold the states of seed generators."""


class PlainView(_compat.Mixin):
    """The part of an adapted model that describes it."""

    def __reduce__(self) -> tuple[Any, ...]:
        _, *rest = super().__reduce__()
        return (_compat.unpickle_function(), *rest)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *args: Any) -> Any:
        """The model whose `get_config` gave `config`, with fresh tables."""
        made_by = keras.saving.get_registered_object(REGISTERED_NAME)
        return made_by.from_config(config)

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        # Training that goes on from a file then drops the same features.
        states = [ops.convert_to_numpy(v.value) for v in _compat.seed_states(self)]
        if states:
            store[SEEDS] = np.stack(states)

    def load_own_variables(self, store: Any) -> None:
        archive = _compat.archive_read_without_checksums(store)
        if archive is not None:
            check_archive(archive)
        saved = {name: store[name] for name in store.keys()}
        states = saved.pop(SEEDS, None)
        super().load_own_variables(saved)
        own = _compat.seed_states(self)
        if states is not None and len(states) == len(own):
            for variable, value in zip(own, np.asarray(states)):
                variable.assign(value.astype(variable.dtype))

    def save(
        self,
        filepath: Any,
        overwrite: bool = True,
        zipped: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """As Keras' own; a `.keras` file is replaced only by a complete one."""
        save = functools.partial(super().save, zipped=zipped, **kwargs)
        suffix = None if zipped is False else ".keras"
        save_whole(self, save, filepath, suffix, overwrite)

    def save_weights(
        self,
        filepath: Any,
        overwrite: bool = True,
        max_shard_size: float | None = None,
    ) -> None:
        """As Keras' own; a file is replaced only by a complete one.

        With `max_shard_size`, Keras writes several files, each in its place.
        """
        options = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
        save = functools.partial(super().save_weights, **options)
        suffix = None if options else WEIGHTS
        save_whole(self, save, filepath, suffix, overwrite)

    def load_weights(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """As Keras' own; where it raises, no weight has changed."""
        with unchanged_if_it_raises(self), errors_name_the_file(filepath):
            check_undamaged(filepath)
            super().load_weights(filepath, *args, **kwargs)
        # They may be of a training that is over.
        mark_trained(self)
        # Averages of frozen values are what the weights now are.
        guard_optimizer(self)

    def get_compile_config(self) -> Any:
        """As Keras' own, and the sampler of a task that generates."""
        config = super().get_compile_config()
        sampler = getattr(self, "sampler", None)
        if config and isinstance(sampler, keras_hub.samplers.Sampler):
            config["sampler"] = keras.saving.serialize_keras_object(sampler)
        return config

    def compile_from_config(self, config: Any) -> None:
        """As Keras' own; what the optimizer was, and knew, is loaded in tasks, too."""
        config = dict(config)
        sampler = config.pop("sampler", None)
        if not self._compiled_as_a_task(config):
            super().compile_from_config(config)
        if sampler is not None:
            try:
                self.sampler = keras.saving.deserialize_keras_object(sampler)
            except (TypeError, ValueError) as error:
                warnings.warn(
                    f"The sampler that the model generated by was left out: {error} "
                    "Compile with it again.",
                    stacklevel=2,
                )
        optimizer = getattr(self, "optimizer", None)
        # Keras leaves that to the first step where `compile` is a class's own.
        if optimizer is not None and not optimizer.built:
            with creation_scope(self):
                optimizer.build(self.trainable_variables)
        guard_optimizer(self)

    def _compiled_as_a_task(self, config: Any) -> bool:
        """Compiles a task as it was, which Keras leaves out for its own `compile`."""
        if not isinstance(self, keras_hub.models.Task):
            return False
        with creation_scope(self):
            try:
                options = keras.saving.deserialize_keras_object(config)
            except (TypeError, ValueError):
                # Such as a loss of the user's own. Keras then says what it leaves out.
                return False
            keras.Model.compile(self, **options)
        return True

    def get_config(self) -> dict[str, Any]:
        """The plain model's config, and what `enable_flix` did to it."""
        adaptation = self._adaptation
        if adaptation.shares:
            raise ValueError(only_shares(self))
        with plain_view(self):
            base = keras.saving.serialize_keras_object(self)
        # Compiling is left to the adapted model, which has other variables.
        base.pop("compile_config", None)
        flags, rates = flags_config(self), adaptation.rates
        tokens = token_ids(adaptation)
        order = list(adaptation.layers)
        places = {n: [order.index(p) for p in x] for n, x in adaptation.places.items()}
        ranks = {
            name: [[order.index(path), rank] for path, rank in by_path.items()]
            for name, by_path in adaptation.ranks.items()
        }
        each = [order.index(path) for path in adaptation.experts]
        return {
            # First, as errors of Keras show a config where it does not know the class.
            "needs": NEEDS,
            "base": base,
            "schema": adaptation.schema.get_config(),
            "alpha": adaptation.alpha,
            **({"scale": adaptation.scale} if adaptation.scale != "rank" else {}),
            # By position: paths may change where a model is made again.
            "layers": layer_positions(self, adaptation.layers),
            **({"places": places} if places else {}),
            **({"ranks": ranks} if ranks else {}),
            **({"each": each} if each else {}),
            "seed": adaptation.seed,
            **({"rows": _rows_by_place(adaptation)} if adaptation.rows else {}),
            **(
                {}
                if adaptation.trainable is None
                else {"trainable": adaptation.trainable}
            ),
            **({"flags": flags} if flags else {}),
            **({"rates": rates.get_config()} if rates else {}),
            **({"tokens": tokens} if tokens else {}),
        }


@contextlib.contextmanager
def unchanged_if_it_raises(model: Any) -> Iterator[None]:
    """Puts a model's variables back, and its optimizer's, if the block raises.

    Keras loads weights layer by layer, and finds what does not fit on the way.
    """
    variables = _compat.training_state(model)
    # JAX's arrays never change. Others are copied to the host.
    is_jax = keras.config.backend() == "jax"
    before = [
        v.value if is_jax else np.array(ops.convert_to_numpy(v.value), copy=True)
        for v in variables
    ]
    try:
        yield
    except BaseException:
        for variable, value in zip(variables, before):
            variable.assign(value)
        raise


def stated_rows(adaptation: Any) -> dict[str, list[str]]:
    """The orders of rows that `enable_flix` was told, by path, for files."""
    return {path: sorted(orders) for path, orders in adaptation.rows.items()}


def _rows_by_place(adaptation: Any) -> list[list[str] | None]:
    """`stated_rows` along with the adapted layers; `None` where nothing is stated."""
    stated = stated_rows(adaptation)
    return [stated.get(path) for path in adaptation.layers]


def token_ids(adaptation: Any) -> dict[str, list[int]]:
    """The tokens whose rows train, by the path of their embedding."""
    return {layer.path: layer.token_ids.tolist() for layer in adaptation.token_rows}


def layers_with_kernels(model: Any) -> list[Any]:
    """All layers of a model that have a kernel, adapted or not, in order."""
    kinds = (keras.layers.EinsumDense, keras.layers.Dense)
    return [lyr for lyr in _compat.flatten_layers(model) if isinstance(lyr, kinds)]


def layer_positions(model: Any, layers: Mapping[str, Any]) -> list[list[Any]]:
    """Position and name of adapted layers among all linear layers of a model.

    Of embeddings and of kernels of experts, those of their layer among all layers, and
    the attribute.
    """
    linear = {id(layer): i for i, layer in enumerate(layers_with_kernels(model))}
    every = {id(layer): i for i, layer in enumerate(_compat.flatten_layers(model))}
    return [
        [every[id(layer.holder())], layer.holder().name, layer.attribute]
        if isinstance(layer, ExpertKernel)
        else [every[id(layer)], layer.name, EMBEDDINGS_OF]
        if isinstance(layer, LowRankEmbedding)
        else [linear[id(layer)], layer.name]
        for layer in layers.values()
    ]


@contextlib.contextmanager
def plain_view(model: Any) -> Iterator[Any]:
    """Gives a model and its adapted layers their own classes back in the block.

    What Keras and KerasHub derive from classes, such as configs and copies, is
    then that of the plain model. Nothing may be computed inside.

    Args:
        model: A model adapted by `enable_flix`.
    """
    swaps = [(p, type(p), p._adaptation.base_class) for p in model._adaptation.parts]
    swaps += [
        (layer, type(layer), layer.plain_class)
        for layer in [
            *model._adaptation.adapted_layers,
            *model._adaptation.token_rows,
        ]
    ]
    # To other threads, the adapters would be missing meanwhile.
    with model._adaptation.turns.alone():
        for instance, _, plain in swaps:
            instance.__class__ = plain
        # A thread that comes now has the plain class's entry points already.
        entries = [
            (part, name)
            for part in model._adaptation.parts
            for name in ("call", *USES)
            if hasattr(part, name) and name != "__call__"
        ]
        for part, name in entries:
            object.__setattr__(part, name, _only_here(getattr(part, name)))
        try:
            yield model
        finally:
            for part, name in entries:
                object.__delattr__(part, name)
            for instance, adapted, _ in swaps:
                instance.__class__ = adapted


def _only_here(call: Callable[..., Any]) -> Callable[..., Any]:
    """An entry point for this thread; to others, the adapters would be missing."""
    here = threading.get_ident()

    def only_here(*args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != here:
            raise RuntimeError(
                "A model must not be called while another thread saves, copies or "
                "merges it. Received: a call from another thread. Try again, or "
                "save a copy."
            )
        return call(*args, **kwargs)

    return only_here
