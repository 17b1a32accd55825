"""The layers compute `W_0 + sum of s_f A_f B_f`, for every equation and mix."""

import dataclasses

import keras
import numpy as np
import pytest
from helpers.einsums import BATCH, EQUATIONS, full_kernel, shapes
from keras import ops

from keras_flix import Feature, FlixDense, FlixEinsumDense
from keras_flix.layers.active_scope import Routing, routing_scope

FEATURES = [
    Feature("task", ["qa", "parse", "list"], rank={"qa": 1, "*": 2}),
    Feature("language", ["en", "sw", "yo"], rank=2, multiple=True),
    Feature("shared", rank=1, always=True),
]
ALPHA = 3.0
IDS = {
    "task": np.array([0, -1, 2], "int32"),
    "language": np.array([[1, 2], [0, -1], [-1, -1]], "int32"),
}
# `EinsumDense` itself takes the batch to come first in the output.
LAYER_EQUATIONS = [e for e in EQUATIONS if not e.endswith("->nhbt")]


def make_layer(equation, features=FEATURES, alpha=ALPHA, **kwargs):
    """A built layer with random tables and bias, and the shape of its input."""
    input_shape, kernel_shape = shapes(equation)
    sizes = dict(zip(equation.split("->")[0].split(",")[1], kernel_shape))
    activation, output = equation.split(",")[0], equation.split("->")[1]
    named = dict(zip(activation, input_shape)) | sizes
    bias = "".join(axis for axis in output if axis in sizes and axis not in activation)
    kwargs = {"features": features, "alpha": alpha, **kwargs}
    if equation == "...x,xy->...y":
        layer = FlixDense(kernel_shape[1], **kwargs)
    else:
        output_shape = [named[axis] for axis in output.replace("...", "")[1:]]
        layer = FlixEinsumDense(equation, output_shape, bias_axes=bias, **kwargs)
    layer.build(input_shape)
    generator = np.random.default_rng(1)
    layer.bias.assign(generator.normal(size=layer.bias.shape))
    for feature in layer.features:
        for axis, name in ((2, "a"), (1, "b")):
            variable = layer._tables.named_variables[f"flix_{feature.name}_{name}"]
            value = generator.normal(size=variable.shape)
            for row, rank in enumerate(feature.ranks):
                # What is beyond a value's rank is zero from the start.
                np.moveaxis(value[row], axis - 1, 0)[rank:] = 0.0
            variable.assign(value)
    return layer, input_shape


def reference(equation, layer, x, ids, alpha=ALPHA, power=1):
    """Each example by its own kernel, in float64, with tables cut to their ranks."""
    kernel = ops.convert_to_numpy(layer.kernel).astype("float64")
    bias = ops.convert_to_numpy(layer.bias).astype("float64")
    outputs = []
    for example in range(len(x)):
        total = kernel.copy()
        for feature in layer.features:
            a, b = (
                ops.convert_to_numpy(
                    layer._tables.named_variables[f"flix_{feature.name}_{part}"]
                ).astype("float64")
                for part in "ab"
            )
            entry = 0 if feature.always else ids[feature.name][example]
            for value in np.atleast_1d(entry):
                if value == -1:
                    continue
                rank = feature.ranks[value]
                scale = 1.0 if alpha is None else alpha / rank**power
                total += scale * full_kernel(
                    equation, kernel.shape, a[value][:, :rank], b[value][:rank]
                )
        one = x[example : example + 1].astype("float64")
        outputs.append(np.einsum(equation, one, total) + bias)
    return np.concatenate(outputs)


def activations(shape, seed=5):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def call(layer, x, ids):
    return ops.convert_to_numpy(layer(x, features=ids))


