"""What compiled functions make of entries whose values they only know later."""

import keras
import numpy as np
import pytest
from helpers.gemma import to_numpy
from keras import ops

from keras_flix import Feature
from keras_flix.features.encoding import WEIGHT_UNIT
from keras_flix.features.tensor_ids import checked_tensor, ids_of_values

LEVEL = Feature("level", [30, 10, -20])
TASK = Feature("task", ["qa", "parse", "list"])


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint8", "uint32"])
def test_values_become_their_ids(dtype):
    numbers = np.array([[30, 10], [-20, -1], [0, 100]])
    ids = np.array([[0, 1], [2, -1], [3, 3]])
    if dtype.startswith("u"):
        # No unsigned number is absent, or a negative value.
        ids[1] = 3
    tensor = ops.convert_to_tensor(numbers.astype(dtype), dtype)
    found = ids_of_values(LEVEL, tensor)
    np.testing.assert_array_equal(to_numpy(found), ids)
    assert "int32" in str(found.dtype)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9])
def test_each_of_any_number_of_values_is_found(count):
    values = (np.random.default_rng(count).permutation(count) * 3 + 1).tolist()
    numbers = np.arange(-2, 3 * count + 2).astype("int32")
    expected = [
        -1 if n == -1 else values.index(n) if n in values else count for n in numbers
    ]
    found = ids_of_values(Feature("level", values), ops.convert_to_tensor(numbers))
    assert to_numpy(found).tolist() == expected


def test_integers_are_values_or_ids():
    tensor = ops.convert_to_tensor(np.array([10, -1, 2], "int32"))
    assert checked_tensor(LEVEL, tensor, is_ids=True) is tensor
    assert checked_tensor(TASK, tensor, is_ids=False) is tensor
    found = checked_tensor(LEVEL, tensor, is_ids=False)
    assert to_numpy(found).tolist() == [1, -1, 3]


# JAX itself narrows int64.
WIDE = "int16" if keras.config.backend() == "jax" else "int64"


@pytest.mark.parametrize("dtype", ["int8", "uint8", "uint32", WIDE])
def test_ids_of_any_dtype_become_int32_and_no_other_id(dtype):
    numbers = [0, 2, 100] if dtype.startswith("u") else [0, -1, 100]
    if dtype == "int64":
        numbers[2] = 2**32 + 1  # As an int32, this would be 1.
    tensor = ops.convert_to_tensor(np.array(numbers, dtype), dtype)
    found = checked_tensor(TASK, tensor, is_ids=False)
    assert "int32" in str(found.dtype)
    assert to_numpy(found).tolist() == [*numbers[:2], 3]


def test_ids_beside_weights_become_int32():
    packed = np.array([[[1, 9_000], [100, 5]], [[-1, 0], [0, -3]]], WIDE)
    found = checked_tensor(TASK, ops.convert_to_tensor(packed), is_ids=False)
    assert "int32" in str(found.dtype)
    packed[0, 1, 0] = 3
    np.testing.assert_array_equal(to_numpy(found), packed)


@pytest.mark.parametrize("feature", [TASK, LEVEL], ids=["strings", "integers"])
def test_floats_are_the_weights_of_all_values(feature):
    weights = np.array([[0.5, 0.0, 2.0], [0.0, 0.0, 0.0]], "float32")
    found = to_numpy(checked_tensor(feature, ops.convert_to_tensor(weights), False))
    ids = np.array([[0, -1, 2], [-1, -1, -1]])
    np.testing.assert_array_equal(found[..., 0], ids)
    np.testing.assert_allclose(found[..., 1] * WEIGHT_UNIT, weights)


def test_values_of_more_than_32_bits_are_refused():
    tensor = ops.convert_to_tensor(np.array([7], "int32"))
    with pytest.raises(ValueError) as error:
        ids_of_values(Feature("user", [7, 5_000_000_000]), tensor)
    assert str(error.value) == (
        "The values of feature 'user' must fit in 32 bits to be looked up in a "
        "compiled function. Received: one of size 5000000000. Encode them before, by "
        "`schema.encode(...)`, and pass 'user:ids'."
    )
