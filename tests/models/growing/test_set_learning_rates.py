"""`set_learning_rates`: each table and row as under an optimizer of its own rate."""

import copy
import json

import keras
import numpy as np
import pytest
from helpers.gemma import to_numpy
from helpers.growing import (
    DATA,
    FEATURES,
    OPTIMIZERS,
    SLOW,
    Y,
    apply,
    small,
    step,
    tables,
)
from helpers.models import make_mlp

import keras_flix
from keras_flix import _compat
from keras_flix.models.adapted.learning_rates import Rates

RATE, FACTOR = 0.03125, 4.0
"""Powers of two: their product is exact."""
MAKERS = {
    "adam": lambda rate, **more: keras.optimizers.Adam(rate, amsgrad=True, **more),
    "adamw": lambda rate: keras.optimizers.AdamW(rate, weight_decay=0.25),
    "sgd": keras.optimizers.SGD,
    "sgd with momentum": lambda rate: keras.optimizers.SGD(rate, momentum=0.5),
    "nesterov": lambda rate: keras.optimizers.SGD(rate, momentum=0.5, nesterov=True),
    "rmsprop": lambda rate: keras.optimizers.RMSprop(rate, momentum=0.5, centered=True),
    "adagrad": keras.optimizers.Adagrad,
    "adadelta": keras.optimizers.Adadelta,
    "adamax": keras.optimizers.Adamax,
    "nadam": keras.optimizers.Nadam,
    "lion": lambda rate: keras.optimizers.Lion(rate, weight_decay=0.25),
    "ftrl": keras.optimizers.Ftrl,
    "lamb": keras.optimizers.Lamb,
    "adafactor": keras.optimizers.Adafactor,
    "muon": lambda rate: keras.optimizers.Muon(rate, adam_weight_decay=0.25),
    "schedule free": keras.optimizers.ScheduleFreeAdamW,
    "lazy adam": keras_flix.LazyAdam,
    "lazy adam with decay": lambda rate: keras_flix.LazyAdam(rate, weight_decay=0.25),
    "lazy sgd": lambda rate: keras_flix.LazySGD(rate, momentum=0.5, nesterov=True),
    "loss scale": lambda rate: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(rate), initial_scale=4.0
    ),
    "accumulated": lambda rate: keras.optimizers.Adam(
        rate, gradient_accumulation_steps=2
    ),
    "averages": lambda rate: keras.optimizers.Adam(rate, use_ema=True),
    "schedule": lambda rate: keras.optimizers.Adam(
        keras.optimizers.schedules.ExponentialDecay(rate, 2, 0.5)
    ),
}
WHOLE_TABLES = ("lamb", "adafactor")
"""Those that look at the norm of a whole table: a row is not on its own."""


def cases(names):
    """Optimizers as parameters: a backend runs some, and PyTorch all."""
    pairs = pytest.mark.pairs("rates of optimizers")
    return [
        pytest.param(name, marks=[pairs, *[pytest.mark.slow] * (name in SLOW)])
        for name in names
    ]


def made(name, rate, **more):
    model = small(trained=False)
    model.compile(MAKERS[name](rate, **more), loss="mse")
    return model


def stepped(model, count=2, seed=0):
    return step(model, [tuple(v.shape) for v in model.trainable_variables], count, seed)


@pytest.mark.support(
    "Life of an adapter", "`set_learning_rates`, with every optimizer of Keras"
)
@pytest.mark.parametrize("name", cases(MAKERS))
def test_as_under_an_optimizer_of_that_rate(name):
    """A feature, a value, `A` and `B`, each with a rate of its own, in one model."""
    slow, fast = (stepped(made(name, r)) for r in (RATE, RATE * FACTOR))
    model = made(name, RATE)
    rows = name not in WHOLE_TABLES
    by_value = {"sw": FACTOR, "*": 1} if rows else {}
    factors = {"task": FACTOR, "language": by_value}
    keras_flix.set_learning_rates(model, factors, a={"task": 1 / FACTOR})
    found, slow, fast = (
        tables(stepped(m)) if m is model else tables(m) for m in (model, slow, fast)
    )
    exact = {"rtol": 2e-5, "atol": 2e-6} if rows else {"rtol": 0, "atol": 0}
    for path, new in found.items():
        if path.endswith("task_a"):
            np.testing.assert_allclose(new, slow[path], err_msg=path, **exact)
        elif path.endswith("task_b"):
            np.testing.assert_allclose(new, fast[path], err_msg=path, **exact)
        elif rows:
            np.testing.assert_allclose(new[0], slow[path][0], err_msg=path, **exact)
            np.testing.assert_allclose(new[1], fast[path][1], err_msg=path, **exact)
            assert np.abs(fast[path][1] - slow[path][1]).max() > 1e-4