@pytest.mark.parametrize("equation", LAYER_EQUATIONS)
def test_formula(equation):
    layer, shape = make_layer(equation)
    x = activations(shape)
    np.testing.assert_allclose(
        call(layer, x, IDS), reference(equation, layer, x, IDS), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("alpha", [None, 1, 16])
def test_scale_is_alpha_over_the_values_rank(alpha):
    layer, shape = make_layer("btd,df->btf", alpha=alpha)
    x = activations(shape)
    np.testing.assert_allclose(
        call(layer, x, IDS),
        reference("btd,df->btf", layer, x, IDS, alpha),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("own", [None, "sqrt"])
def test_a_scale_by_the_square_root_is_of_each_values_own_rank(own):
    features = [dataclasses.replace(f, scale=own) for f in FEATURES]
    scale = "rank" if own else "sqrt"
    layer, shape = make_layer("btd,df->btf", features, alpha=16, scale=scale)
    assert len({rank for f in layer.features for rank in f.ranks}) > 1
    x = activations(shape)
    expected = reference("btd,df->btf", layer, x, IDS, 16, power=0.5)
    mixed = call(layer, x, IDS)
    np.testing.assert_allclose(mixed, expected, rtol=1e-4, atol=1e-4)
    for i in range(len(x)):
        one = {name: entry[i : i + 1] for name, entry in IDS.items()}
        alone = call(layer, x[i : i + 1], one)
        np.testing.assert_allclose(alone[0], mixed[i], rtol=1e-5, atol=1e-5)


def test_an_axis_alpha_wins():
    features = [dataclasses.replace(f, alpha=6.0) for f in FEATURES]
    layer, shape = make_layer("btd,df->btf", features=features, alpha=2)
    x = activations(shape)
    np.testing.assert_allclose(
        call(layer, x, IDS),
        reference("btd,df->btf", layer, x, IDS, alpha=6.0),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize(
    "equation", ["btd,ndh->btnh", "btnh,nhd->btd", "...x,xy->...y"]
)
def test_mixed_batch_equals_single_examples(equation):
    layer, shape = make_layer(equation)
    x = activations(shape)
    mixed = call(layer, x, IDS)
    for i in range(BATCH):
        one = {name: ids[i : i + 1] for name, ids in IDS.items()}
        alone = call(layer, x[i : i + 1], one)
        np.testing.assert_allclose(mixed[i : i + 1], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("equation", LAYER_EQUATIONS)
def test_mixed_batch_equals_merged_kernels(equation):
    layer, shape = make_layer(equation)
    x = activations(shape)
    mixed = call(layer, x, IDS)
    for i in range(BATCH):
        delta = layer.kernel_delta(
            {"task": int(IDS["task"][i]), "language": IDS["language"][i].tolist()}
        )
        assert tuple(delta.shape) == tuple(layer.kernel.shape)
        merged = ops.convert_to_numpy(layer.kernel) + ops.convert_to_numpy(delta)
        expected = np.einsum(equation, x[i : i + 1], merged)
        expected += ops.convert_to_numpy(layer.bias)
        np.testing.assert_allclose(mixed[i : i + 1], expected, rtol=1e-4, atol=1e-4)


def test_kernel_delta_takes_values_and_states_its_dtype():
    layer, _ = make_layer("btd,ndh->btnh", dtype="mixed_bfloat16")
    by_values = layer.kernel_delta({"task": "list", "language": ["sw", "en"]})
    by_ids = layer.kernel_delta({"task": 2, "language": [1, 0]})
    np.testing.assert_array_equal(*map(ops.convert_to_numpy, (by_values, by_ids)))
    assert keras.backend.standardize_dtype(by_values.dtype) == "float32"


@pytest.mark.parametrize("equation", LAYER_EQUATIONS)
def test_absent_features_change_no_bit(equation):
    layer, shape = make_layer(equation, features=FEATURES[:2])
    config = layer.get_config()
    del config["features"]
    cls = keras.layers.Dense if "..." == equation[:3] else keras.layers.EinsumDense
    plain = cls.from_config(config)
    plain.build(shape)
    plain.kernel.assign(layer.kernel)
    plain.bias.assign(layer.bias)
    x = activations(shape)
    expected = ops.convert_to_numpy(plain(x))
    np.testing.assert_array_equal(
        call(layer, x, {"task": None, "language": None}), expected
    )
    # Also next to examples that have features.
    found = call(layer, x, {"task": [0, -1, 2], "language": [[1], [], []]})
    np.testing.assert_array_equal(found[1], expected[1])
    assert not np.array_equal(found[0], expected[0])


def called_in_a_model(layer, x, ids, orders, **kwargs):
    """The layer in a model whose rows are known to have these orders."""
    layer.row_orders = None if orders is None else frozenset(orders)
    with routing_scope(Routing.from_ids(layer.features, ids, **kwargs)):
        return ops.convert_to_numpy(layer(x))


@pytest.mark.parametrize("order", ["repeat", "tile"])
@pytest.mark.parametrize("equation", ["btd,ndh->btnh", "ab...,bc->ac...", "bd,df->bf"])
def test_several_rows_of_an_example(equation, order):
    """Images and experts repeat examples; pairs on the batch axis tile them."""
    layer, shape = make_layer(equation)
    x = activations((2 * BATCH, *shape[1:]))
    found = called_in_a_model(layer, x, IDS, {order})
    rows = np.arange(BATCH)
    rows = np.repeat(rows, 2) if order == "repeat" else np.tile(rows, 2)
    expected = call(layer, x, {name: v[rows] for name, v in IDS.items()})
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", ["batch", "repeat", "tile"])
def test_orders_of_rows_agree_where_each_example_has_one(order):
    layer, shape = make_layer("btd,df->btf")
    x = activations(shape)
    found = called_in_a_model(layer, x, IDS, {order, "shared"})
    np.testing.assert_array_equal(found, call(layer, x, IDS))


def test_beams_are_side_by_side_under_known_samplers_only():
    layer, shape = make_layer("bd,df->bf")
    x = activations((2 * BATCH, *shape[1:]))
    found = called_in_a_model(layer, x, IDS, {"batch"}, generates=True)
    expected = call(layer, x, {n: np.repeat(v, 2, axis=0) for n, v in IDS.items()})
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    for orders, generates in (
        ({"batch"}, False),
        ({"repeat"}, False),
        ({"batch"}, None),
    ):
        with pytest.raises(ValueError, match="must have one entry per example"):
            called_in_a_model(layer, x, IDS, orders, generates=generates)


def test_what_all_examples_share_becomes_one_of_each():
    """Relative position embeddings have a batch of 1."""
    layer, shape = make_layer("btd,df->btf")
    x = activations((1, *shape[1:]))
    found = called_in_a_model(layer, x, IDS, {"batch", "shared"})
    expected = call(layer, np.repeat(x, BATCH, axis=0), IDS)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="3 entries for a batch of 1 in layer"):
        called_in_a_model(layer, x, IDS, {"batch"})


def test_rows_that_are_not_one_per_entry_raise():
    layer, shape = make_layer("btd,df->btf")
    for rows, orders, remedy in (
        (4, {"repeat"}, "Pass one entry per example."),
        (
            6,
            {"batch"},
            "Repeat the entries, such as by `keras.ops.repeat`, or state the order of "
            "the rows in `enable_flix(..., rows={...})`.",
        ),
    ):
        with pytest.raises(ValueError) as error:
            called_in_a_model(layer, activations((rows, *shape[1:])), IDS, orders)
        assert (
            f"The features must have one entry per example. Received: 3 entries for a "
            f"batch of {rows} in layer {layer.path!r}, whose rows are in the order "
            f"{sorted(orders)}. {remedy}"
        ) in str(error.value)


def test_features_of_a_call_are_one_per_row():
    layer, shape = make_layer("btd,df->btf")
    layer.row_orders = frozenset({"repeat", "shared"})
    for rows in (1, 2 * BATCH):
        with pytest.raises(ValueError, match="3 entries|of a batch|for a batch"):
            call(layer, activations((rows, *shape[1:])), IDS)


def test_rows_of_no_known_order():
    layer, shape = make_layer("btd,df->btf")
    with pytest.raises(ValueError, match="must be known which example each row"):
        called_in_a_model(layer, activations(shape), IDS, None)
    with pytest.raises(ValueError, match="must bring its features. Received: none"):
        called_in_a_model(layer, activations((6, *shape[1:])), IDS, ())
    # Of one example, or one value for all, whatever the rows are.
    x = activations((5, *shape[1:]))
    one = {name: ids[:1] for name, ids in IDS.items()}
    found = called_in_a_model(layer, x, one, None)
    expected = call(layer, x, {name: np.repeat(v, 5, 0) for name, v in one.items()})
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("equation", ["btd,df->btf", "bd,df->bf", "...x,xy->...y"])
@pytest.mark.parametrize("length", [1, 4])
def test_an_empty_batch(equation, length):
    """With one axis longer than 1, Keras' `ops.add` takes it for a bias on TF."""
    layer, shape = make_layer(equation)
    shape = (0, *[length] * (len(shape) - 2), shape[-1])
    found = call(layer, np.zeros(shape, "float32"), {"task": [], "language": []})
    assert found.shape == (*shape[:-1], layer.kernel.shape[-1])


ONLY_TF = pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="only TF traces unknown lengths"
)


@pytest.mark.short("tensorflow")
@ONLY_TF
def test_any_number_of_values_per_example():
    import tensorflow as tf

    layer, shape = make_layer("btd,df->btf")

    @tf.function(input_signature=[tf.TensorSpec((None, None), tf.int32)])
    def run(language):
        return layer(x, features={"task": IDS["task"], "language": language})

    x = activations(shape)
    for k in (1, 2):
        language = IDS["language"][:, :k]
        expected = call(layer, x, {**IDS, "language": language})
        np.testing.assert_allclose(
            run(language).numpy(), expected, rtol=1e-5, atol=1e-5
        )


@pytest.mark.short("tensorflow")
@ONLY_TF
def test_a_batch_of_unknown_length_that_is_no_multiple_raises():
    import tensorflow as tf

    layer, _ = make_layer("btd,df->btf", features=FEATURES[:1])

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, 4, 5), tf.float32),
            tf.TensorSpec((None,), tf.int32),
        ]
    )
    def run(x, task):
        return layer(x, features={"task": task})

    x = activations((3, 4, 5))
    expected = call(layer, x, {"task": [0, 1, 2]})
    found = run(x, np.array([0, 1, 2], "int32")).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(tf.errors.InvalidArgumentError):
        # 3 * 4 rows, shared out among 2 examples, would pass unnoticed.
        run(x, np.array([0, 1], "int32"))


def test_nan_in_one_values_table_stays_with_its_examples():
    layer, shape = make_layer("btd,ndh->btnh")
    x = activations(shape)
    clean = call(layer, x, IDS)
    a = layer._tables.named_variables["flix_task_a"]
    value = ops.convert_to_numpy(a).copy()
    value[0] = np.nan
    a.assign(value)
    found = call(layer, x, IDS)
    assert np.isnan(found[0]).all()
    np.testing.assert_array_equal(found[1:], clean[1:])
