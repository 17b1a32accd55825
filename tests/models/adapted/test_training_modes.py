"""Every way to train gives the same adapters."""

import functools

import keras
import numpy as np
import pytest
from helpers.gemma import FEATURES, make_backbone, randomize, to_numpy
from helpers.models import make_mlp

import keras_flix

BACKEND = keras.config.backend()
RNG = np.random.default_rng(0)
X = {
    "token_ids": np.arange(40).reshape(8, 5).astype("int32"),
    "padding_mask": np.ones((8, 5), "int32"),
    "task": np.array([0, 1, 2, -1, 0, 0, 1, 2], "int32"),
    "language": np.array([2, 1, 0, 1, -1, 2, 2, 0], "int32"),
}
Y = RNG.normal(size=(8, 5, 16)).astype("float32")
# One epoch is four batches.
BATCH = 2


def adapted(dropout=0.0):
    keras.utils.set_random_seed(0)
    model = keras_flix.enable_flix(
        make_backbone(num_layers=1), FEATURES, rank=2, dropout=dropout, seed=1
    )
    return randomize(model)


def fitted(batch_size=BATCH, epochs=1, dropout=0.0, optimizer=None, **compiling):
    model = adapted(dropout)
    optimizer = keras.optimizers.SGD(0.5) if optimizer is None else optimizer
    model.compile(optimizer, loss="mse", **compiling)
    model.fit(X, Y, batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0)
    return model


def tables(model):
    return [to_numpy(v) for v in model.trainable_variables]


@pytest.fixture(scope="module")
def expected():
    before = tables(adapted())
    after = tables(fitted())
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(after, before))
    return after


def assert_equal(found, expected, atol=2e-6):
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, atol=atol)


@pytest.mark.support("Paths", "`steps_per_execution`")
def test_steps_per_execution(expected):
    try:
        found = tables(fitted(steps_per_execution=2))
    except ValueError as error:
        # Until 3.16.
        if "must be 1 with the PyTorch backend" not in str(error):
            raise
        pytest.skip("Keras has no `steps_per_execution` on PyTorch, and says so.")
    assert_equal(found, expected)


@pytest.mark.support("Paths", "`run_eagerly`")
def test_run_eagerly(expected):
    assert_equal(tables(fitted(run_eagerly=True)), expected)


@pytest.mark.support("Paths", "`jit_compile=False`")
def test_without_compilation(expected):
    assert_equal(tables(fitted(jit_compile=False)), expected)


@pytest.mark.slow
@pytest.mark.support("Paths", "`jit_compile=True` (XLA, `torch.compile`)")
def test_with_compilation(request, monkeypatch):
    # A small model: PyTorch takes a minute to compile a step of Gemma.
    if BACKEND == "torch" and not request.config.getoption("--full"):
        import torch

        # Traced, but not turned into C++.
        traced = functools.partial(torch.compile, backend="aot_eager")
        monkeypatch.setattr(torch, "compile", traced)
    rng = np.random.default_rng(0)
    x = {"x": rng.normal(size=(8, 8)), "task": X["task"], "language": X["language"]}
    y = rng.normal(size=(8, 4))

    def trained(jit_compile):
        model = make_mlp()
        keras_flix.enable_flix(model, FEATURES, rank=2, targets="all-linear", seed=1)
        before = tables(randomize(model))
        model.compile(keras.optimizers.SGD(0.5), loss="mse", jit_compile=jit_compile)
        model.fit(x, y, batch_size=4, epochs=2, shuffle=False, verbose=0)
        after = tables(model)
        assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(after, before))
        return after

    assert_equal(trained(True), trained(False))


@pytest.mark.support("Paths", "Gradient accumulation")
def test_gradient_accumulation():
    accumulating = keras.optimizers.SGD(0.5, gradient_accumulation_steps=2)
    found = tables(fitted(optimizer=accumulating))
    assert_equal(found, tables(fitted(batch_size=2 * BATCH)))


@pytest.mark.support("Paths", "EMA in the optimizer")
def test_ema(expected):
    momentum = 0.8
    model = adapted()
    model.compile(keras.optimizers.SGD(0.5), loss="mse")
    steps = []
    for x, y in batches():
        model.train_on_batch(x, y)
        steps.append(tables(model))
    assert_equal(steps[-1], expected)
    # Keras begins with what the first step makes.
    average = steps[0]
    for step in steps[1:]:
        average = [momentum * a + (1 - momentum) * s for a, s in zip(average, step)]
    # At the end of `fit`, Keras puts the averages in the variables' place.
    ema = keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=momentum)
    assert_equal(tables(fitted(optimizer=ema)), average)
    assert max(np.abs(a - b).max() for a, b in zip(average, expected)) > 1e-3


