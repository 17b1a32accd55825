"""Optimizers that update only the values of a batch: what they do, and at what cost."""

import keras
import numpy as np
import pytest
from helpers.gemma import to_numpy
from keras import ops

import keras_flix
from keras_flix import _compat

everywhere = pytest.mark.short("jax", "tensorflow", "torch")
"""Of tests of what every backend writes in its own way."""
LANGUAGES = [f"l{i}" for i in range(40)]
TASKS = ["qa", "parse", "list"]
FEATURES = [
    keras_flix.Feature("language", LANGUAGES, multiple=True),
    keras_flix.Feature("task", TASKS),
    keras_flix.Feature("shared", always=True),
]
BATCHES = [
    {"language": [["l3", "l7"], ["l7"], [], ["l39"]], "task": ["qa", None, "qa", "qa"]},
    {
        "language": [["l3"], ["l0", "l3"], ["l8"], []],
        "task": ["list", "qa", "qa", "qa"],
    },
    {"language": [[], [], [], []], "task": ["qa", "qa", "qa", "qa"]},
]
WEIGHTED = [
    {"language": [{"l7": 0.5, "l1": 2.0}, {"l3": 1.0}, {"l9": 1.0}, {"l1": 0.25}]}
    | {"task": ["list", "list", None, "list"]},
    {"language": [{"l7": 1.5}, {"l3": 1.0}, {}, {"l39": 0.25}]} | {"task": 4 * ["qa"]},
]
OPTIMIZERS = {
    "adam": (keras_flix.LazyAdam, keras.optimizers.Adam, {"amsgrad": True}),
    "nesterov": (
        keras_flix.LazySGD,
        keras.optimizers.SGD,
        {"momentum": 0.9, "nesterov": True},
    ),
}


@pytest.fixture(params=["adam", "nesterov"])
def pair(request):
    lazy, eager, options = OPTIMIZERS[request.param]
    return lambda **more: (
        lazy(0.05, **options, **more),
        eager(0.05, **options, **more),
    )


def make_model(features=FEATURES, dtype="float32", head_dtype=None):
    keras.utils.set_random_seed(0)
    x = keras.Input((6,), name="x")
    hidden = keras.layers.Dense(5, name="hidden", dtype=dtype)(x)
    head = keras.layers.Dense(4, name="head", dtype=dtype)(hidden)
    model = keras.Model({"x": x}, head)
    keras_flix.enable_flix(model, features, targets=["head"], rank=2, seed=0, alpha=3.0)
    generator = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(generator.normal(size=variable.shape) * 0.3)
    return model


def train(model, optimizer, batches):
    generator = np.random.default_rng(1)
    model.compile(optimizer, loss="mse")
    for batch in batches:
        x = generator.normal(size=(4, 6)).astype("float32")
        y = generator.normal(size=(4, 4)).astype("float32")
        model.train_on_batch({"x": x, **batch}, y)
    return model


def state(model):
    return [to_numpy(v) for v in (*model.trainable_variables, *slots(model))]


def slots(model):
    inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    return [slot for kind in inner.row_slots() for slot in kind]


def assert_equal(found, expected, rtol=1e-5, atol=1e-6):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)


@pytest.fixture
def written(monkeypatch):
    """The shapes of what goes to rows instead of whole tables."""
    shapes = []
    module = __import__(_compat.LazyRows.__module__, fromlist=["_write"])
    write = module._write

    def spy(variable, rows, values):
        shapes.append(tuple(values.shape))
        write(variable, rows, values)

    monkeypatch.setattr(module, "_write", spy)
    write_together = module.eager_ops.write_rows_together

    def spy_together(tables, rows, values):
        shapes.extend((at.shape[0], *one.shape[1:]) for one, at in zip(tables, rows))
        write_together(tables, rows, values)

    monkeypatch.setattr(module.eager_ops, "write_rows_together", spy_together)
    # Small ones are updated whole, see below.
    monkeypatch.setattr(module, "SMALL", 0)
    return shapes


@everywhere
def test_where_all_values_occur_it_is_the_eager_optimizer(pair):
    features = {"language": LANGUAGES[:3], "task": TASKS}
    batches = 3 * [{"language": ["l0", "l1", "l2", "l0"], "task": [*TASKS, "qa"]}]
    lazy, eager = pair()
    found = train(make_model(features), lazy, batches)
    expected = train(make_model(features), eager, batches)
    assert_equal(
        map(to_numpy, found.trainable_variables),
        map(to_numpy, expected.trainable_variables),
    )


