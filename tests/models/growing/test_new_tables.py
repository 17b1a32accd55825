"""How values that join a trained model start, and what a product is filled in by."""

import numpy as np
import pytest
from helpers.growing import delta, predicted, small, tables

import keras_flix
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


@pytest.mark.eager
def test_a_copy_is_bit_exact():
    model = small(rank={"language": {"en": 3, "*": 2}})
    keras_flix.add_values(model, "language", ["rw"], init="en")
    keras_flix.add_values(model, "language", ["lg"], init="sw")
    for path, value in tables(model).items():
        if "language" in path:
            np.testing.assert_array_equal(value[2], value[0])
            np.testing.assert_array_equal(value[3], value[1])
    assert model._adaptation.schema["language"].ranks == (3, 2, 3, 2)


@pytest.mark.eager
def test_weights_are_exact_where_the_rank_allows():
    model = small()
    expected = 0.7 * delta(model, language="sw") - 0.2 * delta(model, language="en")
    weights = {"sw": 0.7, "en": -0.2}
    keras_flix.add_values(model, "language", ["rw"], init=weights, rank=4)
    np.testing.assert_allclose(delta(model, language="rw"), expected, atol=1e-6)
    assert model._adaptation.schema["language"].rank == {"*": 2, "rw": 4}


@pytest.mark.eager
def test_weights_give_the_closest_matrix_of_the_rank():
    model = small()
    total = 0.7 * delta(model, language="sw") + 0.3 * delta(model, language="en")
    keras_flix.add_values(model, "language", ["rw"], init={"sw": 0.7, "en": 0.3})
    u, s, v = np.linalg.svd(total)
    closest = (u[:, :2] * s[:2]) @ v[:2]
    np.testing.assert_allclose(delta(model, language="rw"), closest, atol=1e-6)


@pytest.mark.eager
def test_a_wider_copy_keeps_the_update_and_can_be_trained_in_full():
    model = small()
    before, known = delta(model, language="sw"), predicted(model)
    keras_flix.add_values(model, "language", ["rw"], init="sw", rank=4)
    np.testing.assert_allclose(delta(model, language="rw"), before, atol=1e-6)
    np.testing.assert_allclose(predicted(model), known, atol=1e-6)
    a = tables(model)["hidden/flix_language_a"]
    assert a.shape == (3, 8, 4)
    assert (a[:2, :, 2:] == 0).all()
    assert (a[2] != 0).all()
