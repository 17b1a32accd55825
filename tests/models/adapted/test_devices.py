"""More than one device: numbers are those of one, and tables lie where told.

Devices are chosen before a backend starts, so the scripts in `devices/` train in
processes of their own and print what came out.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pytest
from helpers.gemma import FEATURES, make_backbone, randomize, to_numpy
from helpers.models import make_mlp, rows, state

import keras_flix
from keras_flix.layers.einsum_split import split_equation
from keras_flix.models.sharding import table_layouts

BACKEND = keras.config.backend()
SCRIPTS = Path(__file__).parent / "on_devices"
ONLY_ON_JAX = (
    "One process has several devices on JAX only. Other distributions of "
    "`keras.distribution` are refused, but for PyTorch's `DataParallel` from Keras "
    "3.16 on, of one device per process."
)
CLASSES = {
    "torch": "`DistributedDataParallel` is a class of PyTorch.",
    "tensorflow": "`MirroredStrategy` is a class of TensorFlow.",
}
MESH = ("batch", "model")


def only(backend, reason):
    if BACKEND != backend:
        pytest.skip(reason)


def output_of(script, *arguments):
    """What a script printed last, a JSON object."""
    path = os.pathsep.join([str(Path(keras_flix.__file__).parents[1]), *sys.path])
    result = subprocess.run(
        [sys.executable, str(SCRIPTS / script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1])


def assert_close(actual, expected):
    """Equal to 1e-5 of the largest number."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    scale = max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * scale)


def assert_tables_close(actual, expected):
    assert actual.keys() == expected.keys() and expected
    for path in expected:
        assert_close(actual[path], expected[path])


# Rules of a layout map. ------------------------------------------------------


def device_mesh(shape=(1, 1)):
    """A mesh of devices that need not exist: nothing is placed on them."""
    devices = [f"cpu:{i}" for i in range(np.prod(shape))]
    return keras.distribution.DeviceMesh(shape, MESH, devices)


FAMILIES = {
    "gemma": keras_hub.models.GemmaBackbone,
    "llama": keras_hub.models.LlamaBackbone,
}


def make_family(name):
    if name == "gemma":
        return make_backbone()
    return keras_hub.models.LlamaBackbone(
        vocabulary_size=40,
        num_layers=2,
        num_query_heads=4,
        num_key_value_heads=2,
        hidden_dim=16,
        intermediate_dim=24,
    )


GEMMA_AXES = {
    "query": ("batch", "model"),
    "key": ("batch", "model"),
    "value": ("batch", "model"),
    "attention_output": ("model", "batch"),
    "ffw_gating": ("batch", "model"),
    "ffw_gating_2": ("batch", "model"),
    "ffw_linear": ("model", "batch"),
}
# KerasHub's map gives Llama's kernels (in, heads, head_dim) Gemma's axes.
LLAMA_AXES = {
    "query": ("model", "batch"),
    "key": ("model", "batch"),
    "value": ("model", "batch"),
    "attention_output": ("model", "batch"),
    "feedforward_intermediate_dense": ("batch", "model"),
    "feedforward_gate_dense": ("batch", "model"),
    "feedforward_output_dense": ("model", "batch"),
}


@pytest.mark.parametrize(
    "family, axes", [("gemma", GEMMA_AXES), ("llama", LLAMA_AXES)], ids=FAMILIES
)
def test_tables_follow_their_kernels(family, axes):
    layout_map = FAMILIES[family].get_layout_map(device_mesh())
    before = {path: layout.axes for path, layout in layout_map.items()}
    model = make_family(family)
    added = keras_flix.add_adapter_rules(layout_map, model)
    assert {path: layout.axes for path, layout in layout_map.items()} == before | added
    # Layers that differ in their number share a rule.
    assert len(added) == 2 * len(axes)

    old = {v.path: layout_map[v.path] for v in model.variables}
    keras_flix.enable_flix(model, FEATURES, targets="all-linear")
    for variable in model.trainable_variables:
        layer, table = variable.path.rsplit("/", 2)[1:]
        inner, outer = axes[layer]
        expected = (None, inner, None) if table[-1] == "a" else (None, None, outer)
        assert layout_map[variable.path].axes == expected
    assert {v.path: layout_map[v.path] for v in model.non_trainable_variables} == old