@everywhere
def test_values_that_do_not_occur_stay_with_their_moments(pair):
    model = train(make_model(), pair()[0], BATCHES[:1])
    before = state(model)
    model.train_on_batch({"x": np.ones((4, 6)), **BATCHES[1]}, np.ones((4, 4)))
    languages = [i for i in range(40) if f"l{i}" not in ("l0", "l3", "l8")]
    for old, new in zip(before, state(model), strict=True):
        if old.shape[0] == 40:
            np.testing.assert_array_equal(new[languages], old[languages])
            assert np.abs(new[[0, 3, 8]] - old[[0, 3, 8]]).max(axis=(1, 2)).all()


@everywhere
def test_rows_and_dense_gradients_give_the_same(pair, written):
    adam = isinstance(pair()[0], keras.optimizers.Adam)
    batches = BATCHES if adam else WEIGHTED
    by_rows = train(make_model(), pair()[0], batches)
    count = len(written)
    # Of 40 values; on PyTorch's CPU, no more than there are different ones.
    assert count and all(shape[0] in (None, *range(9)) for shape in written)
    dense = train(make_model(), pair(clipvalue=1e9)[0], batches)
    assert len(written) == count
    assert_equal(state(by_rows), state(dense))


@everywhere
def test_small_tables_together_are_updated_as_each_alone(pair, monkeypatch):
    together = train(make_model(), pair()[0], WEIGHTED)
    monkeypatch.setattr(f"{_compat.LazyRows.__module__}.SMALL", 0)
    alone = train(make_model(), pair()[0], WEIGHTED)
    assert_equal(state(together), state(alone))


@pytest.mark.short("torch", "tensorflow")
@pytest.mark.parametrize("rated", [False, True])
def test_rows_of_tables_together_are_updated_as_each_alone(rated, written, monkeypatch):
    """To the bit: of sizes that several layers have, and of one that none else has."""

    def trained():
        keras.utils.set_random_seed(0)
        x = y = keras.Input((6,), name="x")
        for name, width in {"one": 6, "two": 6, "head": 4}.items():
            y = keras.layers.Dense(width, name=name)(y)
        model = keras.Model({"x": x}, y)
        layers = ["one", "two", "head"]
        keras_flix.enable_flix(model, FEATURES, targets=layers, rank=2, seed=0)
        generator = np.random.default_rng(0)
        for variable in model.trainable_variables:
            variable.assign(generator.normal(size=variable.shape) * 0.3)
        if rated:
            factors = {"language": {"l3": 2, "l7": 0, "*": 0.3}, "task": 0.7}
            keras_flix.set_learning_rates(model, factors, b={"language": 4})
        optimizer = keras_flix.LazyAdam(0.05, amsgrad=True)
        return state(train(model, optimizer, BATCHES))

    sizes = []
    update = _compat.LazyRows._update_rows

    def spied(self, parts, rate):
        sizes.append(len(parts))
        update(self, parts, rate)

    monkeypatch.setattr(_compat.LazyRows, "_update_rows", spied)
    together = trained()
    # JAX compiles one after the other to the same.
    assert (max(sizes, default=0) >= 4) == (keras.config.backend() != "jax")
    count = len(written)
    monkeypatch.setattr(f"{_compat.LazyRows.__module__}.ONE_BY_ONE", True)
    sizes.clear()
    # TensorFlow's graph multiplies by a rate's factor in another place.
    rtol = 1e-6 if rated and keras.config.backend() == "tensorflow" else 0
    for one, other in zip(together, trained(), strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=0.1 * rtol)
    if keras.config.backend() == "torch":
        # Together, tables without a gradient are passed over.
        assert len(written) >= 2 * count > 0
    else:
        assert len(written) == 2 * count > 0
    assert not sizes


def test_sgd_without_momentum_is_exact():
    found = train(make_model(), keras_flix.LazySGD(0.05), BATCHES)
    expected = train(make_model(), keras.optimizers.SGD(0.05), BATCHES)
    assert_equal(
        map(to_numpy, found.trainable_variables),
        map(to_numpy, expected.trainable_variables),
    )


