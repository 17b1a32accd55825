"""What more than one device asks of an adapted model."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras import tree

from keras_flix import _compat


class MirroredBuild(_compat.Mixin):
    """The part of an adapted model that TensorFlow's strategies build from."""

    def _maybe_symbolic_build(self, iterator: Any = None, **kwargs: Any) -> None:
        # Keras averages the first batch over the replicas to learn its shapes,
        # which makes floats of ids. From 3.16 on, JAX's trainer builds so too, which
        # has no replicas.
        strategy = getattr(self, "distribute_strategy", None)
        if iterator is not None and strategy is not None:
            iterator = _first_replica(iterator, strategy)
        super()._maybe_symbolic_build(iterator=iterator, **kwargs)


def _first_replica(steps: Any, strategy: Any) -> Iterator[Any]:
    """The steps of an epoch, with the first replica's part of the first batch."""

    def part(x: Any) -> Any:
        return x if x is None else strategy.experimental_local_results(x)[0]

    for begin, end, batches in steps:
        yield begin, end, iter([tree.map_structure(part, next(batches))])


def creation_scope(model: keras.Model) -> contextlib.AbstractContextManager[Any]:
    """Where a model's new variables must be made.

    TensorFlow's trainer keeps the strategy under which the model was made.
    """
    strategy = getattr(model, "distribute_strategy", None)
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def _by_processes(distribution: Any, devices: int) -> bool:
    """Whether torch's processes carry a distribution out, each with the whole model."""
    data_parallel = isinstance(distribution, keras.distribution.DataParallel)
    return data_parallel and _compat.fitting_processes() == devices


def check_whole(model: keras.Model, layers: Sequence[Any] | None = None) -> None:
    """Raises for a model whose parameters torch has split over devices.

    Keras' variables go on with the whole ones, so such a model would neither be
    computed nor trained by its parts, without a word.

    Args:
        model: On any backend.
        layers: Which of its layers to look at; all if `None`.
    """
    if keras.config.backend() != "torch":
        return
    layers = _compat.flatten_layers(model) if layers is None else layers
    split = _split_part([model, *layers])
    if split:
        raise ValueError(
            "An adapted model's parameters must be whole on each device: Keras' "
            "variables do not follow FSDP2 (`fully_shard`) and other DTensors. "
            f"Received: {split}. Use `torch.nn.parallel.DistributedDataParallel`, or "
            "JAX and `keras.distribution.ModelParallel`."
        )


def _split_part(parts: Sequence[Any]) -> str:
    # What is not imported has split nothing.
    fsdp = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", ())
    tensor = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", ())
    # Layers of a functional model are no submodules of it.
    for part in parts:
        # As soon as Keras tracks a model's parameters again, only its class tells.
        if isinstance(part, fsdp):
            return f"a {type(part).__name__}"
        for name, parameter in part.named_parameters():
            if isinstance(parameter, tensor):
                return f"a DTensor for {name!r}"
    return ""


def _check_distribution(value: Any) -> None:
    distribution = keras.distribution.distribution()
    wanted = 1 if distribution is None else distribution.device_mesh.devices.size
    sharding = getattr(value, "sharding", None)
    held = 1 if sharding is None else len(sharding.device_set)
    if sharding is None and wanted > 1 and not _by_processes(distribution, wanted):
        raise ValueError(
            "A distribution of `keras.distribution` must be one that adapters follow: "
            "JAX's, and from Keras 3.16 on PyTorch's `DataParallel` with one process "
            f"per device. Received: {type(distribution).__name__} over {wanted} "
            f"devices on the {keras.config.backend()!r} backend, in "
            f"{_compat.fitting_processes()} process(es) that train together. Switch to "
            "JAX, or use `keras.distribution.set_distribution(None)` and the backend's "
            "own `torch.nn.parallel.DistributedDataParallel` or "
            "`tf.distribute.MirroredStrategy`."
        )
    if sharding is not None and held != wanted:
        raise ValueError(
            "A model must be built and adapted under the same distribution. "
            f"Received: a model on {held} device(s), and a current distribution "
            f"over {wanted}. Call `keras.distribution.set_distribution` before "
            "the model is built, or do both in one `with distribution.scope()`."
        )


def check_devices(model: keras.Model, layers: Sequence[Any] | None = None) -> None:
    """Raises if adapters would not be where the model's own variables are.

    `layers` are those of the model, if they are known.
    """
    weights = model.weights
    if not weights:
        return
    _check_distribution(weights[0].value)
    check_whole(model, layers)
    value = weights[0].value
    strategy = getattr(model, "distribute_strategy", None)
    replicas = 1 if strategy is None else strategy.num_replicas_in_sync
    if replicas > 1 and ".distribute." not in type(value).__module__:
        raise ValueError(
            "A model must be built in the scope of the `tf.distribute` strategy "
            f"it is adapted in. Received: a {type(strategy).__name__} with "
            f"{replicas} replicas, and a model built outside of its scope. Build "
            "it inside `with strategy.scope()`."
        )