@pytest.mark.parametrize(
    "equation, kernel, a, b",
    [
        ("btd,ndh->btnh", ("model", "batch", None), "batch", "model"),
        ("btnh,nhd->btd", ("model", None, "batch"), "model", "batch"),
        # Runs of the flattened axis are not runs of its inner part.
        ("btd,ndh->btnh", (None, None, "model"), None, None),
        ("btnh,nhd->btd", (None, "model", None), None, None),
        # What a layout leaves out is not sharded.
        ("btd,dnh->btnh", ("model",), "model", None),
    ],
)
def test_a_flattened_axis_follows_its_outermost_part(equation, kernel, a, b):
    rank = len(equation.split(",")[0])
    layouts = table_layouts(split_equation(equation, rank), kernel)
    assert layouts == {"a": (None, a, None), "b": (None, None, b)}


def make_stack():
    x = keras.Input((8,), name="x")
    y = x
    for i in range(3):
        y = keras.layers.Dense(8, name=f"hidden_{i}")(y)
    return keras.Model({"x": x}, y)


def test_layers_that_differ_get_rules_of_their_own():
    layout_map = keras.distribution.LayoutMap(device_mesh())
    layout_map["hidden_[01]/kernel"] = ("batch", "model")
    assert keras_flix.add_adapter_rules(layout_map, make_stack()) == {
        "hidden_0/flix_.*_a": (None, "batch", None),
        "hidden_1/flix_.*_a": (None, "batch", None),
        "hidden_0/flix_.*_b": (None, None, "model"),
        "hidden_1/flix_.*_b": (None, None, "model"),
    }


def test_rules_of_ones_own_win():
    layout_map = keras.distribution.LayoutMap(device_mesh())
    layout_map["hidden.*/kernel"] = ("batch", "model")
    layout_map["hidden_1/flix_.*_b"] = ("model", None, None)
    added = keras_flix.add_adapter_rules(layout_map, make_stack())
    assert added == {
        r"hidden_\d+/flix_.*_a": (None, "batch", None),
        "hidden_0/flix_.*_b": (None, None, "model"),
        "hidden_2/flix_.*_b": (None, None, "model"),
    }
    assert layout_map["hidden_1/flix_task_b"].axes == ("model", None, None)