def test_it_is_lazy_adam_by_its_formula():
    """A value that occurs in steps 1 and 3, by numpy, with gradients of plain SGD."""
    batches = [BATCHES[0], BATCHES[2], BATCHES[1]]
    rate, b1, b2, epsilon = 0.05, 0.9, 0.999, 1e-7
    model = make_model()
    optimizer = keras_flix.LazyAdam(rate)
    expected = [to_numpy(v).astype("float64") for v in model.trainable_variables]
    moments = [(np.zeros(v.shape), np.zeros(v.shape)) for v in expected]
    for step, batch in enumerate(batches, start=1):
        # The gradient at the weights of now, from a copy that a plain step moved.
        probe = make_model()
        for one, value in zip(probe.trainable_variables, model.trainable_variables):
            one.assign(to_numpy(value))
        before = [to_numpy(v) for v in probe.trainable_variables]
        train_step(probe, keras.optimizers.SGD(1.0), batch, step)
        train_step(model, optimizer, batch, step)
        for i, variable in enumerate(probe.trainable_variables):
            gradient = (before[i] - to_numpy(variable)).astype("float64")
            m, v = moments[i]
            active = np.any(gradient != 0, axis=(1, 2))
            m[active] = b1 * m[active] + (1 - b1) * gradient[active]
            v[active] = b2 * v[active] + (1 - b2) * gradient[active] ** 2
            alpha = rate * np.sqrt(1 - b2**step) / (1 - b1**step)
            expected[i][active] -= alpha * m[active] / (np.sqrt(v[active]) + epsilon)
    for variable, value in zip(model.trainable_variables, expected):
        np.testing.assert_allclose(to_numpy(variable), value, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("before", [0, 10, 5000])
def test_one_count_of_steps_for_all_values(before):
    """A value's updates against those of an Adam that counts its own steps only."""
    updates = {}
    for make in (keras_flix.LazyAdam, keras.optimizers.Adam):
        model = make_model({"language": ["new", "old"]})
        optimizer = make(1e-3, epsilon=0.0)
        optimizer.build(model.trainable_variables)
        if make is keras_flix.LazyAdam:
            optimizer.iterations.assign(before)
        gradients = [np.zeros(v.shape, "float32") for v in model.trainable_variables]
        for gradient in gradients:
            gradient[0] = 0.5
        variable = model.trainable_variables[0]
        values = [to_numpy(variable)[0].astype("float64")]
        for _ in range(3):
            tensors = [ops.convert_to_tensor(gradient) for gradient in gradients]
            optimizer.apply(tensors, model.trainable_variables)
            values.append(to_numpy(variable)[0].astype("float64"))
        updates[make] = -np.diff([value.mean() for value in values]) / 1e-3
    np.testing.assert_allclose(updates[keras.optimizers.Adam], 1.0, rtol=1e-3)
    own = np.arange(1, 4)
    moments = (1 - 0.9**own) / np.sqrt(1 - 0.999**own)
    correction = np.sqrt(1 - 0.999 ** (before + own)) / (1 - 0.9 ** (before + own))
    found = updates[keras_flix.LazyAdam]
    np.testing.assert_allclose(found, moments * correction, rtol=1e-3)
    if before == 5000:
        np.testing.assert_allclose(found[0], 0.1 / np.sqrt(0.001), rtol=1e-2)


def test_rates_of_values_by_rows_and_by_dense_gradients(pair, written):
    def rated(optimizer):
        model = make_model()
        factors = {"language": {"l3": 2, "l7": 0, "*": 0.5}, "shared": 3}
        keras_flix.set_learning_rates(model, factors, b={"language": 4})
        before = [to_numpy(v) for v in model.trainable_variables]
        model = train(model, optimizer, BATCHES)
        for old, variable, *kept in zip(
            before, model.trainable_variables, *model.optimizer.row_slots()
        ):
            if "language" in variable.path:
                assert (to_numpy(variable)[7] == old[7]).all()
                assert not any(to_numpy(slot)[7].any() for slot in kept)
        return model

    by_rows = rated(pair()[0])
    assert written
    written.clear()
    dense = rated(pair(clipvalue=1e9)[0])
    assert not written
    assert_equal(state(by_rows), state(dense))


def test_a_rate_by_rows_multiplies_the_update(written):
    models = [make_model(), make_model()]
    factors = {"language": {"l3": 2, "l7": 0.25}, "task": {"qa": 4}}
    keras_flix.set_learning_rates(models[0], factors, weight_decay=0.0)
    before = [to_numpy(v).astype("float64") for v in models[0].trainable_variables]
    for model in models:
        train(model, keras_flix.LazySGD(0.0625), BATCHES[:1])
    assert written
    for old, *new in zip(before, *(m.trainable_variables for m in models)):
        rows = np.ones(len(old))
        if len(old) == 40:
            rows[[3, 7]] = 2, 0.25
        elif len(old) == 3:
            rows[0] = 4
        found, once = (to_numpy(one) - old for one in new)
        expected = rows[:, None, None] * once
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def train_step(model, optimizer, batch, seed):
    if getattr(model, "optimizer", None) is not optimizer:
        model.compile(optimizer, loss="mse")
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(4, 6)).astype("float32")
    model.train_on_batch({"x": x, **batch}, np.ones((4, 4), "float32"))


