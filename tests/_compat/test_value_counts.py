"""Steps that are counted by value: each value has an optimizer of its own."""

import keras
import numpy as np
import pytest
from helpers.gemma import to_numpy
from helpers.models import make_mlp, rows

import keras_flix
from keras_flix import _compat

USERS = ["ann", "bob", "cat", "dan"]
ORDER = ["ann", "ann", "bob", "ann", "cat", "bob", "ann", "cat", "dan", "bob"]
SCHEDULES = {
    "none": lambda: 0.03,
    "at once": lambda: keras.optimizers.schedules.ExponentialDecay(0.03, 2, 0.5),
    "one by one": lambda: keras.optimizers.schedules.CosineDecay(
        0.0, 4, warmup_target=0.05, warmup_steps=2
    ),
}
PAIRS = {
    "adam": (keras_flix.LazyAdam, keras.optimizers.Adam),
    "sgd": (keras_flix.LazySGD, keras.optimizers.SGD),
}


def model_of(users, **kwargs):
    """The same start for each user, whatever others there are."""
    model = keras_flix.enable_flix(
        make_mlp(), {"user": users}, rank=2, targets="all-linear", seed=0, **kwargs
    )
    generator = np.random.default_rng(0)
    for variable in model.trainable_variables:
        start = generator.normal(size=variable.shape[1:]).astype("float32") / 3
        # As in every training: the first gradients of `A` are zero.
        start = start * (not variable.name.endswith("_b"))
        variable.assign(np.broadcast_to(start, variable.shape))
    return model


def batches(order=ORDER):
    generator = np.random.default_rng(1)
    for user in order:
        x = {name: generator.normal(size=v.shape) for name, v in rows(4).items()}
        yield user, x, generator.normal(size=(4, 4)).astype("float32")


def train(model, optimizer, only=None, order=ORDER):
    model.compile(optimizer, loss="mse")
    for user, x, y in batches(order):
        if only in (None, user):
            model.train_on_batch({**x, "user": [user] * 4}, y)
    return model


def row_of(model, user):
    row = keras_flix.schema_of(model)["user"].id_of(user)
    return [to_numpy(v)[row] for v in model.trainable_variables]


@pytest.mark.parametrize(
    ("kind", "schedule"),
    [("adam", "none"), ("adam", "at once"), ("adam", "one by one"), ("sgd", "at once")],
)
def test_each_value_is_trained_as_if_it_were_alone(kind, schedule):
    """With Keras' own optimizer, in a model of that user's own."""
    lazy, keras_own = PAIRS[kind]
    optimizer = lazy(SCHEDULES[schedule](), step_counts="value")
    together = train(model_of(USERS), optimizer)
    users = ["bob", "cat"] if keras.config.backend() != "torch" else USERS
    for user in users:
        alone = train(model_of([user]), keras_own(SCHEDULES[schedule]()), only=user)
        found, expected = row_of(together, user), row_of(alone, user)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)
    counts = {user: ORDER.count(user) for user in USERS}
    assert keras_flix.step_counts(together, "user") == counts


def test_with_one_count_for_all_it_is_another_training():
    """What the option changes: else the test above would show nothing."""
    made = {
        how: train(model_of(USERS), keras_flix.LazyAdam(0.03, step_counts=how))
        for how in ("all", "value")
    }
    # Only `B` has moved, in the ninth step of all, which was dan's first.
    shared, own = (
        max(float(np.abs(x).max()) for x in row_of(model, "dan") if x.shape[0] == 2)
        for model in made.values()
    )
    correction = np.sqrt(1 - 0.999**9) / (1 - 0.9**9)
    assert own == pytest.approx(0.03, rel=1e-3)
    assert shared == pytest.approx(0.03 * correction * 0.1 / 0.001**0.5, rel=1e-3)


