"""Runs on shapes only, and what they tell about a model's variables."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
from keras.src import backend

from keras_flix._compat.kernel_products import Watch, watched_products
from keras_flix._compat.layers import kernel_variable


class _Watch(keras.StatelessScope):
    """Tells which variables are read and which get another value within the block.

    Inside of a dry run, variables keep their values; Keras asks the innermost scope
    for each that is read, and tells it of each that is assigned.
    """

    def __init__(
        self,
        read: Callable[[keras.Variable], None] = lambda variable: None,
        assigned: Callable[[keras.Variable], None] = lambda variable: None,
    ) -> None:
        super().__init__()
        self._read = read
        self._assigned = assigned

    def get_current_value(self, variable: keras.Variable) -> Any:
        self._read(variable)
        return super().get_current_value(variable)

    def add_update(self, update: tuple[keras.Variable, Any]) -> None:
        self._assigned(update[0])
        super().add_update(update)


def dry_run(
    model: keras.Model,
    inputs: Any,
    training: bool = False,
    read: Callable[[keras.Variable], None] | None = None,
) -> None:
    """Runs `call` of every layer on shapes only, and tells which variables it reads.

    `Functional.compute_output_spec` asks layers for shapes and skips `call`;
    the backend's own tracing does not.
    """

    def run(x: Any) -> Any:
        with contextlib.nullcontext() if read is None else _Watch(read=read):
            return model(x, training=training)

    backend.compute_output_spec(run, inputs)


def assigned_variables(
    model: keras.Model, inputs: Any, training: bool
) -> list[keras.Variable]:
    """The variables that a call of a model assigns, seeds of dropout among them."""
    found: dict[int, keras.Variable] = {}

    def run(x: Any) -> Any:
        with _Watch(assigned=lambda variable: found.update({id(variable): variable})):
            return model(x, training=training)

    backend.compute_output_spec(run, inputs)
    return list(found.values())


def kernels_read_elsewhere(
    model: keras.Model,
    inputs: Any,
    layers: Mapping[str, Any],
    watches: Sequence[Watch] = (),
) -> list[str]:
    """Which of these layers have kernels that others read, too.

    Args:
        model: A built model.
        inputs: What stands for its inputs, see `symbolic_inputs`.
        layers: Some of its layers with a kernel, by path.
        watches: Those kernels that layers multiply by themselves, which is no other
            reading of them.

    Returns:
        The paths of the layers whose kernel is read outside of their own `call`: by a
        layer that holds the same variable, or takes it from this one.
    """
    owners: dict[int, str] = {}
    found: dict[str, None] = {}
    apart = {watch.path for watch in watches}
    for path, layer in layers.items():
        kernel = id(kernel_variable(layer))
        if owners.setdefault(kernel, path) != path:
            found |= {owners[kernel]: None, path: None}
    running: list[str] = []

    def note(variable: keras.Variable) -> None:
        owner = owners.get(id(variable))
        if owner in apart:
            products.note_read(variable)
        elif owner is not None and owner not in running[-1:]:
            found[owner] = None

    called = {path: layer for path, layer in layers.items() if path not in apart}
    with watched_products(watches) as products, _named_calls(called, running):
        dry_run(model, inputs, read=note)
    return [*found, *products.read_elsewhere]


@contextlib.contextmanager
def _named_calls(
    layers: Mapping[str, keras.layers.Layer], running: list[str]
) -> Iterator[None]:
    """Keeps the paths of those layers whose `call` runs, innermost last."""

    def named(path: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            running.append(path)
            try:
                return call(*args, **kwargs)
            finally:
                running.pop()

        return run

    try:
        for path, layer in layers.items():
            object.__setattr__(layer, "call", named(path, layer.call))
        yield
    finally:
        for layer in layers.values():
            layer.__dict__.pop("call", None)
