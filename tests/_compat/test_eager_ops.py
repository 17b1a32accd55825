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


@pytest.mark.skipif(
    keras.config.backend() == "jax", reason="JAX updates one table after the other"
)
@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_are_read_and_written_together(size, dtype):
    """To the bit, of rows of any length: several numbers may be copied at once."""
    generator = np.random.default_rng(0)
    start = [generator.normal(size=(5, size, 1)) for _ in range(2)]
    tables = [keras.Variable(one, dtype=dtype) for one in start]
    if keras.config.backend() == "torch":
        # As of a part of a larger tensor, which begins anywhere in memory.
        whole = ops.convert_to_tensor(np.zeros(5 * size + 1), dtype)
        tables[1].value.data = whole[1:].view(5, size, 1)
        tables[1].assign(start[1])
    values = [one.value for one in tables]
    rows = [ops.convert_to_tensor(at, "int64") for at in ([3, 0], [4])]
    before = [np.array(ops.convert_to_numpy(ops.cast(v, "float32"))) for v in tables]
    with eager_ops.no_gradient():
        found = eager_ops.rows_together(values, rows, size)
    flat = np.concatenate([before[0][[3, 0]], before[1][[4]]]).reshape(3, size)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(ops.cast(found, "float32")), flat
    )
    new = ops.convert_to_tensor(np.arange(3 * size).reshape(3, size), dtype)
    with eager_ops.no_gradient():
        eager_ops.write_rows_together(values, rows, new)
    before[0][[3, 0]] = np.arange(2 * size).reshape(2, size, 1)
    before[1][4] = np.arange(2 * size, 3 * size).reshape(size, 1)
    for one, expected in zip(tables, before):
        found = ops.convert_to_numpy(ops.cast(one, "float32"))
        np.testing.assert_array_equal(found, expected)
