"""What tables start as, and whose weights they take."""

import keras
import numpy as np
import pytest
from helpers.models import make_mlp

import keras_flix
from keras_flix.layers.tables import Constant


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_constant_has_the_dtype_that_a_variable_asks_for(dtype):
    value = np.array([[0.5, -2.0]], "float32")
    found = Constant(value)((1, 2), dtype=dtype)
    assert keras.backend.standardize_dtype(found.dtype) == dtype
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(keras.ops.cast(found, "float32")), value
    )


def test_weights_of_values_that_joined_later_say_how_to_load_them(tmp_path):
    users = [f"user_{i:04d}" for i in range(1000)]

    def made():
        return keras_flix.enable_flix(
            make_mlp(), {"task": ["qa"], "user": users}, targets="all-linear"
        )

    grown = keras_flix.add_values(made(), "user", ["a", "b", "c", "d"])
    grown.save_weights(tmp_path / "grown.weights.h5")
    model = made()
    with pytest.raises(ValueError) as error:
        model.load_weights(tmp_path / "grown.weights.h5")
    text = str(error.value)
    assert "`add_values(model, 'user', ['a', 'b', 'c', ...])`" in text
    assert "user_0999" in text and "user_0500" not in text and len(text) < 2000
    keras_flix.add_values(model, "user", ["a", "b", "c", "d"])
    model.load_weights(tmp_path / "grown.weights.h5")
    # The other way round, there is nothing to add.
    made().save_weights(tmp_path / "first.weights.h5")
    with pytest.raises(ValueError, match="values in the same order") as error:
        grown.load_weights(tmp_path / "first.weights.h5")
    assert "add_values" not in str(error.value)


@pytest.mark.parametrize(
    "damaged", [b"[1", b"[[1], null]", b'[["user"], null]', b"\xff"]
)
def test_what_is_no_stamp_is_refused_as_one(damaged):
    model = keras_flix.enable_flix(make_mlp(), {"user": ["ann"]}, targets="all-linear")
    tables = next(iter(model._adaptation.layers.values()))._tables
    with pytest.raises(ValueError, match="The features in a weights file must match"):
        tables.check_stamp(np.frombuffer(damaged, "uint8"), "hidden")
