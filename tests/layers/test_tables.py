"""What tables start as."""

import keras
import numpy as np
import pytest

from keras_flix.layers.tables import Constant


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_constant_has_the_dtype_that_a_variable_asks_for(dtype):
    value = np.array([[0.5, -2.0]], "float32")
    found = Constant(value)((1, 2), dtype=dtype)
    assert keras.backend.standardize_dtype(found.dtype) == dtype
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(keras.ops.cast(found, "float32")), value
    )