def test_a_map_of_another_family_is_refused():
    layout_map = keras_hub.models.LlamaBackbone.get_layout_map(device_mesh())
    before = dict(layout_map)
    message = (
        "`layout_map` must shard some kernel of the model, which the adapters then "
        f"follow. Received: the rules {list(layout_map)}, for a model with layers such "
        "as ['hidden_0', 'hidden_1', 'hidden_2']. Use the layout map of the model's "
        "own family."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        keras_flix.add_adapter_rules(layout_map, make_stack())
    assert dict(layout_map) == before


def test_rules_for_tables_that_exist_are_refused():
    layout_map = keras.distribution.LayoutMap(device_mesh())
    layout_map["hidden/kernel"] = (None, "model")
    model = keras_flix.enable_flix(make_mlp(), FEATURES, targets=["hidden"])
    with pytest.raises(ValueError, match="^Rules .* Call `add_adapter_rules` first"):
        keras_flix.add_adapter_rules(layout_map, model)
    assert list(layout_map) == ["hidden/kernel"]


# What is refused. ------------------------------------------------------------


@pytest.mark.parametrize("row", ["`DataParallel`", "`ModelParallel`"])
def test_a_distribution_that_does_not_hold_the_model_is_refused(row, request):
    mesh = device_mesh((2, 4))
    distribution = {
        "`DataParallel`": keras.distribution.DataParallel(devices=[*mesh.devices.flat]),
        "`ModelParallel`": keras.distribution.ModelParallel(
            layout_map=keras.distribution.LayoutMap(mesh)
        ),
    }[row]
    name = row.strip("`")
    if BACKEND == "jax":
        message = (
            "A model must be built and adapted under the same distribution. Received: "
            "a model on 1 device(s), and a current distribution over 8. Call "
            "`keras.distribution.set_distribution` before the model is built, or do "
            "both in one `with distribution.scope()`."
        )
    else:
        request.node.add_marker(pytest.mark.support("Devices", row, "refused"))
        message = (
            "A distribution of `keras.distribution` must be one that adapters follow: "
            "JAX's, and from Keras 3.16 on PyTorch's `DataParallel` with one process "
            f"per device. Received: {name} over 8 devices on the {BACKEND!r} backend, "
            "in 1 process(es) that train together. Switch to JAX, or use "
            "`keras.distribution.set_distribution(None)` and the backend's own "
            "`torch.nn.parallel.DistributedDataParallel` or "
            "`tf.distribute.MirroredStrategy`."
        )
    model, batch = make_mlp(), rows()
    before = state(model, batch)
    with distribution.scope():
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            keras_flix.enable_flix(model, FEATURES, targets="all-linear")
    assert state(model, batch) == before


def test_a_distribution_over_one_device_is_no_matter():
    with keras.distribution.DataParallel(devices=["cpu:0"]).scope():
        model = make_mlp()
        keras_flix.enable_flix(model, FEATURES, targets="all-linear", seed=1)
        outputs = to_numpy(model({**rows(), "task": "qa", "language": "sw"}))
    plain = keras_flix.enable_flix(make_mlp(), FEATURES, targets="all-linear", seed=1)
    expected = to_numpy(plain({**rows(), "task": "qa", "language": "sw"}))
    np.testing.assert_array_equal(outputs, expected)


# JAX: keras.distribution. ----------------------------------------------------


@pytest.fixture(scope="module")
def on_jax(tmp_path_factory):
    only("jax", ONLY_ON_JAX)
    folder = tmp_path_factory.mktemp("adapters")
    return output_of("on_jax.py", folder, "single", "data", "model", "whole")


LAYOUTS = [
    pytest.param("data", marks=pytest.mark.support("Devices", "`DataParallel`")),
    pytest.param("model", marks=pytest.mark.support("Devices", "`ModelParallel`")),
]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "what", ["predicted", "losses", "predicted after", "combination"]
)
def test_numbers_are_those_of_one_device(on_jax, layout, what):
    assert_close(on_jax[layout][what], on_jax["single"][what])


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sampler", ["greedy", "beam"])
def test_generated_tokens_are_those_of_one_device(on_jax, layout, sampler):
    assert on_jax[layout][sampler] == on_jax["single"][sampler]
    assert on_jax["single"]["greedy"] != on_jax["single"]["beam"]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_trained_tables_are_those_of_one_device(on_jax, layout):
    assert_tables_close(on_jax[layout]["trained"], on_jax["single"]["trained"])
    assert on_jax[layout]["base stayed"]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_adapters_load_and_merge_under_a_distribution(on_jax, layout):
    result = on_jax[layout]
    np.testing.assert_array_equal(result["loaded"], result["predicted after"])
    assert result["loaded parts"] == result["parts after"]
    assert_close(result["merged"], result["combination"])


@pytest.mark.slow
@LAYOUTS[0].marks[0]
def test_lazy_adam_is_that_of_one_device(on_jax):
    assert_tables_close(on_jax["data"]["lazy"], on_jax["single"]["lazy"])


def split(layout, path, shape):
    """The mesh axes of a Gemma's table, and the shape of one of 8 devices' part."""
    axes, part = [None] * 3, list(shape)
    if layout == "model":
        layer, table = path.rsplit("/", 2)[1:]
        place = 1 if table[-1] == "a" else 2
        axes[place] = GEMMA_AXES[layer][place - 1]
        part[place] //= {"batch": 2, "model": 4}[axes[place]]
    return [axes, part, 8]


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tables_lie_where_the_layout_says(on_jax, layout):
    result = on_jax[layout]
    shapes = {k: np.shape(v) for k, v in on_jax["single"]["trained"].items()}
    expected = {path: split(layout, path, shape) for path, shape in shapes.items()}
    assert len(expected) == 3 * 3 * 2
    found = {path: result["parts"][path] for path in expected}
    assert found == expected
    # Training steps leave them there.
    assert result["parts after"] == expected


