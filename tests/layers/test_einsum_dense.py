"""What every layer must do: config, saving, dtypes, training. Run for both."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_flix import Feature, FeatureSchema, FlixDense, FlixEinsumDense

FEATURES = [
    Feature("task", ["qa", "parse", "list"], rank={"parse": 1, "*": 3}),
    Feature("style", ["news", "chat"], multiple=True),
    Feature("shared", always=True),
]
IDS = {
    "task": np.array([0, 1, -1, 2], "int32"),
    "style": np.array([[0, 1], [1, -1], [0, -1], [-1, -1]], "int32"),
}
SHAPE = (4, 5, 8)
FIRST_NUMBERS = [0.36346242, 0.35070032, 0.37522823]
"""Of each task's `A`, with seed 7 and a layer called "probe"."""


def make_einsum(**kwargs):
    options = {"features": FEATURES, "rank": 2, "bias_axes": "nh", **kwargs}
    return FlixEinsumDense("btd,ndh->btnh", (5, 2, 3), **options)


def make_dense(**kwargs):
    return FlixDense(6, **{"features": FEATURES, "rank": 2, **kwargs})


MAKERS = {
    FlixEinsumDense: (make_einsum, keras.layers.EinsumDense),
    FlixDense: (make_dense, keras.layers.Dense),
}


@pytest.fixture(params=MAKERS, ids=lambda cls: cls.__name__)
def make(request):
    return MAKERS[request.param][0]


@pytest.fixture
def plain_class(make):
    return {maker: plain for maker, plain in MAKERS.values()}[make]


def data(seed=3):
    return np.random.default_rng(seed).normal(size=SHAPE).astype("float32")


def randomize(layer):
    """Random tables; zero beyond each value's rank, as when they were made."""
    generator = np.random.default_rng(0)
    for a, b in layer._tables.variables.values():
        beyond = ops.convert_to_numpy(a)[:, :1, :] == 0
        a.assign(np.where(beyond, 0, generator.normal(size=a.shape) * 0.3))
        b_beyond = np.swapaxes(beyond, 1, 2)
        b.assign(np.where(b_beyond, 0, generator.normal(size=b.shape) * 0.3))
    return layer


def make_model(layer):
    """A functional model in which ids are inputs, without `enable_flix`."""
    x = keras.Input(SHAPE[1:], name="x")
    ids = {
        "task": keras.Input((), dtype="int32", name="task"),
        "style": keras.Input((2,), dtype="int32", name="style"),
    }
    return keras.Model({"x": x, **ids}, layer(x, features=ids))


def call(layer, x=None, ids=IDS):
    return ops.convert_to_numpy(layer(data() if x is None else x, features=ids))


def snapshot(layer):
    return {v.path: ops.convert_to_numpy(v).copy() for v in layer.variables}


def test_is_a_drop_in_for_the_plain_layer(make, plain_class):
    layer = make()
    assert isinstance(layer, plain_class)
    plain = plain_class.from_config(
        {k: v for k, v in layer.get_config().items() if k != "features"}
    )
    layer.build(SHAPE)
    plain.build(SHAPE)
    plain.kernel.assign(layer.kernel)
    # `B` starts at zero: whatever the features, a new layer is the plain one.
    np.testing.assert_array_equal(call(layer), ops.convert_to_numpy(plain(data())))


def test_config_round_trip(make):
    layer = make(alpha=4.0, dropout={"task": 0.25}, activation="gelu", name="probe")
    config = layer.get_config()
    again = type(layer).from_config(config)
    assert again.get_config() == config
    assert again.features == layer.features
    assert [f.dropout for f in again.features] == [0.25, 0.0, 0.0]
    assert [f.ranks for f in again.features] == [(3, 1, 3), (2, 2), (2,)]
    deserialized = keras.layers.deserialize(keras.layers.serialize(layer))
    assert type(deserialized) is type(layer)
    assert deserialized.get_config() == config


@pytest.mark.pairs
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_model_survives_saving(make, tmp_path, dropout):
    layer = make(alpha=4.0, dropout=dropout)
    model = make_model(layer)
    randomize(layer)
    inputs = {"x": data(), **IDS}
    expected = model.predict(inputs, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(inputs, verbose=0), expected)
    assert [v.shape for v in loaded.trainable_variables] == [
        v.shape for v in model.trainable_variables
    ]
    # Weights alone, into a new model.
    model.save_weights(tmp_path / "model.weights.h5")
    other = make_model(make(alpha=4.0, dropout=dropout))
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(other.predict(inputs, verbose=0), expected)


