"""No id, however wrong, and no number in a table reaches an example it is not of."""

import keras
import numpy as np
import pytest
from tracing import compiled

from keras_flix.low_rank import narrow_ids

BACKEND = keras.config.backend()
INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
if BACKEND == "torch":
    INTEGERS.remove("uint64")  # Keras has none there.


def edges(dtype, num_values):
    """What an integer dtype holds at its own ends and at those of a vocabulary."""
    info = np.iinfo(dtype)
    if BACKEND == "jax" and dtype.endswith("64"):
        # JAX itself narrows those before anything else sees them.
        info = np.iinfo(dtype.replace("64", "32"))
    near = [-3, -2, -1, 0, 1, num_values - 1, num_values, num_values + 1]
    far = [127, 128, 255, 256, 2**15, 2**16, 2**31, 2**32, 2**32 + 1, -(2**32)]
    ends = [info.min, info.min + 1, info.max - 1, info.max]
    return [i for i in sorted({*near, *far, *ends}) if info.min <= i <= info.max]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_narrowed_ids_are_the_same_value_or_out_of_range(dtype, record_fault):
    """257 values make an id of 1 out of what an int8 cannot hold."""
    tried = 0
    for num_values in (1, 3, 40, 127, 128, 255, 256, 257, 300, 32768, 65537):
        ids = edges(dtype, num_values)
        lowest = 0 if dtype.startswith("u") else -1
        expected = [i if lowest <= i < num_values else num_values for i in ids]
        narrow = compiled(lambda ids: narrow_ids(ids, num_values))
        found = narrow(np.array(ids, dtype))
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, expected)
        tried += len(ids)
    record_fault(f"ids: narrowed from {dtype}", inputs=tried, of_another_value=0)