@pytest.mark.slow
@pytest.mark.support("Devices", "`ModelParallel`")
def test_without_rules_every_device_holds_all_tables(on_jax):
    parts = on_jax["whole"]["parts"]
    shapes = {k: list(np.shape(v)) for k, v in on_jax["single"]["trained"].items()}
    for path, shape in shapes.items():
        assert parts[path] == [[None] * 3, shape, 8]
    assert parts["decoder_block_0/attention/query/kernel"][1] == [1, 8, 6]
    assert_close(on_jax["whole"]["predicted"], on_jax["single"]["predicted"])


# PyTorch: DistributedDataParallel. -------------------------------------------


@pytest.fixture(scope="module")
def on_torch(tmp_path_factory):
    only("torch", CLASSES["torch"])
    return output_of("on_torch.py", tmp_path_factory.mktemp("processes"))


DDP = pytest.mark.support("Devices", "`DistributedDataParallel`")


@DDP
@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_processes_train_as_one_does_on_the_whole_batch(on_torch, rank):
    single, result = on_torch["single"], on_torch[f"process {rank}"]
    for actual, expected in zip(result["gradients"], single["gradients"], strict=True):
        assert_tables_close(actual, expected)
    assert_tables_close(result["trained"], single["trained"])
    assert result["base stayed"]
    assert result["optimized"] == len(result["trained"])


@DDP
@pytest.mark.slow
def test_processes_see_other_examples_and_start_from_the_first_ones_tables(on_torch):
    first, second = on_torch["process 0"], on_torch["process 1"]
    assert first["losses"] != second["losses"]
    assert first["started"] != second["started"]
    assert_close(
        np.mean([first["losses"], second["losses"]], axis=0),
        on_torch["single"]["losses"],
    )


@DDP
def test_ddp_synchronizes_the_tables_and_nothing_else(tmp_path):
    only("torch", CLASSES["torch"])
    import torch

    model = keras_flix.enable_flix(make_backbone(), FEATURES)
    tokens = np.ones((2, 4), "int32")
    batch = {"token_ids": tokens, "padding_mask": tokens}
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        ddp = torch.nn.parallel.DistributedDataParallel(model)
        trained = {id(p) for p in ddp.parameters() if p.requires_grad}
        assert trained == {id(v.value) for v in model.trainable_variables}
        # No value of an axis is active, and every table has a gradient still: no
        # process waits for one, and `find_unused_parameters` is not needed.
        for _ in range(2):
            ddp({**batch, "task": None, "language": "sw"}).sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    for variable in model.trainable_variables:
        gradient = variable.value.grad
        if "/flix_task_" in variable.path:
            assert gradient.abs().max() == 0.0
        elif variable.path.endswith("_b"):
            assert gradient[1].abs().max() > 0.0


@pytest.mark.parametrize("how", ["fully_shard", "a block", "parameters"])
def test_parameters_that_torch_splits_are_refused(tmp_path, how):
    """Keras would go on with the whole ones, without a word."""
    only("torch", "FSDP2 and DTensors are of PyTorch.")
    import torch
    from torch.distributed.fsdp import fully_shard

    def split(model, mesh):
        if how == "fully_shard":
            fully_shard(model, mesh=mesh)
        elif how == "a block":
            fully_shard(model.get_layer("head"), mesh=mesh)
        else:
            distribute(model.get_layer("head").torch_params, mesh)

    def distribute(parameters, mesh):
        for name in parameters:
            whole = parameters[name].detach()
            shard = torch.distributed.tensor.distribute_tensor(whole, mesh)
            parameters[name] = torch.nn.Parameter(shard)

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    options = {"rank": 2, "targets": ["hidden"]}
    batch, y = {**rows(), "task": "qa"}, np.zeros((3, 4))
    features = {"task": ["qa", "parse"]}
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        model = make_mlp()
        split(model, mesh)
        with pytest.raises(ValueError, match="parameters must be whole"):
            keras_flix.enable_flix(model, features, **options)
        model = keras_flix.enable_flix(make_mlp(), features, **options)
        model.compile("sgd", "mse")
        split(model, mesh)
        for run in (
            lambda: model(batch),
            lambda: model.fit(batch, y, verbose=0),
            lambda: model.evaluate(batch, y, verbose=0),
            lambda: model.predict(batch, verbose=0),
            lambda: model.train_on_batch(batch, y),
        ):
            with pytest.raises(ValueError, match="parameters must be whole"):
                run()
    finally:
        torch.distributed.destroy_process_group()


