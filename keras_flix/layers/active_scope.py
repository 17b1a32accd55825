"""The scope that carries the active values from a model's input to its layers.

A model opens the scope inside its `call`, with ids that are tensors among its
own inputs, so that they are traced like any other input and never frozen into
a compiled function. Layers read the innermost scope of their own schema.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_flix.features.dropout import as_dropout
from keras_flix.features.schema import FeatureSchema
from keras_flix.features.tensor_ids import Tensor, drop_features
from keras_flix.layers.low_rank_update import ActiveValues
from keras_flix.layers.row_orders import (
    REPEAT,
    TILE,
    Orders,
    unknown_rows,
    unlike_rows,
)
from keras_flix.layers.row_scope import RowScope, current_row_scope


@dataclasses.dataclass(frozen=True)
class Routing:
    """What one forward pass of one model tells its adapted layers.

    Attributes:
        schema: The schema the ids belong to.
        active: The active values by feature, or `None` where adapters are off.
        ran: Ids of the layers that asked, filled in as they run.
        gathered: By id of a layer, the tables of each example where they were
            looked up ahead, for all calls of this routing.
        row_scope: The training step without dense gradients that runs, if any.
        orders: How rows belong to examples; `None` goes by each layer's own.
        generates: Whether a sampler of KerasHub runs, which puts beams and candidates
            side by side. `False` for another one, `None` for none.
        batch: The number of examples; `None` if all rows use the same tables.
    """

    schema: FeatureSchema
    active: Mapping[str, ActiveValues] | None
    ran: set[int] = dataclasses.field(default_factory=set)
    gathered: dict[int, tuple[Tensor, Tensor]] = dataclasses.field(default_factory=dict)
    row_scope: RowScope | None = dataclasses.field(default_factory=current_row_scope)
    orders: Orders | None = None
    generates: bool | None = None
    batch: Tensor | None = dataclasses.field(init=False, default=None)

    def __post_init__(self) -> None:
        for values in (self.active or {}).values():
            # Here, once for all layers, some of which may run in a graph of their own.
            object.__setattr__(self, "batch", ops.shape(values.rows)[0])
            break

    @classmethod
    def from_ids(
        cls,
        schema: FeatureSchema,
        ids: Mapping[str, Tensor],
        *,
        batch_size: Tensor = None,
        dropout_seed: keras.random.SeedGenerator | None = None,
        trained: Mapping[str, np.ndarray] | None = None,
        orders: Orders | None = None,
        generates: bool | None = None,
    ) -> Routing:
        """The routing of a batch.

        Args:
            schema: The features.
            ids: Ids by feature, int32 of shape `(batch,)` or `(batch, k)`, or
                `(batch, k, 2)` with weights.
            batch_size: Needed only to drop `always` features.
            dropout_seed: Turns feature dropout on and draws from this seed.
            orders: See `Routing`.
            generates: See `Routing`.
            trained: Which values train, of features where some do not.
        """
        weights = {}
        if dropout_seed is not None:
            ids = drop_features(schema, ids, batch_size, dropout_seed)
            weights = {f.name: as_dropout(f.dropout or 0.0).weight for f in schema}
        trained = trained or {}
        active = {}
        for feature in schema.features:
            name = feature.name
            if name not in ids:
                continue
            scale, trains = feature.common_scale, trained.get(name)
            if feature.always:  # Scaled and frozen as the one table it is.
                scale, trains = 1.0, None
            active[name] = ActiveValues.from_ids(
                ids[name], schema.sizes[name], weights.get(name, 1.0), scale, trains
            )
        return cls(schema, active, orders=orders, generates=generates)

    def by_example(
        self, positions: tuple[Any, ...], row_orders: Orders | None, path: str
    ) -> tuple[Any, ...]:
        """The shape, without the last axis, that gives each example its rows.

        Args:
            positions: Lengths of the input's axes that are not contracted.
            row_orders: Those of the layer, where the routing has none of its own;
                `None` if they are not known.
            path: The layer's, for messages.

        Returns:
            `(batch, rows)`, or `(times, batch, rows)` for tiled ones.
        """
        rows, batch = positions[0], self.batch
        if batch is None:
            return rows, math.prod(positions[1:])
        known = isinstance(rows, int) and isinstance(batch, int)
        if isinstance(batch, int) and batch == 1:
            # Whatever the order: all rows are of the same values.
            return 1, math.prod(positions)
        orders = self.orders or row_orders
        if orders is None:
            raise ValueError(unknown_rows(path))
        if not orders:
            raise ValueError(
                f"Each call of layer {path!r} must bring its features. Received: none, "
                "as `rows` of `enable_flix` has no order for it. Pass `features=`, "
                "with one entry per row, or state an order."
            )
        repeats = bool(self.generates) or (REPEAT in orders and self.generates is None)
        tiles = TILE in orders and self.generates is None
        if known and rows != batch:
            if not (repeats or tiles) or rows % max(batch, 1):
                raise ValueError(unlike_rows(rows, batch, orders, self.generates, path))
        if known and rows == batch:
            return batch, math.prod(positions[1:])
        # Exporters have lengths of their own kind, neither ints nor tensors.
        is_tensor = ops.is_tensor(rows) or ops.is_tensor(batch)
        if is_tensor and not (repeats or tiles):
            # What has more rows does not fit this shape, and raises as the graph runs.
            return batch, math.prod(positions[1:])
        least = ops.maximum(batch, 1) if is_tensor else max(batch, 1)
        times = rows // least
        if tiles:
            return times, batch, math.prod(positions[1:])
        # Not -1: where lengths are only known as the graph runs, it would take
        # a batch that is no multiple of the entries.
        return batch, math.prod(positions[1:], start=times)


# A ContextVar, not a global: threads, and tasks of one thread, never share it.
_stack: contextvars.ContextVar[tuple[Routing, ...]] = contextvars.ContextVar(
    "keras_flix_routing", default=()
)


@contextlib.contextmanager
def routing_scope(routing: Routing | None) -> Iterator[None]:
    """Makes `routing` current within the block, also when it raises."""
    if routing is None:
        yield
        return
    token = _stack.set((*_stack.get(), routing))
    try:
        yield
    finally:
        _stack.reset(token)


def current_routing(schema: FeatureSchema) -> Routing | None:
    """The innermost routing of this schema, or `None` outside of any."""
    for routing in reversed(_stack.get()):
        if routing.schema is schema or routing.schema == schema:
            return routing
    return None


def is_routed() -> bool:
    """Whether an adapted model runs."""
    return bool(_stack.get())


_off: contextvars.ContextVar[frozenset[int]] = contextvars.ContextVar(
    "keras_flix_off", default=frozenset()
)


@contextlib.contextmanager
def switched_off(layers: Iterable[Any]) -> Iterator[None]:
    """Within the block, these layers are those of the base, whoever calls them."""
    token = _off.set(_off.get().union(map(id, layers)))
    try:
        yield
    finally:
        _off.reset(token)


layers_off = _off.get
"""Ids of the layers that are in a block of `switched_off`."""


def carry_routing(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that runs under the routing of now, whenever it is called.

    Rematerialization runs a layer's `call` again in the backward pass, when the
    scope of the forward pass is closed.
    """
    stack, off = _stack.get(), _off.get()

    def carried(*args: Any, **kwargs: Any) -> Any:
        token, off_token = _stack.set(stack), _off.set(off)
        try:
            return function(*args, **kwargs)
        finally:
            _stack.reset(token)
            _off.reset(off_token)

    return carried