@pytest.mark.parametrize(
    "options",
    [{"clipnorm": 0.1}, {"global_clipnorm": 0.1}, {"gradient_accumulation_steps": 2}],
    ids=lambda options: next(iter(options)),
)
def test_what_needs_dense_gradients_gets_them(options, written):
    features = {"language": LANGUAGES[:2]}
    batches = 4 * [{"language": ["l0", "l1", "l0", "l0"]}]
    lazy = train(make_model(features), keras_flix.LazyAdam(0.05, **options), batches)
    adam = train(make_model(features), keras.optimizers.Adam(0.05, **options), batches)
    assert not written
    assert_equal(
        map(to_numpy, lazy.trainable_variables),
        map(to_numpy, adam.trainable_variables),
    )


def test_loss_scaling_leaves_absent_values_alone():
    inner = keras_flix.LazyAdam(0.05)
    optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=4.0)
    model = make_model()
    before = [to_numpy(v) for v in model.trainable_variables]
    train(model, optimizer, BATCHES[:1])
    for old, variable in zip(before, model.trainable_variables):
        new = to_numpy(variable)
        if len(old) == 40:
            changed = np.any(new != old, axis=(1, 2))
            assert list(np.flatnonzero(changed)) == [3, 7, 39]


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param("mixed_bfloat16", marks=pytest.mark.short("torch", "jax")),
        pytest.param("mixed_float16", marks=pytest.mark.short("torch", "tensorflow")),
    ],
)
def test_in_half_precision(dtype, written):
    by_rows = train(make_model(dtype=dtype), keras_flix.LazySGD(0.05), BATCHES)
    assert written
    dense = train(make_model(dtype=dtype), keras.optimizers.SGD(0.05), BATCHES)
    for one, other in zip(by_rows.trainable_variables, dense.trainable_variables):
        assert one.dtype == "float32"
        np.testing.assert_allclose(to_numpy(one), to_numpy(other), atol=1e-4)


@everywhere
def test_frozen_values_stay(written):
    model = make_model()
    model = keras_flix.set_trainable(model, {"language": ["l3"]})
    before = [to_numpy(v) for v in model.trainable_variables]
    train(model, keras_flix.LazyAdam(0.05), BATCHES)
    assert written
    for old, variable in zip(before, model.trainable_variables):
        changed = np.any(to_numpy(variable) != old, axis=(1, 2))
        assert list(np.flatnonzero(changed)) == ([3] if len(old) == 40 else [])


def test_grown_and_restored(tmp_path, written):
    model = train(make_model(), keras_flix.LazyAdam(0.05), BATCHES)
    keras_flix.add_values(model, "language", ["new"], init="l3")
    model.save(tmp_path / "model.keras")
    restored = keras.models.load_model(tmp_path / "model.keras")
    assert isinstance(restored.optimizer, keras_flix.LazyAdam)
    written.clear()
    batch = {"x": np.ones((2, 6)), "language": [["new"], ["l7"]], "task": ["qa"] * 2}
    for one in (model, restored):
        one.train_on_batch(batch, np.ones((2, 4)))
    assert written
    assert_equal(state(restored), state(model), rtol=1e-6)


def test_feature_dropout_and_several_steps_of_fit(written):
    languages = keras_flix.Feature("language", LANGUAGES, dropout=0.5)
    model = make_model([languages, keras_flix.Feature("task", TASKS)])
    before = [to_numpy(v) for v in model.trainable_variables]
    model.compile(keras_flix.LazyAdam(0.05), loss="mse")
    data = {"x": np.ones((8, 6)), "language": 8 * ["l5"], "task": 8 * ["qa"]}
    model.fit(data, np.ones((8, 4)), batch_size=3, epochs=3, verbose=0)
    assert written
    for old, variable in zip(before, model.trainable_variables):
        new = to_numpy(variable)
        assert np.isfinite(new).all()
        changed = np.flatnonzero(np.any(new != old, axis=(1, 2)))
        assert list(changed) == ([5] if len(old) == 40 else [0])


