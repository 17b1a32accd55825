"""How the rows of a layer's input belong to the examples of a batch.

Nothing but a batch's length reaches a layer, and the same length may mean many
things: four rows of two examples may be `[0, 0, 1, 1]`, `[0, 1, 0, 1]`, or no
example's. So an order is known of each layer before its rows are shared out:
`enable_flix` finds it out, or is told.
"""

from __future__ import annotations

from collections.abc import Iterable

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


def unknown_rows(path: str) -> str:
    """The error for a layer whose rows belong to no one knows whom."""
    return (
        "It must be known which example each row of a target's input belongs to. "
        f"Received: layer {path!r}, of a model that has not told yet. Call the model "
        "on a batch, `model({...})`, before it is compiled, or state the order in "
        "`enable_flix(..., rows={...})`."
    )


def unlike_rows(
    rows: int, batch: int, orders: Orders, generates: bool | None, path: str
) -> str:
    """The error for rows that the examples cannot share out among them."""
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
