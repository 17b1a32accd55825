"""Look-ups in tables on TensorFlow, where reading a variable may copy it."""

import keras
import numpy as np
import pytest

import keras_flix
from keras_flix._compat.sparse_rows import take_rows

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "tensorflow",
    reason="look-ups of other backends copy no table, and have dense gradients",
)
ROWS = [[0], [2], [2]]


def table():
    return keras.Variable(np.ones((3, 4, 2), "float32"))


def check_dense(gradient):
    import tensorflow as tf

    assert not isinstance(gradient, tf.IndexedSlices)
    np.testing.assert_array_equal(gradient.numpy()[:, 0, 0], [2, 0, 4])


@pytest.mark.parametrize("compiled", [None, False, True])
def test_gradients_are_dense(compiled):
    """Also of a function that was traced before anybody asked for its gradient."""
    import tensorflow as tf

    variable = table()

    def look_up(rows):
        return take_rows(variable, rows)

    if compiled is not None:
        look_up = tf.function(look_up, jit_compile=compiled)
        assert look_up(tf.constant(ROWS)).shape == (3, 1, 8)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(look_up(tf.constant(ROWS)) ** 2)
    check_dense(tape.gradient(loss, variable.value))


def test_gradients_inside_of_a_graph_are_dense():
    import tensorflow as tf

    variable = table()

    @tf.function
    def step(rows):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(take_rows(variable, rows) ** 2)
        return tape.gradient(loss, variable.value)

    check_dense(step(tf.constant(ROWS)))


def test_a_prediction_reads_no_table_as_a_whole():
    import tensorflow as tf

    layer = keras_flix.FlixDense(3, features={"task": ["qa", "parse"]}, rank=2)
    x, ids = np.ones((2, 4), "float32"), {"task": np.array([0, 1], "int32")}
    layer(x, features=ids)
    graph = tf.function(lambda x, ids: layer(x, features={"task": ids}))
    operations = graph.get_concrete_function(x, ids["task"]).graph.get_operations()
    kinds = [operation.type for operation in operations]
    assert kinds.count("ResourceGather") == 2
    assert kinds.count("ReadVariableOp") == 2  # Kernel and bias.