# TensorFlow: MirroredStrategy. -----------------------------------------------


@pytest.fixture(scope="module")
def on_tensorflow():
    only("tensorflow", CLASSES["tensorflow"])
    return output_of("on_tensorflow.py")


MIRRORED = pytest.mark.support("Devices", "`MirroredStrategy`")


@MIRRORED
@pytest.mark.slow
def test_replicas_train_as_one_device_does(on_tensorflow):
    single, mirrored = on_tensorflow["single"], on_tensorflow["mirrored"]
    assert_close(mirrored["losses"], single["losses"])
    assert_close(mirrored["predicted"], single["predicted"])
    assert_tables_close(mirrored["trained"], single["trained"])
    assert mirrored["greedy"] == single["greedy"]
    assert mirrored["base stayed"]


@MIRRORED
@pytest.mark.slow
def test_replicas_train_as_one_device_does_with_lazy_adam(on_tensorflow):
    single, mirrored = on_tensorflow["lazy single"], on_tensorflow["lazy mirrored"]
    assert_tables_close(mirrored["trained"], single["trained"])


@MIRRORED
@pytest.mark.slow
@pytest.mark.parametrize("case", ["mirrored", "dropout", "lazy mirrored"])
def test_every_replica_holds_the_same_tables(on_tensorflow, case):
    result = on_tensorflow[case]
    for path, (first, second) in result["copies"].items():
        assert first == second == result["trained"][path]


@MIRRORED
@pytest.mark.slow
def test_features_are_dropped_in_replicas(on_tensorflow):
    dropped, kept = (on_tensorflow[c]["losses"] for c in ("dropout", "mirrored"))
    assert np.isfinite(dropped).all()
    assert dropped[0] != kept[0]


@pytest.mark.slow
def test_a_model_made_out_of_the_scope_is_refused(on_tensorflow):
    assert on_tensorflow["made out of the scope"] == (
        "A model must be built in the scope of the `tf.distribute` strategy it is "
        "adapted in. Received: a MirroredStrategy with 2 replicas, and a model built "
        "outside of its scope. Build it inside `with strategy.scope()`."
    )


@MIRRORED
def test_tables_are_made_under_the_models_own_strategy():
    only("tensorflow", CLASSES["tensorflow"])
    import tensorflow as tf

    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model = make_mlp()
    keras_flix.enable_flix(model, FEATURES, dropout=0.5, targets="all-linear")
    assert len(model.variables) == 4 + 2 * 2 * 2 + 1
    for variable in model.variables:
        assert strategy.extended.variable_created_in_scope(variable.value)


@MIRRORED
def test_frozen_values_stay_in_replicas():
    only("tensorflow", CLASSES["tensorflow"])
    import tensorflow as tf

    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model = make_mlp()
        keras_flix.enable_flix(model, FEATURES, rank=2, targets="all-linear", seed=0)
        randomize(model)
        # Keras ends `fit` outside of the scope: averages are then put in place.
        model.compile(keras.optimizers.Adam(0.1, use_ema=True), "mse")
    keras_flix.set_trainable(model, {"task": ["qa"]})
    x = {**rows(4), "task": "qa", "language": "sw"}
    before = {v.path: to_numpy(v) for v in model.weights}
    model.fit(x, np.ones(model(x).shape), verbose=0)
    moved = {}
    for path, table in {v.path: to_numpy(v) for v in model.weights}.items():
        if "flix_task_b" in path:
            moved[path] = (table != before[path]).any(axis=(1, 2)).tolist()
        elif "flix_language" in path or "kernel" in path:
            np.testing.assert_array_equal(table, before[path])
    qa = [value == "qa" for value in FEATURES["task"]]
    assert len(moved) == 2 and all(rows_moved == qa for rows_moved in moved.values())
