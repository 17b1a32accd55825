"""Mixed batches are as each example alone, or the model is refused."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_flix
from keras_flix.models.adapted.row_probe import order_of

pytestmark = pytest.mark.eager

FEATURES = {"task": ["p", "q"]}
TASKS = ["p", "q", "q", None]
SIZE = 4


class Rows(keras.Model):
    """A subclassed model: `function(layer, inputs)`, with a layer to adapt."""

    def __init__(self, function):
        super().__init__()
        self.encoder = keras.layers.Dense(SIZE, name="encoder")
        self.function = function

    def call(self, inputs):
        return self.function(self.encoder, inputs)


class Inside(keras.layers.Layer):
    """The same as a layer, for functional models."""

    def __init__(self, function):
        super().__init__()
        self.encoder = keras.layers.Dense(SIZE, name="encoder")
        self.function = function

    def build(self, _):
        self.encoder.build((None, SIZE))

    def call(self, x, y):
        return self.function(self.encoder, {"x": x, "y": y})


def inputs(seed=0):
    generator = np.random.default_rng(seed)
    shape = (len(TASKS), SIZE)
    return {k: generator.normal(size=shape).astype("float32") for k in ("x", "y")}


def subclassed(function):
    model = Rows(function)
    # Not a call: some of the models below have a batch of their own length.
    model.encoder.build((None, SIZE))
    model.built = True
    model._build_shapes_dict = {"inputs_shape": {k: (2, SIZE) for k in ("x", "y")}}
    return model


def functional(function):
    x, y = keras.Input((SIZE,), name="x"), keras.Input((SIZE,), name="y")
    return keras.Model({"x": x, "y": y}, Inside(function)(x, y))


def enabled(model, **kwargs):
    """The model with adapters that matter."""
    keras_flix.enable_flix(model, FEATURES, rank=2, targets=["encoder"], **kwargs)
    generator = np.random.default_rng(3)
    for table in model._adaptation.tables():
        table.variable.assign(generator.normal(size=table.variable.shape))
    return model


def orders(model):
    (layer,) = model._adaptation.layers.values()
    return sorted(layer.row_orders)


def call(model, x, tasks):
    return ops.convert_to_numpy(model({**x, "task": tasks}))


def check_exact(model, x=None, run=call):
    """A mixed batch is as each of its examples alone, and adapters matter."""
    x = inputs() if x is None else x
    mixed = run(model, x, TASKS)
    for i, task in enumerate(TASKS):
        alone = run(model, {k: v[i : i + 1] for k, v in x.items()}, [task])
        np.testing.assert_allclose(mixed[i : i + 1], alone, rtol=1e-4, atol=1e-5)
    other = run(model, x, ["q", "p", "p", "p"])
    assert (np.abs(mixed - other).reshape(len(mixed), -1).max(axis=1) > 1e-4).all()


# Models that are exact. -----------------------------------------------------


def pairs_concatenated(encoder, x):
    """Contrastive, as in the field report: all anchors, then all positives."""
    hidden = encoder(ops.concatenate([x["x"], x["y"]], axis=0))
    half = ops.shape(x["x"])[0]
    return hidden[:half] * hidden[half:]


def pairs_stacked(encoder, x):
    hidden = encoder(ops.reshape(ops.stack([x["x"], x["y"]], axis=1), (-1, SIZE)))
    return ops.reshape(hidden, (-1, 2, SIZE))


def pairs_stacked_before(encoder, x):
    hidden = encoder(ops.reshape(ops.stack([x["x"], x["y"]]), (-1, SIZE)))
    return ops.transpose(ops.reshape(hidden, (2, -1, SIZE)), (1, 0, 2))


def called_twice(encoder, x):
    return encoder(x["x"]) * encoder(x["y"])


def repeated(encoder, x):
    hidden = encoder(ops.repeat(x["x"], 3, axis=0))
    return ops.reshape(hidden, (-1, 3, SIZE)) + x["y"][:, None]


def one_row_for_all(encoder, x):
    return x["x"] + encoder(ops.ones((1, SIZE)))


def of_both_kinds(encoder, x):
    return encoder(x["x"]) + encoder(ops.ones((1, 1, SIZE)))[:, 0]


def from_zeros(encoder, x):
    """As a recurrent layer begins."""
    state = ops.ones_like(x["x"])
    for step in (x["x"], x["y"]):
        state = ops.tanh(encoder(state) + step)
    return state


def missing_filled_in(encoder, x):
    return encoder(ops.nan_to_num(x["x"])) * x["y"]


EXACT = {
    pairs_concatenated: ["tile"],
    pairs_stacked: ["repeat"],
    pairs_stacked_before: ["tile"],
    called_twice: ["batch"],
    repeated: ["repeat"],
    one_row_for_all: ["shared"],
    of_both_kinds: ["batch", "shared"],
    from_zeros: ["batch"],
    missing_filled_in: ["batch"],
}


@pytest.mark.parametrize("function", EXACT, ids=lambda f: f.__name__)
@pytest.mark.parametrize("make", [subclassed, functional])
def test_rows_of_known_order_are_exact(make, function):
    model = enabled(make(function))
    assert orders(model) == EXACT[function]
    check_exact(model)


def predict(model, x, tasks):
    return model.predict({**x, "task": tasks}, verbose=0, batch_size=3)


@pytest.mark.eager(False)
@pytest.mark.parametrize("function", [pairs_concatenated, repeated])
def test_compiled_and_with_an_incomplete_last_batch(function):
    check_exact(enabled(subclassed(function)), run=predict)


# Models that are refused. ----------------------------------------------------


def time_major(encoder, x):
    return ops.transpose(encoder(ops.stack([x["x"], x["y"]])), (1, 0, 2))


def flipped(encoder, x):
    return ops.flip(encoder(ops.flip(x["x"], axis=0)), axis=0)


def rolled(encoder, x):
    return ops.roll(encoder(ops.roll(x["x"], 1, axis=0)), -1, axis=0)


def sorted_by_length(encoder, x):
    order = ops.argsort(ops.sum(x["x"], axis=-1))
    return ops.take(encoder(ops.take(x["x"], order, axis=0)), ops.argsort(order), 0)


def pairs_mirrored(encoder, x):
    hidden = encoder(ops.concatenate([x["x"], ops.flip(x["y"], axis=0)], axis=0))
    half = ops.shape(x["x"])[0]
    return hidden[:half] * ops.flip(hidden[half:], axis=0)


def without_a_batch_axis(encoder, x):
    """Positions, say: as many as there are examples in the batch of the test."""
    return x["x"] + ops.mean(encoder(ops.ones((len(TASKS), SIZE))), axis=0)


def less_the_mean(encoder, x):
    return encoder(x["x"] - ops.mean(x["x"], axis=0))


def two_ways(encoder, x):
    return pairs_concatenated(encoder, x) + repeated(encoder, x)[:, 0]


def mapped(encoder, x):
    """Each example's rows are two tokens of it: as many as two examples have."""
    tokens = ops.stack([x["x"], x["y"]], axis=1)
    return ops.vectorized_map(encoder, tokens)


