"""No exception loses a weight, whichever model ran and however far it had come.

On JAX, Keras' trainer takes the values out of the variables for its loops. The same
holds elsewhere, where nothing is taken out.
"""

import keras
import numpy as np
import pytest
from helpers.gemma import randomize, to_numpy
from helpers.models import make_mlp, rows

import keras_flix
from keras_flix import _compat

BACKEND = keras.config.backend()
pytestmark = pytest.mark.eager
FEATURES = {"task": ["qa", "parse"]}
Y = np.ones((4, 4), "float32")
SEVERAL = BACKEND != "torch" or keras.version() >= "3.16"
"""Whether Keras has several `steps_per_execution`."""
COLLECTS = BACKEND != "tensorflow" and keras.version() >= "3.16"
"""Whether Keras collects all batches of an execution before the first of its steps."""


def make(**options):
    model = make_mlp()
    keras_flix.enable_flix(model, FEATURES, rank=2, targets=["hidden"], seed=0)
    randomize(model).compile(keras.optimizers.Adam(0.1), loss="mse", **options)
    return model


def inputs(task="qa", count=4):
    return {**rows(count), "task": [task] * count}


def weights(model):
    return [to_numpy(v) for v in model.weights]


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def assert_alive(*models):
    """All variables have values, and the models go on."""
    for model in models:
        for variable in _compat.training_state(model):
            assert np.isfinite(to_numpy(variable)).all(), variable.path


def batches(good, task="nonsense"):
    for _ in range(good):
        yield inputs(), Y
    yield inputs(task), Y


class Interrupted(keras.callbacks.Callback):
    """Raises what Ctrl-C does, in one of its methods."""

    def __init__(self, name, batch=1):
        super().__init__()

        def method(*args, logs=None):
            if not args or args[0] >= batch:
                raise KeyboardInterrupt

        setattr(self, name, method)


