"""Products with the factors of experts that have adapters of their own.

Along the rank of such tables stand the adapters of all experts: rank 0 of each, then
rank 1 of each, and so on. So they are tables as all others, whose rank is as many times
higher, in files, in optimizers, and where values or ranks come and go.
"""

from __future__ import annotations

from keras import ops

from keras_flix.features.tensor_ids import Tensor


def expert_product(
    x: Tensor, a: Tensor, b: Tensor, experts: int, own_inputs: bool = False
) -> Tensor:
    """What each expert's update makes of activations.

    An example costs memory of its values' adapters: a matrix of the kernel's size is
    never made.

    Args:
        x: `(batch, positions, d_in)`, or several of them along leading axes.
        a: `(batch, d_in, rank * experts)`, or without the batch, for all examples.
        b: `(batch, rank * experts, d_out)`, or without the batch.
        experts: How many there are.
        own_inputs: Whether the first axis of `x` is one of experts.

    Returns:
        `x @ A_e @ B_e` for each expert `e`, of shape `(experts, ..., positions,
        d_out)`: with the axes of `x` after the first one.

    Example:

    >>> x, a, b = np.ones((1, 5, 2)), np.ones((1, 2, 6)), np.ones((1, 6, 4))
    >>> tuple(expert_product(x, a, b, experts=3).shape)
    (3, 1, 5, 4)
    """
    shape = ops.shape(x)[:-1]
    lead = shape[int(own_inputs) :]
    if len(a.shape) == 2:
        # The same for all rows, which are then one axis.
        rows = (experts, -1) if own_inputs else (-1,)
        x = ops.reshape(x, (*rows, x.shape[-1]))
    elif len(lead) > 2:
        # Backends differ in what they broadcast.
        a, b = (ops.broadcast_to(t, (*lead[:-1], *ops.shape(t)[1:])) for t in (a, b))
    b = ops.swapaxes(_experts_first(ops.swapaxes(b, -1, -2), experts), -1, -2)
    if own_inputs:
        hidden = ops.matmul(x, _experts_first(a, experts))
    else:
        # All experts read the same: one product for all of their `A`.
        hidden = _experts_first(ops.matmul(x, a), experts)
    return ops.reshape(ops.matmul(hidden, b), (experts, *lead, b.shape[-1]))


def _experts_first(table: Tensor, experts: int) -> Tensor:
    """`(experts, ..., rank)` of `(..., rank * experts)`."""
    shape = ops.shape(table)
    split = ops.reshape(table, (*shape[:-1], shape[-1] // experts, experts))
    return ops.moveaxis(split, -1, 0)