REFUSED = {
    time_major: "2 rows for a batch of 5, some of which depend on several examples",
    flipped: "5 rows for a batch of 5, which are those of the examples [4, 3, 2, 1, 0]",
    rolled: "which are those of the examples [4, 0, 1, 2, 3]",
    sorted_by_length: "5 rows for a batch of 5, ",
    pairs_mirrored: "10 rows for a batch of 5, which are those of the examples [0, 1, ",
    without_a_batch_axis: "4 rows for a batch of 5, some of which depend on no example",
    less_the_mean: "5 rows for a batch of 5, some of which depend on several examples",
    two_ways: "rows that are repeated in one call and tiled in another",
    mapped: "",
}


@pytest.mark.parametrize("function", REFUSED, ids=lambda f: f.__name__)
@pytest.mark.parametrize("make", [subclassed, functional])
def test_rows_of_other_orders_are_refused(make, function):
    model = make(function)
    plain = type(model)
    before = [(v.path, v.trainable) for v in model.variables]
    with pytest.raises(ValueError) as error:
        enabled(model)
    text = str(error.value)
    assert text.startswith("The rows of a target's input must be those of the batch: ")
    assert f"{REFUSED[function]}" in text
    assert "encoder', whose input has " in text
    assert "or state the order: `enable_flix(..., rows={" in text
    assert type(model) is plain
    assert not any("call" in vars(layer) for layer in model._flatten_layers())
    assert [(v.path, v.trainable) for v in model.variables] == before


def test_what_is_stated_holds():
    model = enabled(subclassed(less_the_mean), rows={"encoder": "batch"})
    assert orders(model) == ["batch"]
    x = inputs()
    mixed = call(model, x, TASKS)
    for value in ("p", "q"):
        own = [task == value for task in TASKS]
        np.testing.assert_allclose(
            mixed[own], call(model, x, value)[own], rtol=1e-5, atol=1e-5
        )