@pytest.mark.support("Paths", "Custom training loop")
@pytest.mark.parametrize(
    "dropout", [pytest.param(0.0, marks=pytest.mark.short("torch")), 0.5]
)
def test_custom_loop(dropout):
    model = adapted(dropout)
    model.optimizer = keras.optimizers.SGD(0.5)
    LOOPS[BACKEND](model)
    assert_equal(tables(model), tables(fitted(dropout=dropout)))


def batches():
    for start in range(0, 8, BATCH):
        part = slice(start, start + BATCH)
        yield {k: v[part] for k, v in X.items()}, Y[part]


def mean_square(y, outputs):
    return keras.ops.mean(keras.ops.square(outputs - y))


def loop_jax(model):
    import jax

    optimizer = model.optimizer
    optimizer.build(model.trainable_variables)

    def loss_of(trainable, others, x, y):
        outputs, others = model.stateless_call(trainable, others, x, training=True)
        return mean_square(y, outputs), others

    @jax.jit
    def step(trainable, others, state, x, y):
        compute = jax.value_and_grad(loss_of, has_aux=True)
        (_, others), gradients = compute(trainable, others, x, y)
        trainable, state = optimizer.stateless_apply(state, gradients, trainable)
        return trainable, others, state

    trainable = [v.value for v in model.trainable_variables]
    others = [v.value for v in model.non_trainable_variables]
    state = [v.value for v in optimizer.variables]
    for x, y in batches():
        trainable, others, state = step(trainable, others, state, x, y)
    for variable, value in zip(model.trainable_variables, trainable):
        variable.assign(value)


def loop_tensorflow(model):
    import tensorflow as tf

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = mean_square(y, model(x, training=True))
        variables = [v.value for v in model.trainable_variables]
        gradients = tape.gradient(loss, variables)
        model.optimizer.apply(gradients, model.trainable_variables)

    for x, y in batches():
        step({k: tf.constant(v) for k, v in x.items()}, tf.constant(y))


def loop_torch(model):
    import torch

    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    for x, y in batches():
        optimizer.zero_grad()
        outputs = model({k: torch.tensor(v) for k, v in x.items()}, training=True)
        mean_square(torch.tensor(y), outputs).backward()
        optimizer.step()


LOOPS = {"jax": loop_jax, "tensorflow": loop_tensorflow, "torch": loop_torch}


@pytest.mark.support("Paths", "Custom training loop")
def test_every_table_is_a_parameter_before_the_first_fit():
    model = adapted()
    if BACKEND != "torch":
        assert len(model.trainable_variables) == 4 * 2 * 2
        return
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    assert trainable == {id(v.value) for v in model.trainable_variables}


def adapted_mlp():
    keras.utils.set_random_seed(0)
    return randomize(
        keras_flix.enable_flix(
            make_mlp(), FEATURES, rank=2, targets="all-linear", seed=1
        )
    )


# Half a minute to a minute each; `fit` with compilation and the ids under PyTorch's
# tracer are tests of their own.
@pytest.mark.short()
@pytest.mark.slow
@pytest.mark.support("Paths", "`torch.compile`")
@pytest.mark.parametrize(
    "make, own",
    [
        pytest.param(adapted_mlp, {"x": Y[:, 0, :8]}, id="mlp"),
        pytest.param(
            adapted,
            {name: X[name] for name in ("token_ids", "padding_mask")},
            id="gemma",
        ),
    ],
)
def test_torch_compile(make, own):
    if BACKEND != "torch":
        pytest.skip("`torch.compile` is PyTorch's.")
    import torch

    model = make()
    x = {**own, "task": X["task"], "language": X["language"]}
    x = {k: torch.tensor(v) for k, v in x.items()}
    eager = to_numpy(model(x))
    # Traced, but not turned into C++, which would take minutes.
    compiled = torch.compile(model, backend="aot_eager")
    np.testing.assert_allclose(to_numpy(compiled(x)), eager, atol=1e-5)
    # Other ids, same shapes: not those of the trace.
    other = {**x, "task": torch.flip(x["task"], [0])}
    expected = to_numpy(model(other))
    np.testing.assert_allclose(to_numpy(compiled(other)), expected, atol=1e-5)
    assert np.abs(expected - eager).max() > 0.01
