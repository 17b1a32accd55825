"""Feature dropout: per example and axis, in training only, by seed."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_flix import Feature, FeatureDropout, FeatureSchema, FlixDense

RATES = {"task": 0.3, "language": 0.6, "shared": 0.5}
ADDS = {"task": 1.0, "language": 10.0, "shared": 100.0}
BATCH = 4000


def make_layer(rates=RATES, **options):
    """A layer whose output is the sum of what the axes that survive add."""
    features = [
        Feature("task", ["qa", "parse"], dropout=rates["task"]),
        Feature("language", ["en", "sw"], dropout=rates["language"], multiple=True),
        Feature("shared", always=True, dropout=rates["shared"]),
    ]
    layer = FlixDense(1, features=features, rank=1, use_bias=False, **options)
    layer.build((None, 1))
    layer.kernel.assign([[0.0]])
    for feature in features:
        a, b = layer._tables.variables[feature.name]
        a.assign(np.ones(a.shape))
        b.assign(np.full(b.shape, ADDS[feature.name]))
    return layer


def run(layer, training, positions=(), language=((0,),)):
    x = np.ones((BATCH, *positions, 1), "float32")
    ids = {"task": 0, "language": np.repeat(np.array(language), BATCH, axis=0)}
    return ops.convert_to_numpy(layer(x, features=ids, training=training))


def dropped(outputs):
    """By axis, whether it was dropped from each example."""
    digits = np.rint(outputs.reshape(BATCH, -1)[:, 0]).astype(int)
    return {
        "task": digits % 10 == 0,
        "language": digits // 10 % 10 == 0,
        "shared": digits // 100 == 0,
    }


@pytest.mark.parametrize("training", [False, None])
def test_nothing_is_dropped_outside_of_training(training):
    np.testing.assert_array_equal(run(make_layer(), training), 111.0)


def test_rates_are_probabilities_per_example_and_axis():
    found = dropped(run(make_layer(), True))
    for name, rate in RATES.items():
        # 5 standard deviations of a mean of 4000.
        assert abs(found[name].mean() - rate) < 5 * (rate * (1 - rate) / BATCH) ** 0.5
    for one, other in [
        ("task", "language"),
        ("task", "shared"),
        ("language", "shared"),
    ]:
        both = (found[one] & found[other]).mean()
        assert abs(both - RATES[one] * RATES[other]) < 0.04


def test_survivors_are_not_rescaled():
    outputs = np.unique(run(make_layer(), True))
    assert set(outputs.tolist()) == {0, 1, 10, 11, 100, 101, 110, 111}


def test_rescaled_survivors_count_more():
    rates = {
        "task": FeatureDropout(0.5, rescale=True),
        "language": FeatureDropout(0.75, rescale=True),
        "shared": FeatureDropout(0.8, rescale=True),
    }
    layer = make_layer(rates)
    outputs = run(layer, True)
    sums = {t + n + s for t in (0, 2) for n in (0, 40) for s in (0, 500)}
    found = {round(float(output), 2) for output in np.unique(outputs)}
    assert found == sums
    # The mean is what is added outside of training.
    deviation = np.sqrt(1 + 100 * 3 + 10_000 * 4)
    assert abs(outputs.mean() - 111) < 5 * deviation / BATCH**0.5
    np.testing.assert_array_equal(run(layer, False), 111.0)


def test_one_draw_per_batch():
    rates = {name: FeatureDropout(rate, per_batch=True) for name, rate in RATES.items()}
    layer = make_layer(rates)
    outputs = [np.unique(run(layer, True)) for _ in range(40)]
    assert all(len(output) == 1 for output in outputs)
    # Axes are drawn apart from each other: 40 batches show most of the 8 sums.
    assert len({float(output[0]) for output in outputs}) >= 5


@pytest.mark.parametrize(
    "dropout",
    [0.5, FeatureDropout(0.5, rescale=True), FeatureDropout(0.2, per_batch=True)],
)
def test_dropout_survives_a_config(dropout):
    schema = FeatureSchema({"task": ["qa"]}).resolve(dropout=dropout)
    again = FeatureSchema.from_config(schema.get_config())
    assert again == schema and again["task"].dropout == dropout


@pytest.mark.parametrize(
    "dropout, config",
    [
        (FeatureDropout(0.5), 0.5),
        (
            FeatureDropout(0.5, rescale=True),
            {"rate": 0.5, "rescale": True, "per_batch": False},
        ),
        (
            FeatureDropout(0.5, per_batch=True),
            {"rate": 0.5, "rescale": False, "per_batch": True},
        ),
    ],
)
def test_a_config_is_the_rate_where_all_else_is_as_usual(dropout, config):
    assert dropout.get_config() == config


def test_a_plain_dropout_is_a_number():
    assert Feature("task", ["qa"], dropout=FeatureDropout(0.5)).dropout == 0.5


def test_a_dropout_of_one_is_refused():
    with pytest.raises(ValueError) as error:
        FeatureDropout(1.0)
    assert str(error.value) == (
        "A dropout rate must be a number in [0, 1). Received: 1.0. Pass 0.0 for none."
    )


def test_all_positions_of_an_example_share_the_draw():
    outputs = run(make_layer(), True, positions=(3, 2))
    np.testing.assert_array_equal(
        outputs, np.broadcast_to(outputs[:, :1, :1], (BATCH, 3, 2, 1))
    )
    assert len(np.unique(outputs)) == 8


def test_all_values_of_a_multiple_axis_share_the_draw():
    rates = {"task": 0.0, "language": 0.5, "shared": 0.0}
    outputs = run(make_layer(rates), True, language=((0, 1),))
    assert set(np.unique(outputs).tolist()) == {101.0, 121.0}


def test_axes_without_a_rate_are_never_dropped():
    rates = {"task": 0.5, "language": 0.0, "shared": 0.0}
    found = dropped(run(make_layer(rates), True))
    assert found["task"].any()
    assert not found["language"].any() and not found["shared"].any()


def test_the_global_seed_reproduces_the_draws():
    def draws(seed):
        keras.utils.set_random_seed(seed)
        layer = make_layer()
        return [run(layer, True) for _ in range(2)]

    first, second = draws(5)
    assert not np.array_equal(first, second)
    for found, expected in zip(draws(5), (first, second)):
        np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(draws(6)[0], first)


def test_a_layer_without_dropout_has_no_seed_state():
    layer = make_layer(dict.fromkeys(RATES, 0.0))
    assert layer.non_trainable_variables == [layer.kernel]
    np.testing.assert_array_equal(run(layer, True), 111.0)


def test_fit_drops_and_predict_does_not():
    layer = make_layer()
    x = keras.Input((1,), name="x")
    ids = {
        "task": keras.Input((), dtype="int32", name="task"),
        "language": keras.Input((1,), dtype="int32", name="language"),
    }
    model = keras.Model({"x": x, **ids}, layer(x, features=ids))
    # The loss is the mean output: its expectation tells the rates.
    model.compile(
        keras.optimizers.SGD(0.0), loss=lambda y, y_pred: ops.mean(y_pred, axis=-1)
    )
    data = {
        "x": np.ones((BATCH, 1), "float32"),
        "task": np.zeros(BATCH, "int32"),
        "language": np.zeros((BATCH, 1), "int32"),
    }
    y = np.zeros((BATCH, 1), "float32")
    loss = model.fit(data, y, batch_size=BATCH, verbose=0).history["loss"][0]
    expected = sum(ADDS[name] * (1 - RATES[name]) for name in RATES)
    assert abs(loss - expected) < 5.0
    np.testing.assert_array_equal(model.predict(data, verbose=0), 111.0)
    assert model.evaluate(data, y, batch_size=BATCH, verbose=0) == 111.0
