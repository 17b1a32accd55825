"""What trains besides the adapters is known, kept in every copy, and nothing more."""

import contextlib
import copy
import pickle
import warnings

import keras
import numpy as np
import pytest
from helpers.gemma import make_backbone, randomize, to_numpy

import keras_flix
from keras_flix.models.adapted.trained_base import trained_base

pytestmark = pytest.mark.eager

FEATURES = {"task": ["qa", "parse"]}
X = np.random.default_rng(0).normal(size=(6, 8)).astype("float32")
DATA = {"x": X, "task": np.array([0, 1, -1, 1, 0, 1], "int32")}
Y = np.random.default_rng(1).normal(size=(6, 3)).astype("float32")
HEAD = ["head/kernel", "head/bias"]
NORM = [f"norm/{name}" for name in ("gamma", "beta", "moving_mean", "moving_variance")]


def plain(seed=0, units=3):
    keras.utils.set_random_seed(seed)
    x = keras.Input((8,), name="x")
    hidden = keras.layers.Dense(6, name="hidden")(x)
    normed = keras.layers.BatchNormalization(name="norm")(hidden)
    return keras.Model({"x": x}, keras.layers.Dense(units, name="head")(normed))


def adapted(*trained, seed=0, features=FEATURES):
    """A compiled model in which the named layers train besides."""
    model = keras_flix.enable_flix(plain(seed), features, targets=["hidden"], rank=2)
    randomize(model)
    for name in trained:
        model.get_layer(name).trainable = True
    model.compile(keras.optimizers.Adam(0.05), loss="mse")
    return model


def step(model, count=2):
    for _ in range(count):
        model.train_on_batch(DATA, Y)
    return model


def besides(model):
    return [v.path for v in model.trainable_variables if "flix_" not in v.path]


def state(model):
    variables = [*model.variables, *model.optimizer.variables]
    return {v.path: to_numpy(v) for v in variables}


def assert_same_state(one, other):
    found, expected = state(one), state(other)
    assert len(found) == len(expected)
    for (path, value), wanted in zip(found.items(), expected.values(), strict=True):
        np.testing.assert_array_equal(value, wanted, err_msg=path)


# What it is. ------------------------------------------------------------------


@pytest.mark.short("torch")
def test_what_trains_and_what_moves_along():
    assert not trained_base(adapted())
    model = adapted("head")
    assert list(trained_base(model)) == HEAD
    model.get_layer("norm").trainable = True
    assert list(trained_base(model)) == [*NORM, *HEAD]
    # Of a layer with adapters, only what was let train.
    model.get_layer("hidden").bias.trainable = True
    assert list(trained_base(model)) == ["hidden/bias", *NORM, *HEAD]
    assert not trained_base(plain())


@pytest.mark.short("torch")
def test_averages_of_a_layer_without_weights_count():
    x = keras.Input((8,), name="x")
    norm = keras.layers.BatchNormalization(center=False, scale=False, name="norm")
    model = keras.Model({"x": x}, keras.layers.Dense(3, name="head")(norm(x)))
    keras_flix.enable_flix(model, FEATURES, targets=["head"], rank=2)
    assert not trained_base(model)
    norm.trainable = True
    assert list(trained_base(model)) == NORM[2:]


@pytest.mark.parametrize("off", ["layer", "model"])
def test_what_has_trained_is_not_forgotten_when_it_is_frozen(off):
    model = adapted("head")
    if off == "layer":
        step(model, 1)
        model.get_layer("head").trainable = False
    else:
        model.trainable = False
    assert besides(model) == []
    assert list(trained_base(model)) == HEAD


@pytest.mark.parametrize("came", ["load_weights", "keras file", "deepcopy"])
def test_what_was_let_train_is_not_forgotten_where_it_comes_to_weights(came, tmp_path):
    """As after a loop of one's own, of which nothing is known."""
    model = adapted("head")
    model.get_layer("head").kernel.assign_add(np.ones((6, 3)))
    if came == "deepcopy":
        found = copy.deepcopy(model)
    elif came == "keras file":
        model.save(tmp_path / "one.keras")
        found = keras.models.load_model(tmp_path / "one.keras")
    else:
        model.save_weights(tmp_path / "one.weights.h5")
        found = adapted("head")
        found.load_weights(tmp_path / "one.weights.h5")
    found.get_layer("head").trainable = False
    assert list(trained_base(found)) == HEAD


