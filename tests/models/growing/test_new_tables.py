"""The best approximation of a product of factors, whatever its size."""

import numpy as np
import pytest

from keras_flix.models.growing.new_tables import fill_with_product


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_what_is_of_a_lower_rank_leaves_columns_as_they_are(size):
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(6, 4)), rng.normal(size=(4, 5))
    left[:, 2:] = left[:, :2] @ rng.normal(size=(2, 2))
    a, b = np.ones((6, 3)), np.zeros((3, 5))
    fill_with_product(a, b, (size * left, size * right))
    np.testing.assert_allclose(a @ b, size**2 * left @ right, atol=1e-9 * size**2)
    np.testing.assert_array_equal(a[:, 2], 1.0)
    np.testing.assert_array_equal(b[2], 0.0)


def test_nothing_is_of_rank_0():
    a, b = np.ones((3, 2)), np.zeros((2, 4))
    fill_with_product(a, b, (np.zeros((3, 1)), np.ones((1, 4))))
    np.testing.assert_array_equal(a, 1.0)
    np.testing.assert_array_equal(b, 0.0)
