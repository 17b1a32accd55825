"""`Factors`: norms and products are those of the dense updates, in float64."""

import numpy as np
import pytest

from keras_flix.layers import factors
from keras_flix.layers.factors import Factors, of_each_expert

SCALES = [2.0, 0.5, 1.0, 3.0]


def tables(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(4, 7, 2)), rng.normal(size=(4, 2, 5))


def updates():
    a, b = tables()
    return (a @ b) * np.array(SCALES)[:, None, None]


def test_factors_are_the_updates():
    found = Factors.of(*tables(), SCALES)
    rebuilt = found.left @ found.right.transpose(0, 2, 1)
    np.testing.assert_allclose(rebuilt, updates(), rtol=1e-12)
    np.testing.assert_allclose(
        found.right.transpose(0, 2, 1) @ found.right, [np.eye(2)] * 4, atol=1e-12
    )


def test_norms_and_singular_values():
    found = Factors.of(*tables(), SCALES)
    values = np.linalg.svd(updates(), compute_uv=False)[:, :2]
    np.testing.assert_allclose(found.norms, np.linalg.norm(updates(), axis=(1, 2)))
    np.testing.assert_allclose(found.singular_values(), values, rtol=1e-12)


@pytest.mark.parametrize("block", [1, 40, 2**23])
def test_products_in_blocks_of_any_size(block, monkeypatch):
    monkeypatch.setattr(factors, "BLOCK", block)
    flat = updates().reshape(4, -1)
    found = Factors.of(*tables(), SCALES).products()
    np.testing.assert_allclose(found, flat @ flat.T, rtol=1e-12)


def test_a_table_that_is_not_finite_is_broken_alone():
    a, b = tables()
    a[1, 0, 0], b[3, 1, 1] = np.nan, np.inf
    found = Factors.of(a, b, SCALES)
    whole = Factors.of(*tables(), SCALES)
    assert found.broken.tolist() == [False, True, False, True]
    assert np.isnan(found.norms[[1, 3]]).all()
    assert np.isnan(found.singular_values()[[1, 3]]).all()
    np.testing.assert_allclose(found.norms[[0, 2]], whole.norms[[0, 2]])
    products = found.products()
    np.testing.assert_allclose(products[::2, ::2], whole.products()[::2, ::2])
    assert np.isnan(products[[1, 3]]).all() and np.isnan(products[:, [1, 3]]).all()


@pytest.mark.parametrize("rank", [2, 0])
def test_factors_of_each_expert(rank):
    """Of rank 0, too: those of a combination none of whose values is active."""
    a, b = np.ones((4, 7, rank, 3)), np.ones((4, rank, 3, 5))
    a, b = a * np.arange(1, 4), b * np.array([1, 10, 100])[:, None]
    each = of_each_expert(a.reshape(4, 7, -1), b.reshape(4, -1, 5), experts=3)
    assert each[0].shape == (12, 7, rank) and each[1].shape == (12, rank, 5)
    updates = np.array([1, 20, 300] * 4)[:, None, None] * rank
    np.testing.assert_array_equal(
        each[0] @ each[1], np.broadcast_to(updates, (12, 7, 5))
    )
