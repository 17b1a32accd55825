"""What a tensor is worth, where that is known: not inside of `vectorized_map`."""

import keras
import numpy as np
import pytest
from helpers.models import make_mlp, rows
from keras import ops

import keras_flix
from keras_flix import FlixDense
from keras_flix.features.host_values import host_value

pytestmark = pytest.mark.eager

FEATURES = {"task": ["qa", "parse"]}
IDS = np.array([0, 1, -1, 1], "int32")


def scramble(variables):
    generator = np.random.default_rng(2)
    for variable in variables:
        if "flix" in variable.path:
            variable.assign(generator.normal(size=variable.shape))


@pytest.fixture
def model():
    model = keras_flix.enable_flix(make_mlp(), FEATURES, targets="all-linear", rank=2)
    scramble(model.trainable_variables)
    return model


def mapped(function, *arrays):
    """`function` of each of the arrays' entries, none of which is known to it."""

    def one(entries):
        assert all(host_value(entry) is None for entry in entries)
        return function(*entries)

    tensors = tuple(map(ops.convert_to_tensor, arrays))
    return ops.convert_to_numpy(ops.vectorized_map(one, tensors))


def test_a_model_inside_of_vectorized_map(model):
    x = rows(len(IDS))["x"]
    expected = ops.convert_to_numpy(model({"x": x, "task": IDS}))
    for shape in ((1,), ()):  # ids, and one for all rows

        def one(x, task, shape=shape):
            return model({"x": x[None], "task": ops.reshape(task, shape)})[0]

        found = mapped(one, x, IDS)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_an_id_out_of_range_inside_of_vectorized_map(model):
    x = rows(len(IDS))["x"]
    ids = np.where(IDS == 0, 7, IDS)
    found = mapped(lambda x, t: model({"x": x[None], "task": t[None]})[0], x, ids)
    np.testing.assert_array_equal(np.isnan(found).all(axis=-1), ids == 7)


def test_a_layer_inside_of_vectorized_map():
    """One row is one token there, and the example's id holds for all of them."""
    layer = FlixDense(4, features=FEATURES, rank=2)
    layer.build((None, 8))
    scramble(layer.variables)
    x = np.random.default_rng(0).normal(size=(len(IDS), 6, 8)).astype("float32")
    expected = ops.convert_to_numpy(layer(x, features={"task": IDS}))
    found = mapped(lambda x, t: layer(x, features={"task": t}), x, IDS)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(keras.config.backend() != "torch", reason="transforms of torch")
def test_transforms_of_torch(model):
    import torch

    x, ids = torch.tensor(rows(len(IDS))["x"]), torch.tensor(IDS)

    def total(x, ids):
        return model({"x": x, "task": ids}).sum()

    whole = x.clone().requires_grad_()
    total(whole, ids).backward()
    expected = whole.grad.numpy()
    found = torch.func.grad(total)(x, ids)
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-5, atol=1e-5)
    each = torch.func.vmap(torch.func.grad(total))(x[:, None], ids[:, None])
    np.testing.assert_allclose(each.detach()[:, 0], expected, rtol=1e-5, atol=1e-5)
    # What is known is checked.
    with pytest.raises(ValueError, match="7"):
        torch.func.grad(total)(x, ids + 7)