@pytest.mark.parametrize("way", ["rows", "dense", "one by one"])
def test_all_ways_of_an_update_count_alike(way, monkeypatch):
    module = __import__(_compat.LazyRows.__module__, fromlist=["SMALL"])
    monkeypatch.setattr(module, "SMALL", 0)
    monkeypatch.setattr(module, "ONE_BY_ONE", way == "one by one")
    users = [*USERS, *(f"u{i}" for i in range(20))]
    more = {"clipvalue": 1e9} if way == "dense" else {}
    schedule = SCHEDULES["one by one"]()
    optimizer = keras_flix.LazyAdam(schedule, step_counts="value", **more)
    model = model_of(users)
    model.compile(optimizer, loss="mse")
    for _, x, y in batches(ORDER[:3]):
        model.train_on_batch({**x, "user": ["ann", "bob", None, "ann"]}, y)
    counts = keras_flix.step_counts(model, "user")
    assert {u: n for u, n in counts.items() if n} == {"ann": 3, "bob": 3}
    before = row_of(model, "cat")
    keras_flix.limit_steps(model, {"user": {"ann": 3}})
    ann = row_of(model, "ann")
    for _, x, y in batches(ORDER[:2]):
        model.train_on_batch({**x, "user": ["ann", "bob", "u7", "ann"]}, y)
    assert keras_flix.step_counts(model, "user")["bob"] == 5
    for one, other in zip(row_of(model, "ann"), ann, strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(row_of(model, "cat"), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_value_whose_rate_is_zero_is_not_counted():
    model = model_of(USERS)
    keras_flix.set_learning_rates(model, {"user": {"ann": 0}})
    train(model, keras_flix.LazyAdam(0.1, step_counts="value"), order=ORDER[:3])
    expected = {"ann": 0, "bob": 1, "cat": 0, "dan": 0}
    assert keras_flix.step_counts(model, "user") == expected


def test_steps_are_not_compiled_again(monkeypatch):
    """Positions and limits are the optimizer's state, no constants of the step."""
    traced = []
    original = keras_flix.LazyAdam.new_rows

    def spy(self, *args, **kwargs):
        traced.append(1)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(keras_flix.LazyAdam, "new_rows", spy)
    schedule = SCHEDULES["one by one"]()
    optimizer = keras_flix.LazyAdam(schedule, step_counts="value")
    model = train(model_of(USERS), optimizer, order=ORDER[:2])
    count = len(traced)
    keras_flix.limit_steps(model, {"user": {"ann": 3, "*": 1}})
    for user, x, y in batches(ORDER[2:]):
        model.train_on_batch({**x, "user": [user] * 4}, y)
    expected = {"ann": 3, "bob": 1, "cat": 1, "dan": 1}
    assert keras_flix.step_counts(model, "user") == expected
    if keras.config.backend() != "torch":
        assert len(traced) == count


def test_weight_decay_and_averages_are_refused():
    for more in ({"weight_decay": 0.1}, {"use_ema": True}):
        with pytest.raises(ValueError, match="what has no gradient must stay"):
            keras_flix.LazyAdam(0.1, step_counts="value", **more)
    model = model_of(USERS)
    keras_flix.set_learning_rates(model, weight_decay=0.1)
    before = row_of(model, "ann")
    with pytest.raises(ValueError, match="what has no gradient must stay"):
        train(model, keras_flix.LazyAdam(0.1, step_counts="value"), order=ORDER[:1])
    for one, other in zip(row_of(model, "ann"), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_counts_are_saved_and_loaded(tmp_path):
    def made():
        model = model_of(USERS)
        schedule = SCHEDULES["at once"]()
        model.compile(keras_flix.LazyAdam(schedule, step_counts="value"), loss="mse")
        return model

    model = made()
    for user, x, y in batches():
        model.train_on_batch({**x, "user": [user] * 4}, y)
    keras_flix.limit_steps(model, {"user": {"ann": 5}})
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    whole = keras.models.load_model(tmp_path / "model.keras")
    weights = made()
    weights.optimizer.build(weights.trainable_variables)
    weights.load_weights(tmp_path / "model.weights.h5")
    for user, x, y in batches(["ann", "bob", "ann"]):
        for one in (model, whole, weights):
            one.train_on_batch({**x, "user": [user] * 4}, y)
    counts = {user: ORDER.count(user) for user in USERS}
    counts |= {"ann": 5, "bob": counts["bob"] + 1}
    for one in (model, whole, weights):
        assert keras_flix.step_counts(one, "user") == counts
        for user in USERS:
            for a, b in zip(row_of(one, user), row_of(model, user), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_new_values_begin_at_zero_and_others_go_on():
    model = train(model_of(USERS), keras_flix.LazyAdam(0.1, step_counts="value"))
    keras_flix.limit_steps(model, {"user": {"ann": 5, "cat": 9}})
    keras_flix.add_values(model, "user", ["eve"])
    keras_flix.remove_values(model, "user", ["bob"])
    expected = {user: ORDER.count(user) for user in USERS if user != "bob"}
    assert keras_flix.step_counts(model, "user") == {**expected, "eve": 0}
    for user, x, y in batches(["ann", "eve", "ann", "eve"]):
        model.train_on_batch({**x, "user": [user] * 4}, y)
    expected |= {"ann": 5, "eve": 2}
    assert keras_flix.step_counts(model, "user") == expected