def test_calls_that_bring_features():
    """A model that knows better than any order."""

    def ragged(encoder, x):
        rows = ops.concatenate([x["x"], ops.flip(x["y"], axis=0)], axis=0)
        if not isinstance(encoder, keras_flix.FlixDense):
            return encoder(rows)[:1]
        ids = {"task": [0, 1, 1, -1, -1, 1, 1, 0]}
        hidden = encoder(rows, features=ids)
        return hidden[:4] * ops.flip(hidden[4:], axis=0)

    model = enabled(subclassed(ragged), rows={"enc.*|.*/encoder": None})
    expected = enabled(subclassed(pairs_concatenated))
    expected.set_weights(model.get_weights())
    x = inputs()
    np.testing.assert_allclose(
        call(model, x, TASKS), call(expected, x, TASKS), rtol=1e-5, atol=1e-5
    )
    model.function = pairs_concatenated
    with pytest.raises(ValueError, match="must bring its features. Received: none"):
        call(model, x, TASKS)


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ({"encodr": "batch"}, "'encodr', which matches none. The nearest are \\['enc"),
        ({"encoder": "batches"}, r"one or more of \['batch', 'repeat', 'tile', 'sha"),
        ({"encoder": ["tile", "repeat"]}, r"not both.*Received: \['repeat', 'tile'\]"),
    ],
)
def test_what_cannot_be_stated(rows, text):
    with pytest.raises(ValueError, match=text):
        enabled(subclassed(flipped), rows=rows)


# Models whose rows are others in training. --------------------------------------


class Trained(Rows):
    """Calls `function` in training, and looks at the rows as they are elsewhere."""

    def call(self, inputs, training=None):
        function = self.function if training else one_example_each
        return function(self.encoder, inputs)


def one_example_each(encoder, x):
    return encoder(x["x"]) * x["y"]


def with_dropout(encoder, x):
    return encoder(keras.random.dropout(x["x"], 0.5)) * x["y"]


def unlike_itself(encoder, x):
    """What it draws is nothing that Keras knows of."""
    noise = np.random.default_rng().normal(size=x["x"].shape)
    return encoder(x["x"] + ops.cast(noise, "float32"))


def cannot_be_tried(encoder, x):
    raise RuntimeError("not on these inputs")


def make_trained(function, known):
    model = Trained(function)
    model.encoder.build((None, SIZE))
    model.built = True
    if known:
        shapes = {k: (2, SIZE) for k in ("x", "y")}
        model._build_shapes_dict = {"inputs_shape": shapes}
    return enabled(model)


def train_on(model):
    model.compile("sgd", "mse")
    model.fit({**inputs(), "task": TASKS}, np.ones((4, SIZE)), verbose=0)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("function", [flipped, less_the_mean])
def test_rows_that_only_training_mixes_are_refused(function, known):
    with pytest.raises(ValueError) as error:
        train_on(make_trained(function, known))
    text = "whose input has, in training, 5 rows for a batch of 5, "
    assert text in str(error.value)


@pytest.mark.parametrize("known", [True, False])
def test_rows_of_training_are_known_besides(known):
    model = make_trained(pairs_concatenated, known)
    train_on(model)
    assert orders(model) == ["batch", "tile"]

    def trained(model, x, tasks):
        return ops.convert_to_numpy(model({**x, "task": tasks}, training=True))

    check_exact(model, run=trained)
    check_exact(model)


@pytest.mark.parametrize("function", [with_dropout, unlike_itself, cannot_be_tried])
def test_what_training_draws_is_no_other_example(function):
    assert orders(make_trained(function, known=True)) == ["batch"]


def test_what_is_frozen_by_then_mixes_nothing():
    x, y = keras.Input((SIZE,), name="x"), keras.Input((SIZE,), name="y")
    normed = keras.layers.BatchNormalization()(x)
    hidden = keras.layers.Dense(SIZE, name="encoder")(normed)
    model = enabled(keras.Model({"x": x, "y": y}, hidden * y))
    assert orders(model) == ["batch"]
    assert not model.layers[1].trainable


# When it is found out. ---------------------------------------------------------


class Unknown(Rows):
    """Does not tell its inputs before it is called."""


def make_unknown(function):
    model = Unknown(function)
    model.encoder.build((None, SIZE))
    model.built = True
    return enabled(model)