def test_weights_of_other_features_are_refused(make, tmp_path):
    model = make_model(make())
    model.save_weights(tmp_path / "model.weights.h5")
    features = [Feature("task", ["qa", "parse"]), *FEATURES[1:]]
    other = make_model(make(features=features))
    before = snapshot(other)
    with pytest.raises(ValueError, match="The features in a weights file must match"):
        other.load_weights(tmp_path / "model.weights.h5")
    after = snapshot(other)
    for path in before:
        np.testing.assert_array_equal(after[path], before[path])


@pytest.mark.pairs
@pytest.mark.parametrize(
    ("policy", "kernel", "output"),
    [
        ("float32", "float32", "float32"),
        ("mixed_float16", "float32", "float16"),
        ("mixed_bfloat16", "float32", "bfloat16"),
        ("bfloat16", "bfloat16", "bfloat16"),
        ("float16", "float16", "float16"),
    ],
)
def test_dtype_policies(make, policy, kernel, output):
    layer = make(dtype=policy)
    layer.build(SHAPE)
    randomize(layer)
    assert layer.kernel.dtype == kernel
    assert {v.dtype for v in layer._tables.named_variables.values()} == {"float32"}
    result = layer(data(), features=IDS)
    assert keras.backend.standardize_dtype(result.dtype) == output
    assert result.shape == layer.compute_output_shape(SHAPE)
    exact = make()
    exact.build(SHAPE)
    for target, source in zip(exact.variables, layer.variables):
        target.assign(ops.cast(source.value, "float32"))
    np.testing.assert_allclose(
        ops.convert_to_numpy(ops.cast(result, "float32")), call(exact), atol=0.05
    )


def test_only_tables_and_bias_train(make):
    layer = make()
    model = make_model(layer)
    randomize(layer)
    tables = list(layer._tables.named_variables.values())
    trainable = {id(v) for v in model.trainable_variables}
    assert trainable == {id(v) for v in [*tables, layer.bias]}
    before = snapshot(model)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    targets = np.ones((4, *layer.compute_output_shape(SHAPE)[1:]), "float32")
    model.fit({"x": data(), **IDS}, targets, batch_size=4, verbose=0)
    moved = {path for path, v in snapshot(model).items() if (v != before[path]).any()}
    assert moved == {v.path for v in [*tables, layer.bias]}


def test_only_the_batchs_values_train(make):
    layer = make()
    model = make_model(layer)
    randomize(layer)
    before = snapshot(model)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    targets = np.ones((4, *layer.compute_output_shape(SHAPE)[1:]), "float32")
    ids = {"task": np.full(4, 1, "int32"), "style": np.full((4, 2), -1, "int32")}
    model.fit({"x": data(), **ids}, targets, batch_size=4, verbose=0)
    after = snapshot(model)
    for name, variable in layer._tables.named_variables.items():
        rows = (after[variable.path] != before[variable.path]).any(axis=(1, 2))
        expected = {
            "task": [False, True, False],
            "style": [False] * 2,
            "shared": [True],
        }
        assert rows.tolist() == expected[name.split("_")[1]], name


def test_columns_beyond_a_values_rank_stay_zero(make):
    layer = make()
    model = make_model(layer)
    model.compile(keras.optimizers.Adam(0.05), "mse")
    targets = np.ones((4, *layer.compute_output_shape(SHAPE)[1:]), "float32")
    ids = {**IDS, "task": np.array([0, 1, 1, 2], "int32")}
    model.fit({"x": data(), **ids}, targets, batch_size=2, epochs=4, verbose=0)
    a, b = map(ops.convert_to_numpy, layer._tables.variables["task"])
    for value, rank in enumerate(layer.features["task"].ranks):
        np.testing.assert_array_equal(a[value][:, rank:], 0.0)
        np.testing.assert_array_equal(b[value][rank:], 0.0)
        assert (a[value][:, :rank] != 0).all() and (b[value][:rank] != 0).all()
    assert a.shape[-1] == 3


