"""Adapted models in the loops and transforms of other libraries, and of JAX."""

import keras
import numpy as np
import pytest
from helpers.gemma import FEATURES, randomize, to_numpy
from helpers.models import make_mlp, rows

import keras_flix

X = rows(4)["x"]
TASKS = ["qa", "parse", None, "list"]
NOT_DECLARED = "not among the packages of the extra `test`."


def only(backend):
    return pytest.mark.skipif(
        keras.config.backend() != backend, reason=f"Of {backend} only."
    )


def make(rank=2):
    model = keras_flix.enable_flix(
        make_mlp(), FEATURES, rank=rank, targets="all-linear", seed=1
    )
    return randomize(model)


def batch(own=X):
    return {"x": own, "task": TASKS, "language": ["sw", "en", "sw", None]}


# Loops on torch. -------------------------------------------------------------


def plainly(model, optimizer):
    return model, optimizer, lambda loss: loss.backward()


def with_accelerate(model, optimizer):
    accelerate = pytest.importorskip("accelerate", reason="peft brings it.")
    accelerator = accelerate.Accelerator(cpu=True)
    return *accelerator.prepare(model, optimizer), accelerator.backward


def with_fabric(model, optimizer):
    fabric = pytest.importorskip("lightning_fabric", reason=NOT_DECLARED)
    fabric = fabric.Fabric(accelerator="cpu", devices=1)
    return *fabric.setup(model, optimizer), fabric.backward


def trained_by(prepare):
    import torch

    model = make()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    module, optimizer, backward = prepare(model, optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        backward(module(batch(torch.tensor(X))).square().mean())
        optimizer.step()
    return [to_numpy(v) for v in model.variables]


@only("torch")
@pytest.mark.parametrize("prepare", [with_accelerate, with_fabric])
def test_loops_of_other_libraries_train_as_a_plain_one(prepare):
    found, expected = trained_by(prepare), trained_by(plainly)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    start = [to_numpy(v) for v in make().variables]
    moved = [(a != b).any() for a, b in zip(expected, start, strict=True)]
    # The tables, and not the base.
    assert moved == [v.trainable for v in make().variables]


# A search over options of `enable_flix`. -------------------------------------


@pytest.mark.short("torch")
def test_keras_tuner_finds_the_best_model_and_its_adapters(tmp_path):
    keras_tuner = pytest.importorskip("keras_tuner", reason=NOT_DECLARED)

    def build(hyperparameters):
        model = make(hyperparameters.Choice("rank", [1, 3]))
        model.compile(keras.optimizers.SGD(0.1), loss="mse", run_eagerly=True)
        return model

    tuner = keras_tuner.GridSearch(
        build, objective="loss", directory=tmp_path, overwrite=True
    )
    y = np.ones((4, 4), "float32")
    tuner.search(batch(), y, epochs=2, batch_size=4, verbose=0)
    best, worse = tuner.get_best_models(2)
    losses = [m.evaluate(batch(), y, verbose=0) for m in (best, worse)]
    assert losses[0] < losses[1]
    ranks = [m.get_layer("head").features["task"].ranks[0] for m in (best, worse)]
    assert sorted(ranks) == [1, 3]


# JAX. ------------------------------------------------------------------------


@only("jax")
def test_vmap_gives_each_example_its_own_values():
    import jax

    model = make()
    ids = model._adaptation.schema.encode({k: batch()[k] for k in FEATURES})

    def one(x, task, language):
        own = {"x": x[None], "task": task[None], "language": language[None]}
        return model(own)[0]

    found = jax.vmap(one)(X, ids["task"], ids["language"])
    np.testing.assert_allclose(found, model(batch()), rtol=0, atol=1e-6)
    tables = jax.vmap(one, in_axes=(None, 0, None))
    found = tables(X[0], ids["task"], ids["language"][0])
    for i, task in enumerate(TASKS):
        alone = model({"x": X[:1], "task": task, "language": "sw"})
        np.testing.assert_allclose(found[i], alone[0], rtol=0, atol=1e-6)


@only("jax")
def test_an_exported_function_takes_ids():
    import jax

    model = make()
    ids = model._adaptation.schema.encode({k: batch()[k] for k in FEATURES})
    shape = jax.export.symbolic_shape("examples, 8")

    def call(x, task, language):
        return model({"x": x, "task": task, "language": language})

    one = jax.ShapeDtypeStruct(shape[:1], "int32")
    exported = jax.export.export(jax.jit(call))(
        jax.ShapeDtypeStruct(shape, "float32"), one, one
    )
    loaded = jax.export.deserialize(exported.serialize())
    for count in (4, 3):
        own = {name: value[:count] for name, value in ids.items()}
        expected = model({"x": X[:count], **own})
        found = loaded.call(X[:count], own["task"], own["language"])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    # An id that stands for no value, of one feature and of the other.
    odd = loaded.call(
        X[:3], np.array([0, 3, 1], "int32"), np.array([-2, 0, 1], "int32")
    )
    assert np.isnan(odd).all(axis=1).tolist() == [True, True, False]