def test_a_gemma_with_rematerialization(make_gemma, written):
    def trained(optimizer):
        with keras.RematScope(mode="full"):
            model = make_gemma(preprocessor=False)
        keras_flix.enable_flix(model, {"language": LANGUAGES}, rank=2, seed=0)
        generator = np.random.default_rng(0)
        for variable in model.trainable_variables:
            variable.assign(generator.normal(size=variable.shape) * 0.1)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss=loss)
        tokens = generator.integers(1, 40, (3, 8))
        x = {"token_ids": tokens, "padding_mask": np.ones((3, 8), "int32")}
        for languages in (["l1", "l2", "l1"], ["l30", None, "l1"]):
            model.train_on_batch({**x, "language": languages}, tokens)
        return [to_numpy(v) for v in model.trainable_variables]

    by_rows = trained(keras_flix.LazySGD(0.1))
    # TensorFlow's rematerialization makes dense gradients.
    assert written or keras.config.backend() == "tensorflow"
    assert_equal(by_rows, trained(keras.optimizers.SGD(0.1)), rtol=1e-4, atol=1e-5)


def test_a_loss_that_calls_the_model_on_other_values_is_not_wrong():
    """On JAX, such values are not among the step's rows: not a number, not a guess."""

    class Contrast(keras.losses.Loss):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def call(self, y_true, y_pred):
            other = self.model(
                {"x": ops.ones((4, 6)), "language": ops.array([9, 9, 9, 9])}
            )
            return ops.mean(ops.square(y_pred - other), axis=-1)

    model = make_model({"language": LANGUAGES})
    before = [to_numpy(v) for v in model.trainable_variables]
    model.compile(keras_flix.LazySGD(0.1), loss=Contrast(model))
    batch = {"x": np.ones((4, 6)), "language": ["l1", "l1", "l2", "l2"]}
    loss = model.train_on_batch(batch, np.ones((4, 4)))
    if keras.config.backend() == "jax":
        assert np.isnan(loss)
        return
    for old, variable in zip(before, model.trainable_variables):
        changed = np.any(to_numpy(variable) != old, axis=(1, 2))
        assert list(np.flatnonzero(changed)) == [1, 2, 9]


@pytest.mark.short("torch", "jax")
def test_a_loss_of_a_table_itself_counts_too_or_is_refused(written):
    """Its gradient is dense, beside that of the rows which were looked up."""

    def trained(optimizer):
        model = make_model({"language": LANGUAGES})
        tables = model.trainable_variables

        def loss(y_true, y_pred):
            decay = sum(ops.sum(ops.square(table)) for table in tables)
            return ops.mean(ops.square(y_pred - y_true), axis=-1) + decay

        model.compile(optimizer, loss)
        batch = {"x": np.ones((4, 6)), "language": ["l1", "l1", "l2", "l3"]}
        before = [to_numpy(table) for table in tables]
        try:
            model.train_on_batch(batch, np.zeros((4, 4)))
        except ValueError:
            assert_equal([to_numpy(table) for table in tables], before)
            raise
        return [to_numpy(table) for table in tables]

    if keras.config.backend() == "jax":
        with pytest.raises(ValueError, match="Received: a loss that reads a whole"):
            trained(keras_flix.LazySGD(0.1))
        return
    found = trained(keras_flix.LazySGD(0.1))
    assert not written  # All rows have a gradient.
    assert_equal(found, trained(keras.optimizers.SGD(0.1)))


@pytest.mark.short("torch")
def test_a_method_that_the_optimizer_was_given_gets_dense_gradients(written):
    shapes = []
    model = make_model({"language": LANGUAGES})
    optimizer = keras_flix.LazySGD(0.1)
    apply = optimizer.apply

    def spied(gradients, variables=None):
        shapes.extend(tuple(one.shape) for one in gradients)
        apply(gradients, variables)

    optimizer.apply = spied
    train(model, optimizer, [{"language": ["l1", "l1", "l2", "l3"]}])
    assert shapes == [tuple(v.shape) for v in model.trainable_variables]
    assert not written
