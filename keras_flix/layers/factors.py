"""The updates of values as factors in float64: exact norms, products and ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

BLOCK = 2**23
"""Numbers of one block of the matrix that holds the products of all factors."""


def side_by_side(
    pairs: Iterable[tuple[Any, Any]], concatenate: Callable[..., Any] = np.concatenate
) -> tuple[Any, Any]:
    """One pair of factors, `A (..., d_in, r)` and `B (..., r, d_out)`, of several.

    Its product is the sum of their products.

    Args:
        pairs: At least one.
        concatenate: `keras.ops.concatenate` for tensors.
    """
    a, b = zip(*pairs)
    return concatenate(a, axis=-1), concatenate(b, axis=-2)


def weighted_sum(
    a: np.ndarray, b: np.ndarray, scales: Sequence[float], weights: Mapping[int, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Factors, side by side, of a weighted sum of the updates of values.

    Args:
        a: `(values, d_in, rank)`.
        b: `(values, rank, d_out)`.
        scales: What the update of each value is multiplied by.
        weights: By id of a value.
    """
    # Not all rows as float64: there may be very many.
    return side_by_side(
        (weight * scales[row] * a[row].astype("float64"), b[row].astype("float64"))
        for row, weight in weights.items()
    )


@dataclasses.dataclass(frozen=True)
class Factors:
    """The updates of a feature in one layer, as `left @ right.T`.

    `right` has orthonormal columns, so products and norms of updates lose no
    digits, however ill-conditioned the factors are.

    Of experts with adapters of their own, a value's update is that of a typical one:
    squares and products are means over them.

    Attributes:
        left: `(values * experts, d_in, rank)`.
        right: `(values * experts, d_out, rank)`.
        core: `(values * experts, rank, rank)`, with the singular values of the update.
        broken: `(values,)`: whether a table is not finite. All else is then 0.
        experts: How many experts have adapters of their own.
    """

    left: np.ndarray
    right: np.ndarray
    core: np.ndarray
    broken: np.ndarray
    experts: int = 1

    @classmethod
    def of(
        cls, a: np.ndarray, b: np.ndarray, scales: Sequence[float], experts: int = 1
    ) -> Factors:
        """Reads the tables of a feature in a layer.

        Args:
            a: `(values, d_in, rank)`.
            b: `(values, rank, d_out)`. The rank may be 0.
            scales: What the update of each value is multiplied by.
            experts: How many experts have adapters of their own: that many stand side
                by side along the rank.
        """
        a, b = np.asarray(a, "float64"), np.asarray(b, "float64")
        if not a.shape[-1]:  # No adapter weights: an update of zero.
            a, b = np.zeros((*a.shape[:2], 1)), np.zeros((len(b), 1, b.shape[-1]))
        broken = ~(np.isfinite(a).all((1, 2)) & np.isfinite(b).all((1, 2)))
        keep = ~broken[:, None, None]
        a, b = np.where(keep, a, 0.0), np.where(keep, b, 0.0)
        a = a * np.asarray(scales)[:, None, None]
        if experts > 1 and a.shape[-1] > 1:
            a, b = of_each_expert(a, b, experts)
        else:
            experts = 1
        q_in, r_in = np.linalg.qr(a)
        q_out, r_out = np.linalg.qr(b.transpose(0, 2, 1))
        core = r_in @ r_out.transpose(0, 2, 1)
        return cls(q_in @ core, q_out, core, broken, experts)

    def _mean(self, squares: np.ndarray) -> np.ndarray:
        """Means over the experts, of something of each value and expert."""
        return squares.reshape(-1, self.experts, *squares.shape[1:]).mean(axis=1)

    @property
    def norms(self) -> np.ndarray:
        """Frobenius norms, `(values,)`."""
        norms = np.sqrt(self._mean((self.core**2).sum((1, 2))))
        return np.where(self.broken, np.nan, norms)

    def singular_values(self) -> np.ndarray:
        """Singular values, `(values, rank)`, falling."""
        values = np.linalg.svd(self.core, compute_uv=False)
        if self.experts > 1:
            values = np.sqrt(self._mean(values**2))
        return np.where(self.broken[:, None], np.nan, values)

    def products(self) -> np.ndarray:
        """Inner products of the updates, `(values, values)`."""
        products = np.zeros((len(self.broken),) * 2)
        for e in range(self.experts):
            own = slice(e, None, self.experts)
            products += self._products(self.left[own], self.right[own])
        products /= self.experts
        products[self.broken] = products[:, self.broken] = np.nan
        return (products + products.T) / 2

    @staticmethod
    def _products(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        count, _, rank = left.shape
        left, right = (
            factor.transpose(1, 0, 2).reshape(factor.shape[1], count * rank)
            for factor in (left, right)
        )
        products = np.empty((count, count))
        step = max(1, BLOCK // (rank * rank * count))
        for start in range(0, count, step):
            columns = slice(start * rank, (start + step) * rank)
            block = (left[:, columns].T @ left) * (right[:, columns].T @ right)
            block = block.reshape(-1, rank, count, rank).sum((1, 3))
            products[start : start + step] = block
        return products


def of_each_expert(
    a: np.ndarray, b: np.ndarray, experts: int
) -> tuple[np.ndarray, np.ndarray]:
    """Factors whose ranks hold those of all experts, as those of each.

    Args:
        a: `(values, d_in, rank * experts)`, the experts of a rank side by side.
        b: `(values, rank * experts, d_out)`.
        experts: How many.

    Returns:
        `(values * experts, d_in, rank)` and `(values * experts, rank, d_out)`.
    """
    count, d_in, d_out = len(a), a.shape[1], b.shape[2]
    # Not -1, which could be any number where the rank is 0.
    rank = a.shape[2] // experts
    a = a.reshape(count, d_in, rank, experts).transpose(0, 3, 1, 2)
    b = b.reshape(count, rank, experts, d_out).transpose(0, 2, 1, 3)
    every = count * experts
    return a.reshape(every, d_in, rank), b.reshape(every, rank, d_out)