@pytest.mark.parametrize("name", ["adam", "adamw", "nadam", "sgd", "lazy adam"])
def test_of_whole_features_it_is_exact(name):
    """In one step, bit by bit: the same operations with another rate."""
    slow, fast = (tables(stepped(made(name, r), 1)) for r in (RATE, RATE * FACTOR))
    model = made(name, RATE)
    keras_flix.set_learning_rates(model, {"task": FACTOR})
    found = tables(stepped(model, 1))
    for path, new in found.items():
        expected = fast if "task" in path else slow
        np.testing.assert_array_equal(new, expected[path], err_msg=path)


def test_with_sgd_the_update_is_multiplied():
    model, plain = made("sgd", RATE), made("sgd", RATE)
    before = tables(plain)
    keras_flix.set_learning_rates(model, {"language": {"en": 0.5}})
    found, once = tables(stepped(model, 1)), tables(stepped(plain, 1))
    for path, old in before.items():
        factor = np.array([0.5, 1.0] if "language" in path else [1.0, 1.0])
        update = factor[:, None, None] * (once[path].astype("float64") - old)
        np.testing.assert_allclose(found[path] - old, update, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", cases(OPTIMIZERS))
def test_a_factor_of_zero_freezes_bit_by_bit(name):
    model = small(name)
    keras_flix.set_learning_rates(model, {"task": {"qa": 0}}, a={"language": 0})
    before = tables(model)
    state = slots_of(model)
    stepped(model, 4)
    model.optimizer.finalize_variable_values(model.trainable_variables)
    for path, new in tables(model).items():
        still = slice(0, 1) if "task" in path else slice(0, 2 * path.endswith("_a"))
        moves = slice(still.stop, None)
        np.testing.assert_array_equal(new[still], before[path][still], err_msg=path)
        assert (new[moves] != before[path][moves]).any(axis=(1, 2)).all(), path
    if name == "adam":
        # With what it holds: another factor goes on from there.
        for old, new in zip(state, slots_of(model), strict=True):
            if old.shape[1:] == (6, 2) and np.array_equal(old[0], new[0]):
                break
        else:
            raise AssertionError("no moments stayed")


@pytest.mark.parametrize("name", ["ftrl", "schedule free", "lamb"])
def test_zero_is_no_number_to_divide_by(name):
    model = made(name, RATE)
    keras_flix.set_learning_rates(model, {"task": {"qa": 0}})
    before = tables(model)
    for path, new in tables(stepped(model)).items():
        assert np.isfinite(new).all()
        same = (new == before[path]).all(axis=(1, 2)).tolist()
        assert same == ["task" in path, False], path


def slots_of(model):
    return [to_numpy(v) for v in model.optimizer.variables]


@pytest.mark.parametrize("lazy", [False, True])
def test_frozen_by_zero_in_training(lazy):
    make = keras_flix.LazyAdam if lazy else keras.optimizers.Adam
    model = small(trained=False)
    model.compile(make(0.05), loss="mse")
    keras_flix.set_learning_rates(model, {"language": {"en": 0, "sw": 2}}, b=16)
    before = tables(model)
    model.fit(DATA, Y, batch_size=6, epochs=2, verbose=0)
    after = tables(model)
    for path in before:
        moved = (after[path] != before[path]).any(axis=(1, 2)).tolist()
        assert moved == ([False, True] if "language" in path else [True, True]), path
    if lazy:
        assert not hasattr(model.optimizer.apply, "guards")
        for slots in model.optimizer.row_slots():
            for variable, slot in zip(model.trainable_variables, slots):
                if "language" in variable.path:
                    assert not to_numpy(slot)[0].any() and to_numpy(slot)[1].any()


def test_fit_and_single_batches_and_own_loops_agree():
    def compiled():
        model = small(trained=False)
        model.compile(keras.optimizers.SGD(RATE), loss="mse")
        factors = {"task": {"qa": 3}, "language": 0.5}
        return keras_flix.set_learning_rates(model, factors, b=2, weight_decay=0.5)

    one, two = compiled(), compiled()
    start = tables(one)
    one.fit(DATA, Y, batch_size=6, shuffle=False, verbose=0)
    two.train_on_batch(DATA, Y)
    plain = small(trained=False)
    plain.compile(keras.optimizers.SGD(RATE), loss="mse")
    plain.train_on_batch(DATA, Y)
    gradients = {p: (start[p] - new) / RATE for p, new in tables(plain).items()}
    for path, old in start.items():
        rows = np.array([3.0, 1.0] if "task" in path else [0.5, 0.5])[:, None, None]
        rate = RATE * rows * (2 if path.endswith("_b") else 1)
        expected = old * (1 - rate * 0.5) - rate * gradients[path]
        for model in (one, two):
            np.testing.assert_allclose(tables(model)[path], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["adam", "sgd with momentum", "lazy adam", "lazy sgd"])
def test_weight_decay_of_adapters_alone(name):
    """Decoupled: with a gradient of zero, all that happens to fresh moments."""
    model = made(name, RATE)
    head = model.get_layer("head")
    head.bias.trainable = True
    model.compile(MAKERS[name](RATE), loss="mse")
    head.bias.assign(np.ones(4))
    factors = {"task": {"qa": 2}}
    keras_flix.set_learning_rates(model, factors, weight_decay={"task": 0.5})
    before = tables(model)
    zeros = [keras.ops.zeros(v.shape) for v in model.trainable_variables]
    apply(model.optimizer, zeros, model.trainable_variables)
    for path, old in before.items():
        rows = np.array([2.0, 1.0] if "task" in path else [0, 0])[:, None, None]
        expected = old * (1 - 0.5 * RATE * rows)
        np.testing.assert_allclose(tables(model)[path], expected, rtol=1e-6, atol=0)
    np.testing.assert_array_equal(to_numpy(head.bias), np.ones(4))


@pytest.mark.support(
    "Life of an adapter", "`set_learning_rates`, with every optimizer of Keras"
)
@pytest.mark.parametrize("name", ["adamw", "muon", "lazy adam with decay"])
def test_the_optimizers_weight_decay_is_off_for_adapters(name):
    model, plain = made(name, RATE), made(name, RATE)
    keras_flix.set_learning_rates(model, weight_decay=0)
    before = tables(model)
    for one in (model, plain):
        zeros = [keras.ops.zeros(v.shape) for v in one.trainable_variables]
        apply(one.optimizer, zeros, one.trainable_variables)
    for path, old in before.items():
        np.testing.assert_array_equal(tables(model)[path], old)
        expected = old * (1 - 0.25 * RATE)
        np.testing.assert_allclose(tables(plain)[path], expected, rtol=1e-6, atol=0)


def test_what_an_optimizer_excludes_from_decay_stays_excluded():
    model = small(trained=False)
    optimizer = keras.optimizers.AdamW(RATE, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["flix_task"])
    model.compile(optimizer, loss="mse")
    keras_flix.set_learning_rates(model, 2.0)
    before = tables(model)
    zeros = [keras.ops.zeros(v.shape) for v in model.trainable_variables]
    apply(model.optimizer, zeros, model.trainable_variables)
    for path, old in before.items():
        expected = old * (1 - (0 if "task" in path else RATE))
        np.testing.assert_allclose(tables(model)[path], expected, rtol=1e-6, atol=0)


def test_one_call_takes_the_place_of_another_and_none_undoes_it():
    model, plain = made("adam", RATE), made("adam", RATE)
    keras_flix.set_learning_rates(model, 3.0, b=2.0, weight_decay=0.5)
    assert all("update_step" in vars(o) for o in [model.optimizer])
    keras_flix.set_learning_rates(model, {"task": {}})
    keras_flix.set_learning_rates(model)
    assert model._adaptation.rates is None
    assert not {"update_step", "_parallel_update_step"} & set(vars(model.optimizer))
    for found, expected in zip(
        tables(stepped(model)).values(), tables(stepped(plain)).values(), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_it_follows_names_values_and_ranks():
    model = small(trained=False)
    model.compile(keras.optimizers.SGD(1.0), loss="mse")
    factors = {"language": {"en": 2, "sw": 0.5}}
    # One number is for all, whatever comes later.
    keras_flix.set_learning_rates(model, 2.0)
    later = model._adaptation.rates.narrowed(model._adaptation.schema)
    assert later.of(keras_flix.Feature("later", ["x"]), "b").factor == 2
    assert str(later) == "all 2"
    keras_flix.set_learning_rates(model, factors, b=4)
    stepped(model, 1)
    keras_flix.rename_value(model, "language", "sw", "ki")
    keras_flix.add_values(model, "language", ["rw"], rank=3)
    keras_flix.remove_values(model, "language", ["en"])
    keras_flix.add_feature(model, keras_flix.Feature("domain", ["web"]))
    ones = [keras.ops.ones(v.shape) for v in model.trainable_variables]
    before = {v.path: to_numpy(v).copy() for v in model.trainable_variables}
    apply(model.optimizer, ones, model.trainable_variables)
    for variable in model.trainable_variables:
        moved = (before[variable.path] - to_numpy(variable))[:, 0, 0]
        part = 4 if variable.path.endswith("_b") else 1
        rows = [0.5, 1.0] if "language" in variable.path else [1.0] * len(moved)
        np.testing.assert_allclose(moved, np.array(rows) * part, rtol=1e-5)
    assert model._adaptation.rates.factors == {"language": {"ki": 0.5}}


@pytest.mark.parametrize("kind", ["keras", "copy", "compiled again"])
def test_it_stays(kind, tmp_path):
    model = small(trained=False)
    model.compile(keras.optimizers.SGD(RATE, momentum=0.5), loss="mse")
    factors = {"language": {"en": 0, "sw": 2}}
    keras_flix.set_learning_rates(model, factors, b=4, weight_decay={"task": 0.25})
    model.train_on_batch(DATA, Y)
    if kind == "copy":
        found = copy.deepcopy(model)
    elif kind == "keras":
        model.save(tmp_path / "model.keras")
        found = keras.models.load_model(tmp_path / "model.keras")
    else:
        model.compile(keras.optimizers.SGD(RATE, momentum=0.5), loss="mse")
        found = model
    assert found._adaptation.rates == model._adaptation.rates
    if kind == "compiled again":
        before = tables(found)
        found.train_on_batch(DATA, Y)
        assert not (
            tables(found)["head/flix_language_b"] != before["head/flix_language_b"]
        )[0].any()
        return
    assert found.optimizer is not model.optimizer
    # Also without a training method of the model between.
    for one in (model, found):
        stepped(one, 2, seed=5)
    for path, value in tables(model).items():
        np.testing.assert_array_equal(tables(found)[path], value, err_msg=path)


def test_integer_values_survive_json():
    rates = Rates({"level": {3: 0.5, "*": 2.0}}, {"*": 1.0}, {"level": 4.0}, {})
    assert Rates.from_config(json.loads(json.dumps(rates.get_config()))) == rates


def test_frozen_values_stay_where_rates_decay_a_lazy_optimizer():
    """In a loop of one's own too, which nothing prepares anew."""
    model = small(trained=False)
    model.compile(keras_flix.LazyAdam(0.05), loss="mse")
    keras_flix.set_trainable(model, {"language": ["sw"]})
    keras_flix.set_learning_rates(model, weight_decay=0.5)
    before = tables(model)
    zeros = [keras.ops.zeros(v.shape) for v in model.trainable_variables]
    apply(model.optimizer, zeros, model.trainable_variables)
    for path, found in tables(model).items():
        moved = [not np.array_equal(*rows) for rows in zip(found, before[path])]
        assert moved == ([False, True] if "language" in path else [False, False])


@pytest.mark.parametrize("built", [True, False])
def test_several_optimizers_of_one_model(built):
    inner = [keras.optimizers.SGD(RATE), keras.optimizers.SGD(2 * RATE)]
    model = small(trained=False)
    optimizer = keras.optimizers.MultiOptimizer(
        lambda variable: inner["language" in variable.path]
    )
    if built:
        optimizer.build(model.trainable_variables)
    # Else it does not know them yet.
    keras_flix.set_trainable(model, None)
    model.compile(optimizer, loss="mse")
    keras_flix.set_learning_rates(model, 2.0, b=2.0)
    before = tables(model)
    ones = [keras.ops.ones(v.shape) for v in model.trainable_variables]
    optimizer.apply(ones, model.trainable_variables)
    for path, old in before.items():
        rate = (
            RATE * (2 if "language" in path else 1) * 2 * (2 if path[-1] == "b" else 1)
        )
        np.testing.assert_allclose(old - tables(model)[path], rate, rtol=1e-4)


def test_the_summary_tells():
    model = small(trained=False)
    factors = {"language": {"en": 0, "*": 2}, "task": 0.5}
    keras_flix.set_learning_rates(model, factors, b=16, weight_decay={"task": 0})
    lines = []
    found = keras_flix.flix_summary(model, print_fn=lines.append)
    assert (
        "Learning rates, as factors: language=en 0, language 2, task 0.5, B 16, weight "
        "decay of task 0."
    ) in lines
    everything = sum(v.size for v in tables(model).values())
    frozen = sum(v[0].size for p, v in tables(model).items() if "language" in p)
    assert found.trainable == everything - frozen


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({"factors": {"lang": 2}}, "must be one of the model's: ['task', 'language']."),
        ({"factors": {"language": {"xx": 2}}}, "Received: language='xx'."),
        ({"factors": {"language": {None: 2}}}, "must be of values. Received: None"),
        ({"factors": {"task": {float("nan"): 2}}}, "must be of values. Received: nan"),
        ({"factors": {"task": -1}}, "at least 0. Received: factors['task']=-1. 1 leav"),
        ({"factors": {"task": {"qa": float("nan")}}}, "factors['task']['qa']=nan."),
        ({"factors": float("inf")}, "Received: factors=inf."),
        ({"factors": "fast"}, "Received: factors='fast'."),
        ({"a": True}, "Received: a=True."),
        ({"b": {"tsk": 2}}, "Received: 'tsk'. The nearest is 'task'."),
        ({"weight_decay": {"task": -0.1}}, "Received: weight_decay['task']=-0.1."),
    ],
)
def test_what_is_not_right_is_refused(arguments, text):
    model = small(trained=False)
    keras_flix.set_learning_rates(model, {"task": 2})
    rates = model._adaptation.rates
    with pytest.raises(ValueError) as error:
        keras_flix.set_learning_rates(model, **arguments)
    assert text in str(error.value)
    assert model._adaptation.rates is rates
    with pytest.raises(ValueError, match="must have been adapted by `enable_flix`"):
        keras_flix.set_learning_rates(make_mlp(), 2.0)


def test_weight_decay_is_refused_where_steps_are_counted_by_value():
    model = small(trained=False)
    keras_flix.set_learning_rates(model, {"task": 2})
    rates = model._adaptation.rates
    model.compile(keras_flix.LazyAdam(0.1, step_counts="value"), loss="mse")
    with pytest.raises(ValueError, match="step_counts='value' with weight decay"):
        keras_flix.set_learning_rates(model, weight_decay={"task": 0.1})
    assert model._adaptation.rates is rates
    keras_flix.set_learning_rates(model, weight_decay=0.0)
    model.train_on_batch(DATA, Y)


def test_without_rates_nothing_is_in_the_way():
    model = small()
    model.train_on_batch(DATA, Y)
    assert not set(_compat.learning_rates.METHODS) & set(vars(model.optimizer))
    assert FEATURES.keys() == {f.name for f in model._adaptation.schema}
