"""Operations on rows of numbers of every kind."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_flix._compat import eager_ops


@pytest.mark.parametrize("shape", [(3,), (3, 2), (0, 2)])
def test_which_rows_are_not_zero(shape):
    """Found by a sum on PyTorch's CPU: no number may vanish in it or cancel out."""
    numbers = [0.0, -0.0, 1e-30, np.inf, -np.inf, np.nan, 3e38, -1.0]
    x = np.zeros((len(numbers) + 1, *shape), "float32")
    if x.size:
        last = (slice(0, len(numbers)), *(-1,) * len(shape))
        x[last] = numbers
        x[-1].reshape(-1)[:2] = [1.0, -1.0]
    expected = (x != 0).any(axis=tuple(range(1, x.ndim)), keepdims=True)
    found = ops.convert_to_numpy(eager_ops.any_nonzero(ops.convert_to_tensor(x)))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2)])
@pytest.mark.parametrize("compiled", [False, True])
def test_rows_of_one_or_the_other(shape, compiled):
    if compiled and keras.config.backend() != "tensorflow":
        pytest.skip("Only TensorFlow has an operation of its own for it.")
    x, y = np.ones(shape, "float32"), np.full(shape, np.nan, "float32")
    rows = np.array([True, False, False, True]).reshape(4, *[1] * (len(shape) - 1))
    call = eager_ops.where_rows
    if compiled:
        import tensorflow as tf

        call = tf.function(call)
    found = call(*map(ops.convert_to_tensor, (rows, x, y)))
    np.testing.assert_array_equal(ops.convert_to_numpy(found), np.where(rows, x, y))