def test_only_what_is_let_train_moves():
    model = adapted("head")
    before = state(model)
    step(model)
    after = state(model)
    moved = {path for path, value in before.items() if (value != after[path]).any()}
    assert {"head/kernel", "head/bias"} < moved
    assert not moved & {"hidden/kernel", "hidden/bias", *NORM}


# The flag of the whole model. ---------------------------------------------------


def test_true_after_false_lets_train_what_did():
    model = adapted("head")
    before = [v.path for v in model.trainable_variables]
    for _ in range(2):
        model.trainable = False
        assert not model.trainable and model.trainable_variables == []
        model.trainable = True
        assert model.trainable
        assert [v.path for v in model.trainable_variables] == before
        assert not model.get_layer("norm").trainable


@contextlib.contextmanager
def said():
    """TensorFlow leaves out assignments that change nothing: that is nobody's call."""
    if keras.config.backend() == "tensorflow":
        yield
        return
    with pytest.warns(UserWarning, match="leaves the base of an adapted model frozen"):
        yield


@pytest.mark.short("torch", "tensorflow")
def test_true_alone_leaves_the_base_frozen_and_says_so():
    model = adapted()
    with said():
        model.trainable = True
    assert besides(model) == []


def test_a_task_and_its_backbone(make_gemma):
    task = keras_flix.enable_flix(make_gemma(preprocessor=False), FEATURES)
    before = [v.path for v in task.trainable_variables]
    task.backbone.trainable = False
    assert task.trainable_variables == []
    task.trainable = False
    task.trainable = True
    # What was frozen apart stays frozen.
    assert task.trainable_variables == []
    task.backbone.trainable = True
    assert [v.path for v in task.trainable_variables] == before


def test_a_model_around_it():
    inner = adapted()
    inputs = {"x": keras.Input((8,)), "task": keras.Input((), dtype="int32")}
    outer = keras.Model(inputs, keras.layers.Dense(2, name="top")(inner(inputs)))
    outer.trainable = False
    assert outer.trainable_variables == []
    outer.trainable = True
    assert besides(outer) == ["top/kernel", "top/bias"]
    with said():
        outer.trainable = True
    assert besides(outer) == ["top/kernel", "top/bias"]


def test_an_adapted_layer():
    model = adapted()
    layer = model.get_layer("hidden")
    layer.trainable = True
    assert besides(model) == []
    layer.trainable = False
    assert model.trainable_variables == []
    layer.trainable = True
    assert {v.path for v in model.trainable_variables} == {
        "hidden/flix_task_a",
        "hidden/flix_task_b",
    }
    layer.bias.trainable = True
    layer.trainable = False
    layer.trainable = True
    assert besides(model) == ["hidden/bias"]


@pytest.mark.parametrize("trainable", [True, False])
def test_a_layer_of_its_own(trainable):
    layer = keras_flix.FlixDense(3, features=FEATURES, rank=2, trainable=trainable)
    layer.build((None, 8))
    names = ["bias", "flix_task_a", "flix_task_b"]
    for _ in range(2):
        layer.trainable = False
        assert layer.trainable_variables == []
        layer.trainable = True
        assert [v.name for v in layer.trainable_variables] == names


# Copies. ------------------------------------------------------------------------


def reloaded(model, folder):
    model.save(folder / "model.keras")
    return keras.models.load_model(folder / "model.keras")


COPIES = {
    "keras file": reloaded,
    "deepcopy": lambda model, _: copy.deepcopy(model),
    "pickle": lambda model, _: pickle.loads(pickle.dumps(model)),
}


@pytest.mark.support("State", "Copies and `.keras` files of layers that train besides")
@pytest.mark.parametrize("copied", COPIES)
def test_copies_train_what_the_model_trains(copied, tmp_path):
    model = adapted("head", "norm")
    # And what rests that would train.
    model.get_layer("hidden")._tables.variables["task"][0].trainable = False
    step(model)
    found = COPIES[copied](model, tmp_path)
    assert [v.path for v in found.trainable_variables] == [
        v.path for v in model.trainable_variables
    ]
    assert found.get_layer("norm").trainable
    assert list(trained_base(found)) == [*NORM, *HEAD]
    assert_same_state(found, model)
    step(model), step(found)
    assert_same_state(found, model)