@pytest.mark.short("jax", "tensorflow", "torch")
def test_initial_tables_are_those_of_the_seed_on_every_backend(make):
    keras.utils.set_random_seed(7)
    layer = make(name="probe")
    layer.build(SHAPE)
    a, b = map(ops.convert_to_numpy, layer._tables.variables["task"])
    np.testing.assert_array_equal(b, 0.0)
    np.testing.assert_allclose(a[:, 0, 0], FIRST_NUMBERS, rtol=1e-6)
    assert abs(a[:, :, 0].std() - 8**-0.5) < 0.1
    keras.utils.set_random_seed(8)
    other = make(name="probe")
    other.build(SHAPE)
    assert not np.array_equal(
        ops.convert_to_numpy(other._tables.variables["task"][0]), a
    )


def test_from_layer_has_seed_0_unless_told(make, plain_class):
    config = make(name="probe").get_config()
    del config["features"]
    schema = FeatureSchema(FEATURES).resolve(2, alpha=3)
    tables = []
    for seed in ({}, {"seed": 0}, {"seed": 1}):
        layer = plain_class.from_config(config)
        layer.build(SHAPE)
        type(make()).from_layer(layer, schema, **seed)
        tables.append(ops.convert_to_numpy(layer._tables.variables["task"][0]))
    np.testing.assert_array_equal(tables[0], tables[1])
    assert not np.array_equal(tables[0], tables[2])


def test_plain_weights_leave_the_tables_as_they_are(make):
    layer = make()
    layer.build(SHAPE)
    stored = {}
    randomize(layer).save_own_variables(stored)
    before = {name: ops.convert_to_numpy(value) for name, value in stored.items()}
    plain = {n: v + 1 for n, v in before.items() if not n.startswith("flix_")}
    layer.load_own_variables(plain)
    layer.save_own_variables(stored)
    for name, value in stored.items():
        np.testing.assert_array_equal(
            ops.convert_to_numpy(value), plain.get(name, before[name])
        )


def test_from_layer_adapts_in_place(make, plain_class):
    config = make(name="probe").get_config()
    del config["features"]
    layer = plain_class.from_config(config)
    layer.build(SHAPE)
    paths = [v.path for v in layer.variables]
    expected = ops.convert_to_numpy(layer(data()))
    schema = FeatureSchema(FEATURES).resolve(2, alpha=3)
    found = type(make()).from_layer(layer, schema, seed=1)
    assert found is layer and type(layer) is type(make())
    assert [v.path for v in layer.variables][: len(paths)] == paths
    assert {id(v) for v in layer.trainable_variables} == {
        id(v) for v in layer._tables.named_variables.values()
    }
    np.testing.assert_array_equal(call(layer), expected)
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()


@pytest.mark.pairs
@pytest.mark.parametrize(
    "entries",
    [
        {"task": "parse", "style": ["chat", None, "news", None]},
        {"task": ["parse"] * 4, "style": [["chat"], [], ["news"], None]},
        {"task": np.array(["parse"] * 4), "style": [1, -1, 0, -1]},
        {"task": np.array(["parse"] * 4, object), "style": np.array([1, -1, 0, -1])},
        {"task": np.array([1] * 4, "uint8"), "style": np.array([[1], [-1], [0], [-1]])},
    ],
)
def test_takes_values_in_all_guises(make, entries):
    layer = make()
    layer.build(SHAPE)
    randomize(layer)
    expected = call(
        layer,
        ids={
            "task": ops.convert_to_tensor([1] * 4, "int32"),
            "style": ops.convert_to_tensor([[1], [-1], [0], [-1]], "int32"),
        },
    )
    np.testing.assert_array_equal(call(layer, ids=entries), expected)


def test_a_value_may_be_a_constant_of_the_graph(make, tmp_path):
    layer = make()
    x = keras.Input(SHAPE[1:], name="x")
    model = keras.Model(x, layer(x, features={"task": "qa", "style": None}))
    randomize(layer)
    expected = call(layer, ids={"task": "qa", "style": None})
    np.testing.assert_allclose(model.predict(data(), verbose=0), expected, atol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(data(), verbose=0), expected, atol=1e-5)


def test_an_always_axis_alone_needs_no_features(make):
    layer = make(features=[Feature("shared", always=True)])
    layer.build(SHAPE)
    randomize(layer)
    found = ops.convert_to_numpy(layer(data()))
    kernel = ops.add(layer.kernel, layer.kernel_delta({}))
    equation = layer.equation if type(layer) is FlixEinsumDense else "btd,df->btf"
    expected = np.einsum(equation, data(), ops.convert_to_numpy(kernel))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
