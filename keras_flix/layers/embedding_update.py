"""The FLix update of an embedding, made for the tokens that are looked up only.

A token's one-hot row times `A @ B` is its row of `A`, times `B`. So a look-up costs
what its tokens do, whatever the size of the vocabulary. In a tied output head, where
every token counts, `x @ (A @ B).T` is `x @ B.T @ A.T`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from keras import ops

from keras_flix import _compat
from keras_flix.features.tensor_ids import Tensor
from keras_flix.layers.low_rank_update import (
    ActiveValues,
    FeatureTables,
    gather_tables,
    look_up,
    low_rank_product,
    of_shared,
    zero_gradient,
)

MOST_ROWS = 2**31
"""Rows of all values' tables together must have numbers in int32."""


def looked_up(
    tokens: Tensor,
    tables: Sequence[FeatureTables],
    active: Mapping[str, ActiveValues],
    dtype: str,
    row_scope: object = None,
) -> Tensor:
    """The update of an embedding's output.

    Args:
        tokens: Integers `(batch, positions)`, or several of them along leading axes;
            what is out of range is left to the base.
        tables: The tables of all features, `A` having a row per token.
        active: The active values by feature, as for `low_rank_update`.
        dtype: In which factors are multiplied.
        row_scope: The training step without dense gradients that runs, if any.

    Returns:
        `sum over f in F(x) of s_f * A_f[token] @ B_f`, of shape
        `(batch, positions, d_out)`.
    """
    deltas = []
    for table in tables:
        size = table.a.shape[1]
        # As the base does: from the end. Never the row of another value.
        at = ops.where(tokens < 0, tokens + size, tokens)
        at = ops.clip(ops.cast(at, "int32"), 0, size - 1)
        if table.shared:
            rows = _compat.take_rows(table.only(table.a, "float32"), at)
            b = table.only(table.b, dtype)
            rows = ops.cast(rows * table.scale, dtype)
            deltas.append(of_shared(ops.matmul(rows, b), table, active))
            continue
        one = active[table.name]
        left = _rows_of_tokens(table, one, at)
        right = look_up(table.b, one, row_scope)
        right = ops.where(one.present, right, one.filler)
        _, rank, d_out = table.b.shape
        k = _slots(one)
        shape = ops.shape(at)
        left = ops.reshape(ops.cast(left, dtype), (*shape, k * rank))
        right = ops.reshape(ops.cast(right, dtype), (-1, k * rank, d_out))
        if len(shape) > 2:
            right = ops.broadcast_to(right, (*shape[:-1], *ops.shape(right)[1:]))
        deltas.append(ops.matmul(left, right))
    return sum(deltas[1:], deltas[0])


def projected(
    x: Tensor,
    tables: Sequence[FeatureTables],
    active: Mapping[str, ActiveValues],
    gathered: tuple[Tensor, Tensor] | None = None,
    row_scope: object = None,
) -> Tensor:
    """The update of the logits that a tied head computes.

    Args:
        x: Activations `(batch, positions, d_out)`, or several along leading axes.
        tables: The tables of all features.
        active: The active values by feature.
        gathered: What `gather_tables` gave ahead.
        row_scope: The training step without dense gradients that runs, if any.

    Returns:
        `sum over f in F(x) of s_f * x @ B_f.T @ A_f.T`, of shape
        `(batch, positions, tokens)`.
    """
    dtype, deltas = x.dtype, []
    if gathered is None:
        gathered = gather_tables(tables, active, dtype, row_scope)
    if gathered is not None:
        a, b = (ops.swapaxes(part, -1, -2) for part in gathered)
        deltas.append(low_rank_product(x, b, a))
    for table in tables:
        if table.shared:
            a, b = table.only(table.a, dtype), table.only(table.b, dtype)
            a, b = ops.transpose(a * table.scale), ops.transpose(b)
            deltas.append(of_shared(low_rank_product(x, b, a), table, active))
    return sum(deltas[1:], deltas[0])


def _rows_of_tokens(table: FeatureTables, one: ActiveValues, at: Tensor) -> Tensor:
    """Rows of `A` by example, token and slot, each with its scale: `(..., k, rank)`."""
    values, size, rank = table.a.shape
    if values * size >= MOST_ROWS:
        raise ValueError(
            "The values of a feature, times the rows of an embedding that it adapts, "
            f"must be below {MOST_ROWS}. Received: {values} values of feature "
            f"{table.name!r} and {size} rows. Leave the embedding out of its "
            "`targets`."
        )
    # Through the table as a whole: its gradient is dense in any training step.
    flat = ops.reshape(table.a, (values * size, rank))
    rows = one.rows[:, None] * size + at[..., None]
    found = _compat.take_rows(flat, rows)
    if one.trained is not None:
        found = zero_gradient(found, ops.logical_not(one.trained)[:, None])
    found = ops.where(one.present[:, None], found, one.filler[:, None])
    if isinstance(table.relative, np.ndarray):
        relative = ops.convert_to_tensor(table.relative, "float32")
        found = found * _compat.take_rows(relative, one.rows)[:, None]
    elif table.relative != 1.0:
        found = found * table.relative
    if isinstance(one.weight, float):
        return found if one.weight == 1.0 else found * one.weight
    return found * one.weight[:, None]


def _slots(one: ActiveValues) -> Tensor:
    """How many values of the feature an example may have."""
    k = one.rows.shape[1]
    return ops.shape(one.rows)[1] if k is None else k