@pytest.mark.parametrize("run", [call, predict])
def test_the_first_batch_tells(run):
    model = make_unknown(pairs_concatenated)
    assert not model._adaptation.rows_known
    x = inputs()
    mixed = run(model, x, TASKS)
    assert model._adaptation.rows_known and orders(model) == ["tile"]
    expected = enabled(subclassed(pairs_concatenated))
    expected.set_weights(model.get_weights())
    np.testing.assert_allclose(mixed, call(expected, x, TASKS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("run", [call, predict])
def test_the_first_batch_is_refused(run):
    for function in (flipped, time_major):
        with pytest.raises(ValueError, match="The rows of a target's input must be"):
            run(make_unknown(function), inputs(), TASKS)


def test_an_input_without_a_batch_axis():
    def with_positions(encoder, x):
        return encoder(x["x"]) + ops.mean(encoder(x["y"]), axis=0)

    model = make_unknown(with_positions)
    with pytest.raises(ValueError, match="6 rows for a batch of 5, some of which dep"):
        call(model, {**inputs(), "y": np.ones((6, SIZE), "float32")}, TASKS)


def test_trying_changes_no_state():
    class Counting(keras.Model):
        def __init__(self):
            super().__init__()
            self.encoder = keras.layers.Dense(SIZE, name="encoder")
            self.count = self.add_weight(shape=(), name="count", trainable=False)
            self.seen = self.add_weight(shape=(SIZE,), name="seen", trainable=False)

        def call(self, x):
            self.count.assign(self.count + 1)
            self.seen.assign(ops.mean(x["x"], axis=0))
            return self.encoder(x["x"])

    model = Counting()
    model(inputs())
    before = [ops.convert_to_numpy(v).tolist() for v in (model.count, model.seen)]
    enabled(model)
    after = [ops.convert_to_numpy(v).tolist() for v in (model.count, model.seen)]
    assert after == before


# Random models. ----------------------------------------------------------------

STEPS = {
    "flip": (lambda x: ops.flip(x, axis=0),) * 2,
    "roll": (
        lambda x: ops.roll(x, 1, axis=0),
        lambda x: ops.roll(x, -1, axis=0),
    ),
    "repeat": (lambda x: ops.repeat(x, 2, axis=0), lambda x: x[::2]),
    "concatenate": (
        lambda x: ops.concatenate([x, x * 2], axis=0),
        lambda x: x[: ops.shape(x)[0] // 2],
    ),
    "halves": (
        lambda x: ops.reshape(x, (-1, ops.shape(x)[-1] // 2)),
        lambda x: ops.reshape(x, (-1, ops.shape(x)[-1] * 2)),
    ),
    "transpose": (lambda x: ops.transpose(x), lambda x: ops.transpose(x)),
    "scale": (lambda x: x * 3 + 1, lambda x: x),
    "flip in example": (lambda x: ops.flip(x, axis=-1),) * 2,
}


def drawn_model(seed):
    """Some steps, a layer, and the steps back: one row per example in the end."""
    generator = np.random.default_rng(seed)
    names = list(generator.choice(list(STEPS), size=generator.integers(1, 4)))

    def function(encoder, x):
        h = x["x"]
        for name in names:
            h = STEPS[name][0](h)
        # As wide as the encoder, whatever the steps have left of the width.
        width = ops.shape(h)[-1]
        h = encoder(ops.pad(h, ((0, 0), (0, max(SIZE - width, 0))))[:, :SIZE])
        h = ops.concatenate([h, h], axis=-1)[:, :width] if width <= 2 * SIZE else h
        for name in reversed(names):
            h = STEPS[name][1](h)
        return h

    return names, function


@pytest.mark.parametrize("seed", range(24))
def test_any_model_is_exact_or_refused(seed):
    names, function = drawn_model(seed)
    # Keras' symbolic inputs have no width that a transposed one could have.
    make = functional if seed % 2 and "transpose" not in names else subclassed
    try:
        model = enabled(make(function))
    except ValueError as error:
        assert "The rows of a target's input must be" in str(error), names
        assert {"flip", "roll", "transpose", "repeat", "concatenate"} & set(names)
        return
    x = inputs(seed=seed)
    mixed = call(model, x, TASKS)
    for i, task in enumerate(TASKS):
        alone = call(model, {k: v[i : i + 1] for k, v in x.items()}, [task])
        np.testing.assert_allclose(mixed[i : i + 1], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.short("torch")
@pytest.mark.parametrize(
    ("rows", "order"),
    [
        ([0, 1, 2], "batch"),
        ([0, 0, 1, 1, 2, 2], "repeat"),
        ([0, 1, 2, 0, 1, 2], "tile"),
        ([None], "shared"),
        ([0], None),
        ([-1], None),
        ([0, 1], None),
        ([None, None, None], None),
        ([0, 1, 2, 0], None),
        ([0, 1, 2, 2, 1, 0], None),
        ([0, 1, 2, None, None, None], None),
    ],
)
def test_order_of(rows, order):
    assert order_of(rows, 3) == order
