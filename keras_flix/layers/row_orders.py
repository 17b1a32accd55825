"""How the rows of a layer's input belong to the examples of a batch.

Nothing but a batch's length reaches a layer, and the same length may mean many
things: four rows of two examples may be `[0, 0, 1, 1]`, `[0, 1, 0, 1]`, or no
example's. So an order is known of each layer before its rows are shared out:
`enable_flix` finds it out, or is told.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keras_flix.features.tensor_ids import Tensor

BATCH = "batch"
"""One row per example, in their order."""
REPEAT = "repeat"
"""Several rows per example, side by side: `keras.ops.repeat(x, k, axis=0)`."""
TILE = "tile"
"""The batch several times over: `keras.ops.concatenate([x, y], axis=0)`."""
SHARED = "shared"
"""One row for all examples, such as relative position embeddings."""
ORDERS = (BATCH, REPEAT, TILE, SHARED)

Orders = frozenset[str]
"""The orders that a layer's calls have; empty if they all bring `features=`."""

EACH_ROW: Orders = frozenset({BATCH})
KERAS_HUB: Orders = frozenset({BATCH, REPEAT, SHARED})
"""Of KerasHub's own models, all of which the tests of this package compare with single
examples: beams, images, audio and the tokens of experts are side by side."""


def as_orders(orders: Iterable[str]) -> Orders:
    """Checks orders; raises for unknown ones and for two that contradict."""
    found = frozenset(orders)
    if not found <= set(ORDERS) or found >= {REPEAT, TILE}:
        raise ValueError(
            f"The order of a target's rows must be one or more of {list(ORDERS)}, "
            f"{REPEAT!r} and {TILE!r} not both; or None where each call brings "
            f"`features=`. Received: {sorted(map(str, found))}. Correct it."
        )
    return found


def by_example(
    positions: tuple[Any, ...],
    batch: Tensor | None,
    orders: Orders | None,
    generates: bool | None,
    path: str,
) -> tuple[Any, ...]:
    """The shape, without the last axis, that gives each example its rows.

    Args:
        positions: Lengths of the input's axes that are not contracted.
        batch: The number of examples; `None` if all rows use the same tables.
        orders: Those of the layer; `None` if they are not known.
        generates: Whether a sampler of KerasHub runs, which puts beams and
            candidates side by side. `False` for another one, `None` for none.
        path: The layer's, for messages.

    Returns:
        `(batch, rows)`, or `(times, batch, rows)` for tiled ones.
    """
    # On use: the orders themselves are read by what needs no Keras.
    from keras import ops

    rows = positions[0]
    if batch is None:
        return rows, math.prod(positions[1:])
    known = isinstance(rows, int) and isinstance(batch, int)
    if isinstance(batch, int) and batch == 1:
        # Whatever the order: all rows are of the same values.
        return 1, math.prod(positions)
    if orders is None:
        raise ValueError(unknown_rows(path))
    if not orders:
        raise ValueError(
            f"Each call of layer {path!r} must bring its features. Received: none, as "
            "`rows` of `enable_flix` has no order for it. Pass `features=`, with one "
            "entry per row, or state an order."
        )
    repeats = bool(generates) or (REPEAT in orders and generates is None)
    tiles = TILE in orders and generates is None
    if known and rows != batch:
        if not (repeats or tiles) or rows % max(batch, 1):
            raise ValueError(_unlike(rows, batch, orders, generates, path))
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


def unknown_rows(path: str) -> str:
    """The error for a layer whose rows belong to no one knows whom."""
    return (
        "It must be known which example each row of a target's input belongs to. "
        f"Received: layer {path!r}, of a model that has not told yet. Call the model "
        "on a batch, `model({...})`, before it is compiled, or state the order in "
        "`enable_flix(..., rows={...})`."
    )


def _unlike(
    rows: int, batch: int, orders: Orders, generates: bool | None, path: str
) -> str:
    remedy = "Pass one entry per example."
    if generates is not None:
        remedy = (
            "Only KerasHub's own samplers are known to keep the rows of an example "
            "side by side: generate with one of them, or without beams."
        )
    elif rows and rows % max(batch, 1) == 0:
        remedy = (
            "Repeat the entries, such as by `keras.ops.repeat`, or state the order of "
            "the rows in `enable_flix(..., rows={...})`."
        )
    return (
        "The features must have one entry per example. Received: "
        f"{batch} entries for a batch of {rows} in layer {path!r}, whose rows are in "
        f"the order {sorted(orders)}. {remedy}"
    )
