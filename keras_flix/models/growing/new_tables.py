"""The tables of values that join a trained model, in numpy."""

from __future__ import annotations

import numpy as np

DEAD = 1e-10
"""Singular values below this share of the largest are taken for zero."""


def fill_with_product(
    a: np.ndarray, b: np.ndarray, product: tuple[np.ndarray, np.ndarray]
) -> None:
    """Makes `a @ b` the best approximation of a product of factors, in place.

    It is the truncated singular value decomposition (Eckart and Young), from the QR
    decompositions of both factors: the whole matrix is never made. Where the
    product has a lower rank, the columns of `a` that are left over stay as they
    are, with zeros in `b`: with zeros in both they could never be trained.

    Args:
        a: Fresh table `(d_in, rank)`.
        b: Table `(rank, d_out)`, zeros.
        product: `(d_in, k)` and `(k, d_out)`.

    Example:

    >>> a, b = np.ones((3, 1)), np.zeros((1, 2))
    >>> left, right = np.array([[1.0], [2.0], [2.0]]), np.array([[0.0, 3.0]])
    >>> fill_with_product(a, b, (left, right))
    >>> bool(np.allclose(a @ b, left @ right))
    True
    """
    left, right = (np.linalg.qr(x) for x in (product[0], product[1].T))
    u, s, v = np.linalg.svd(left.R @ right.R.T)
    s = s[: a.shape[1]]
    rank = int((s > DEAD * max(s[0], np.finfo("float64").tiny)).sum())
    roots = np.sqrt(s[:rank])
    a[:, :rank] = (left.Q @ u[:, :rank]) * roots
    b[:rank] = roots[:, None] * (v[:rank] @ right.Q.T)
