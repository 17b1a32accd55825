"""The equations that the tests of the low-rank update share."""

import numpy as np

SIZES = {
    **{"a": 2, "b": 3, "i": 3, "t": 4, "s": 4, "q": 4, "w": 2},
    **{"d": 5, "m": 5, "x": 5, "n": 2, "k": 2, "u": 2, "h": 3, "f": 6, "y": 6},
    **{"c": 3, "e": 4},
}
"""Size of each axis. Sizes differ where mixing axes up must be seen."""

EQUATIONS = [
    "btd,ndh->btnh",  # Gemma: query
    "btnh,nhd->btd",  # Gemma: attention_output
    "bsd,kdh->bskh",  # Gemma: key, value
    "btd,df->btf",  # Gemma: ffw_gating
    "btf,fd->btd",  # Gemma: ffw_linear
    "abc,cde->abde",  # MultiHeadAttention: query, key, value
    "abcd,cde->abe",  # MultiHeadAttention: output
    "...x,xy->...y",  # Dense
    "ab...,bc->ac...",  # Contracts an axis before the positions.
    "ibnd,hnd->ibh",  # XLNet: output
    "bqm,muh->bquh",  # Llama: query
    "bquh,uhm->bqm",  # Llama: attention_output
    "btd,dnh->btnh",  # T5Gemma: query
    "btd,dnh->bnth",  # Heads before positions.
    "btd,dnh->nhbt",  # The batch is not the output's first axis.
    "bd,df->bf",  # No positions besides the batch.
]

BATCH = 3


def shapes(equation, batch=BATCH, ellipsis=(4, 2)):
    """Shapes of an activation and a kernel; the batch comes first in the former."""
    activation, kernel = equation.split("->")[0].split(",")
    before, dots, after = activation.partition("...")

    def sizes(axes):
        return tuple(SIZES[axis] for axis in axes)

    shape = (*sizes(before), *(ellipsis if dots else ()), *sizes(after))
    return (batch, *shape[1:]), sizes(kernel)


def full_kernel(equation, kernel_shape, a, b):
    """The kernel `A @ B` in the equation's own layout, by einsum's own rules.

    `a` is `(d_in, r)`, `b` is `(r, d_out)`: the axes that the kernel shares with
    the activation, and those it shares with the output, each in the kernel's order.
    """
    activation, kernel = equation.split("->")[0].split(",")
    sizes = dict(zip(kernel, kernel_shape))
    shared = [axis for axis in kernel if axis in activation]
    produced = [axis for axis in kernel if axis not in activation]
    a = a.reshape([*(sizes[axis] for axis in shared), -1])
    b = b.reshape([-1, *(sizes[axis] for axis in produced)])
    terms = "".join(shared) + "Z,Z" + "".join(produced) + "->" + kernel
    return np.einsum(terms, a, b)