def test_copies_know_what_had_trained_and_what_is_off(tmp_path):
    model = adapted("head")
    model.trainable = False
    found = reloaded(model, tmp_path)
    assert not found.trainable and found.trainable_variables == []
    assert list(trained_base(found)) == HEAD
    found.trainable = True
    assert besides(found) == []


@pytest.mark.short("torch")
def test_without_such_layers_configs_are_as_before():
    assert "flags" not in adapted().get_config()


@pytest.mark.short("torch")
def test_a_config_of_other_layers_is_refused():
    config = adapted("head").get_config()
    config["flags"]["trains"][0][0] = 77
    with pytest.raises(ValueError, match="Expected: a Dense at place 77"):
        type(adapted()).from_config(config)


@pytest.mark.support("State", "Optimizer state of a task in `.keras` files")
def test_a_tasks_file_holds_what_its_optimizer_knew(tmp_path, make_gemma):
    task = keras_flix.enable_flix(make_gemma(preprocessor=False), FEATURES, rank=1)
    task.compile(keras.optimizers.Adam(0.05), loss="mse", sampler="greedy")
    task.optimizer.build(task.trainable_variables)
    task.optimizer.iterations.assign(7)
    found = reloaded(task, tmp_path)
    assert int(found.optimizer.iterations) == 7


@pytest.mark.parametrize("copied", [copy.deepcopy, None])
def test_a_tasks_copy_has_its_optimizer(copied, tmp_path, make_gemma):
    """KerasHub's tasks are compiled with their defaults, whatever the file says."""
    task = keras_flix.enable_flix(make_gemma(preprocessor=False), FEATURES, rank=1)
    optimizer = keras_flix.LazyAdam(0.05, beta_2=0.9, step_counts="value")
    task.compile(optimizer, loss="mse", metrics=["mae"], sampler="greedy")
    optimizer.build(task.trainable_variables)
    optimizer.iterations.assign(7)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = copied(task) if copied else reloaded(task, tmp_path)
    assert type(found.optimizer) is keras_flix.LazyAdam
    assert found.optimizer.get_config() == optimizer.get_config()
    assert (int(found.optimizer.iterations), found.loss) == (7, "mse")


def test_a_task_whose_loss_keras_does_not_know_is_copied(tmp_path, make_gemma):
    task = keras_flix.enable_flix(make_gemma(preprocessor=False), FEATURES, rank=1)
    task.compile("sgd", loss=lambda y, outputs: outputs, sampler="greedy")
    with pytest.warns(UserWarning, match="`compile..` was not called"):
        found = reloaded(task, tmp_path)
    assert isinstance(found.optimizer, keras.optimizers.Adam)


# Merged models. -----------------------------------------------------------------


def test_merging_keeps_what_was_frozen_frozen(tmp_path):
    model = plain()
    model.get_layer("norm").trainable = False
    model.get_layer("head").bias.trainable = False
    frozen = {v.path for v in model.non_trainable_variables}
    keras_flix.enable_flix(model, FEATURES, targets=["hidden"], rank=2)
    for source in (model, reloaded(model, tmp_path), copy.deepcopy(model)):
        merged = keras_flix.merge_features(source, {"task": "qa"})
        assert {v.path for v in merged.non_trainable_variables} == frozen
        assert not merged.get_layer("norm").trainable
    # What was let train since then trains.
    model.get_layer("norm").trainable = True
    merged = keras_flix.merge_features(model, {"task": "qa"})
    assert merged.get_layer("norm").trainable
    assert "norm/gamma" in {v.path for v in merged.trainable_variables}


def test_merging_a_task_keeps_what_was_frozen_frozen():
    backbone = make_backbone()
    backbone.get_layer("token_embedding").trainable = False
    keras_flix.enable_flix(backbone, FEATURES)
    merged = keras_flix.merge_features(backbone, {"task": None})
    assert [v.path for v in merged.non_trainable_variables] == [
        "token_embedding/embeddings"
    ]


# Adapter files. -----------------------------------------------------------------


def outputs(model):
    return to_numpy(model(DATA))