@pytest.mark.parametrize("steps", [1, 3] if SEVERAL else [1])
@pytest.mark.parametrize("good", [0, 2])
def test_wrong_values_in_the_middle(good, steps):
    """With 3 steps per execution, Keras notes no state before the error."""
    ended = 0 if COLLECTS and good < steps else good
    model = make(steps_per_execution=steps)
    before = weights(model)
    with pytest.raises(ValueError, match="nonsense"):
        model.fit(batches(good), verbose=0)
    assert_alive(model)
    assert same(weights(model), before) == (ended == 0)
    # What ended before the error counts: the same as without it.
    if ended:
        other = make()
        other.fit(inputs(), Y, batch_size=4, epochs=ended, verbose=0)
        for one, two in zip(weights(model), weights(other), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
    before = weights(model)
    for name in ("evaluate", "predict"):
        with pytest.raises(ValueError, match="nonsense"):
            getattr(model, name)(batches(good), verbose=0)
        assert_alive(model)
        assert same(weights(model), before)
    model.fit(inputs(), Y, verbose=0)
    assert_alive(model)


@pytest.mark.parametrize(
    "name",
    ["on_train_batch_end", "on_epoch_end", "on_test_batch_end", "on_predict_batch_end"],
)
def test_an_interrupt_in_a_callback(name):
    model = make()
    before = weights(model)
    run = {"test": "evaluate", "predict": "predict"}.get(name.split("_")[1], "fit")
    args = (inputs(),) if run == "predict" else (inputs(), Y)
    batch = 0 if name == "on_epoch_end" else 1
    with pytest.raises(KeyboardInterrupt):
        getattr(model, run)(
            *args, batch_size=2, verbose=0, callbacks=[Interrupted(name, batch)]
        )
    assert_alive(model)
    assert same(weights(model), before) == (run != "fit")
    model.fit(inputs(), Y, verbose=0)


class Broken(keras.layers.Layer):
    """Raises while its model runs, as soon as it is told to."""

    broken = False

    def call(self, x):
        if self.broken:
            raise RuntimeError("broken")
        return x


def test_an_error_inside_of_a_step():
    keras.utils.set_random_seed(0)
    x = keras.Input((8,), name="x")
    layer = Broken()
    hidden = keras.layers.Dense(6, name="hidden")(layer(x))
    model = keras.Model({"x": x}, hidden)
    keras_flix.enable_flix(model, FEATURES, rank=2, targets=["hidden"], seed=0)
    randomize(model).compile("adam", loss="mse")
    before = weights(model)
    layer.broken = True
    y = np.ones((4, 6))
    for run in (
        # The first builds the optimizer, whose variables must survive, too.
        lambda: model.fit(inputs(), y, verbose=0),
        lambda: model.evaluate(inputs(), y, verbose=0),
        lambda: model.predict(inputs(), verbose=0),
        lambda: model.train_on_batch(inputs(), y),
        lambda: model.test_on_batch(inputs(), y),
        lambda: model.predict_on_batch(inputs()),
    ):
        with pytest.raises(RuntimeError, match="broken"):
            run()
        assert_alive(model)
        assert same(weights(model), before)
    layer.broken = False
    if BACKEND == "tensorflow":
        model.compile("adam", loss="mse")  # Keras' function is half traced.
    model.fit(inputs(), y, verbose=0)
    assert not same(weights(model), before)


def test_an_old_state_is_not_put_back():
    """Keras keeps that of `train_on_batch`, and assigns it when `fit` raises."""
    model = make()
    model.train_on_batch(inputs(), Y)
    randomize(model, seed=5)
    before = weights(model)
    with pytest.raises(ValueError, match="nonsense"):
        model.fit(batches(0), verbose=0)
    assert same(weights(model), before)


def test_models_over_the_layers():
    """Refused or not, they leave the adapted model its weights."""
    model = make()
    looks = keras.Model(model.input, model.get_layer("hidden").output)
    looks.compile("sgd", loss="mse")
    x = keras.Input((8,), name="x")
    task = keras.Input((), dtype="int32", name="task")
    around = keras.Model({"x": x, "task": task}, model({"x": x, "task": task}))
    around.compile("sgd", loss="mse")
    before = weights(model)
    y = np.ones((4, 6))
    for run in (
        lambda: looks.predict(rows(4), verbose=0),
        lambda: looks.evaluate(rows(4), y, verbose=0),
        lambda: looks.fit(rows(4), y, verbose=0),
        lambda: looks.train_on_batch(rows(4), y),
    ):
        with pytest.raises(ValueError, match=r"share_features\(model, other\)"):
            run()
        assert_alive(looks, model)
        assert same(weights(model), before)

    def failing():
        for _ in range(3):  # Keras looks at two before it begins.
            yield {**rows(4), "task": np.zeros(4, "int32")}, Y
        raise OSError("no more data")

    for name in ("evaluate", "predict"):
        with pytest.raises(Exception, match="no more data"):
            getattr(around, name)(failing(), verbose=0)
        assert_alive(around, model)
        assert same(weights(model), before)
    with pytest.raises(Exception, match="no more data"):
        around.fit(failing(), verbose=0)
    assert_alive(around, model)
    assert not same(weights(model), before)


def test_a_layer_of_its_own_in_a_plain_model():
    x = keras.Input((8,), name="x")
    layer = keras_flix.FlixDense(4, features=FEATURES, rank=2)
    task = keras.Input((), dtype="int32", name="task")
    outputs = layer(x, features={"task": task})
    model = keras.Model({"x": x, "task": task}, outputs)
    model.compile("sgd", loss="mse")

    def failing():
        for _ in range(3):
            yield {**rows(4), "task": np.zeros(4, "int32")}, Y
        raise OSError("no more data")

    with pytest.raises(Exception, match="no more data"):
        model.predict(failing(), verbose=0)
    assert_alive(model)


@pytest.mark.skipif(BACKEND != "jax", reason="only JAX' trainer donates the state")
@pytest.mark.parametrize("steps", [1, 3])
def test_an_interrupt_between_a_step_and_its_note(steps):
    """The step's result is there, and Keras has not seen it yet."""
    model = make(steps_per_execution=steps)
    model.make_train_function()
    step = model.train_function

    def interrupted(state, iterator):
        step(state, iterator)
        raise KeyboardInterrupt

    model.train_function = interrupted
    before = weights(model)
    y = np.ones((12, 4), "float32")
    runs = [lambda: model.fit(inputs(count=12), y, batch_size=4, verbose=0)]
    if steps == 1:  # Keras 3.16 takes it for the batch of several steps.
        runs.append(lambda: model.train_on_batch(inputs(), Y))
    for run in runs:
        with pytest.raises(KeyboardInterrupt):
            run()
        assert_alive(model)
        assert not same(weights(model), before)
        before = weights(model)


class NoThrees(keras.layers.Layer):
    """Refuses a batch of 3, which shows when a step is compiled for it."""

    def call(self, x):
        if x.shape[0] == 3:
            raise RuntimeError("three")
        return x


@pytest.mark.skipif(BACKEND != "jax", reason="only JAX' trainer donates the state")
def test_an_error_between_the_steps_of_one_execution():
    """Of the batches of 4, 4 and 3, those before the error count."""
    keras.utils.set_random_seed(0)
    x = keras.Input((8,), name="x")
    hidden = keras.layers.Dense(6, name="hidden")(NoThrees()(x))
    model = keras.Model({"x": x}, hidden)
    keras_flix.enable_flix(model, FEATURES, rank=2, targets=["hidden"], seed=0)
    randomize(model).compile("sgd", loss="mse", steps_per_execution=4)
    before = weights(model)
    with pytest.raises(RuntimeError, match="three"):
        model.fit(inputs(count=11), np.ones((11, 6)), batch_size=4, verbose=0)
    assert_alive(model)
    assert not same(weights(model), before)
    assert int(model.optimizer.iterations) == 2
    model.fit(inputs(), np.ones((4, 6)), batch_size=4, verbose=0)
    assert_alive(model)
