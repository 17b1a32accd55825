"""Look-ups in tables, and gradients of rows, as each backend has its own of them."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_flix
from keras_flix._compat import sparse_rows
from keras_flix._compat.sparse_rows import (
    RowGradient,
    summed_together,
    take_apart,
    take_rows,
    take_with_row_gradient,
    with_rows,
)

on_tensorflow = pytest.mark.skipif(
    keras.config.backend() != "tensorflow",
    reason="look-ups of other backends copy no table, and have dense gradients",
)
on_torch = pytest.mark.skipif(
    keras.config.backend() != "torch", reason="only PyTorch's look-ups are taken apart"
)
ROWS = [[0], [2], [2]]


def table():
    return keras.Variable(np.ones((3, 4, 2), "float32"))


def check_dense(gradient):
    import tensorflow as tf

    assert not isinstance(gradient, tf.IndexedSlices)
    np.testing.assert_array_equal(gradient.numpy()[:, 0, 0], [2, 0, 4])


@on_tensorflow
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


@on_tensorflow
def test_gradients_inside_of_a_graph_are_dense():
    import tensorflow as tf

    variable = table()

    @tf.function
    def step(rows):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(take_rows(variable, rows) ** 2)
        return tape.gradient(loss, variable.value)

    check_dense(step(tf.constant(ROWS)))


@on_tensorflow
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


@on_torch
@pytest.mark.parametrize("beside", ["nothing", "rows", "dense"])
def test_what_was_taken_apart_has_the_gradient_of_the_table(beside):
    """Also where a part of a step is compiled, or the loss is one of the table, too."""
    import torch

    def loss_of(take):
        variable = table()
        weights = torch.arange(24.0).reshape(3, 1, 8)
        loss = 0.0
        for rows in (torch.tensor([[0], [2], [2]]), torch.tensor([[2], [0], [0]])):
            loss = loss + (take(variable, rows) * weights).square().sum()
        if beside == "rows":
            found = take_with_row_gradient(variable, torch.tensor([[1], [2], [1]]))
            loss = loss + found.square().sum()
        elif beside == "dense":
            loss = loss + variable.value.square().sum()
        loss.backward()
        return variable.value.grad

    taken = []

    def take(variable, rows):
        taken.append(take_apart(variable, rows))
        return taken[-1].found

    found = with_rows(loss_of(take), taken, (4, 2))
    expected = loss_of(take_rows).to_dense()
    if beside == "dense":
        dense = found
    else:
        assert isinstance(found, RowGradient) and found.values.shape[1:] == (4, 2)
        dense = torch.zeros(3, 4, 2).index_add(0, found.rows, found.values)
    np.testing.assert_allclose(dense, expected, rtol=1e-6)


@on_torch
def test_nothing_is_taken_apart_where_nothing_is_differentiated():
    import torch

    rows = torch.tensor(ROWS)
    with torch.no_grad():
        assert take_apart(table(), rows) is None
    frozen = table()
    frozen.trainable = False
    assert take_apart(frozen, rows) is None


@on_torch
def test_what_was_read_is_known_until_it_changes():
    import torch

    variable = table()
    one = take_apart(variable, torch.tensor(ROWS))
    one.found.sum().backward()
    gradient = with_rows(None, [one], (4, 2))
    value, rows = variable.value, gradient.rows
    assert torch.equal(gradient.found_in(value, rows), torch.ones(3, 1, 8))
    assert gradient.found_in(table().value, rows) is None
    # Those of a summed gradient are fewer.
    assert gradient.found_in(value, rows[:2]) is None
    variable.assign(2 * np.ones((3, 4, 2)))
    assert gradient.found_in(value, rows) is None


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("repeated", ["none", "one", "both"])
def test_rows_of_several_gradients_are_summed(repeated, known, monkeypatch):
    """Exactly, in the order of the batch; on PyTorch's CPU each row is there once.

    What an accelerator and a trace do, which know no numbers, runs on a CPU, too.
    """
    if not known:
        monkeypatch.setattr(sparse_rows.eager_ops, "distinct", lambda rows: None)
    batches = [[5, 0, 7], [2, 9, 1, 4]]
    if repeated != "none":
        batches[0] = [5, 0, 5]
    if repeated == "both":
        batches[1] = [2, 4, 4, 4]
    generator = np.random.default_rng(0)
    values = [generator.normal(size=(len(b), 2, 3)).astype("float32") for b in batches]
    # The last is of the same rows as the first, and of another table.
    values.append(generator.normal(size=(3, 3, 2)).astype("float32"))
    tensors = [ops.convert_to_tensor(b, "int64") for b in batches]
    gradients = [
        RowGradient(rows, ops.convert_to_tensor(one))
        for rows, one in zip([*tensors, tensors[0]], values)
    ]
    rows, sums = summed_together(gradients)
    start = 0
    for batch, given, found in zip([*batches, batches[0]], values, rows):
        at = found.tolist() if keras.config.backend() == "torch" else np.array(found)
        if keras.config.backend() == "torch":
            assert at == (list(dict.fromkeys(batch)) if known else batch)
        for place, row in enumerate(at):
            expected = np.zeros(6, "float32")
            for one, value in zip(batch, given):
                expected += value.reshape(-1) * (one == row)
            own = ops.convert_to_numpy(sums[start + place])
            np.testing.assert_array_equal(own, expected)
        start += len(at)
    assert start == len(sums)