@pytest.mark.support("State", "`save_adapters` of layers that train besides")
@pytest.mark.parametrize("frozen_again", [False, True])
def test_adapter_files_hold_what_trained(tmp_path, frozen_again):
    path = tmp_path / "one.flix.safetensors"
    model = step(adapted("head", "norm"))
    if frozen_again:
        model.get_layer("head").trainable = False
    keras_flix.save_adapters(model, path)
    expected = outputs(model)
    found = keras_flix.load_adapters(plain(), path)
    np.testing.assert_array_equal(outputs(found), expected)
    assert besides(found) == [*NORM[:2], *HEAD]
    assert found.get_layer("norm").trainable
    # In a model with choices of its own, these stay.
    other = keras_flix.load_adapters(adapted(), path)
    np.testing.assert_array_equal(outputs(other), expected)
    assert besides(other) == []
    # From there it goes on into the next file.
    keras_flix.save_adapters(other, path)
    again = keras_flix.load_adapters(plain(), path)
    np.testing.assert_array_equal(outputs(again), expected)


def test_half_precision_comes_back_bit_by_bit(tmp_path):
    path = tmp_path / "one.flix.safetensors"
    model = adapted("head")
    for variable in model.get_layer("head").variables:
        variable._dtype = "bfloat16"
        variable._value = None
        variable._initialize(keras.ops.cast(np.full(variable.shape, 0.1), "bfloat16"))
    keras_flix.save_adapters(model, path)
    found = keras_flix.load_adapters(plain(), path).get_layer("head").bias
    np.testing.assert_array_equal(to_numpy(found), np.float32([0.10009765625] * 3))


@pytest.mark.short("torch")
def test_files_that_hold_adapters_only_are_as_before(tmp_path):
    path = tmp_path / "one.flix.safetensors"
    keras_flix.save_adapters(adapted(), path)
    assert b'"version\\": 1' in path.read_bytes()
    keras_flix.save_adapters(adapted("head"), path)
    assert b'"version\\": 2' in path.read_bytes()


@pytest.mark.short("torch")
def test_a_model_without_a_place_for_it_is_left_as_it_was(tmp_path):
    path = tmp_path / "one.flix.safetensors"
    keras_flix.save_adapters(adapted("head"), path)
    model = plain(units=4)
    kernel = to_numpy(model.get_layer("hidden").kernel)
    with pytest.raises(ValueError) as error:
        keras_flix.load_adapters(model, path, check_base=False)
    assert "At 'head/kernel', expected: shape (6, 4). Received: (6, 3) in" in str(
        error.value
    )
    assert type(model.get_layer("hidden")) is keras.layers.Dense
    np.testing.assert_array_equal(to_numpy(model.get_layer("hidden").kernel), kernel)


@pytest.mark.short("torch")
def test_adapters_of_another_head_are_refused(tmp_path):
    path = tmp_path / "one.flix.safetensors"
    keras_flix.save_adapters(adapted(), path)
    model = step(adapted("head"))
    with pytest.raises(ValueError, match="If these trained along, save the adapters"):
        keras_flix.load_adapters(model, path)
    # And values that were trained beside another one.
    model = adapted()
    more = adapted(features={"task": ["qa", "ner"]})
    keras_flix.update_from(model, more)
    step(more, 0)
    more = adapted("head", features={"task": ["qa", "tag"]})
    keras_flix.update_from(model, more)
    more = adapted("head", features={"task": ["qa", "sum"]})
    more.get_layer("head").bias.assign([1, 2, 3])
    with pytest.raises(ValueError, match="with another 'head/bias'"):
        keras_flix.update_from(model, more)
    keras_flix.update_from(model, more, check_base=False)
    with pytest.raises(ValueError, match="2 of the 8 variables"):
        head = adapted("head")
        head.get_layer("head").kernel.assign(np.ones((6, 3)))
        head.get_layer("head").bias.assign([1, 2, 3])
        keras_flix.update_from(head, adapted(features={"task": ["x"]}))


@pytest.mark.short("torch")
def test_a_lora_export_does_not_drop_it(tmp_path):
    backbone = keras_flix.enable_flix(make_backbone(), FEATURES)
    backbone.get_layer("final_normalization").trainable = True
    with pytest.raises(ValueError, match="'final_normalization/scale', which trained"):
        keras_flix.export_lora(backbone, {"task": "qa"}, tmp_path / "lora")
    assert not list(tmp_path.iterdir())
