"""What people reported of adapters in other libraries does not happen here.

Each test names reports of its kind; `guides/faults.md` lists all that were tried, most
of which tests elsewhere keep.
"""

import gc
import warnings

import keras
import numpy as np
import pytest
from helpers.gemma import randomize, to_numpy
from helpers.growing import DATA, FEATURES, Y, predicted
from helpers.models import make_mlp, rows
from keras import ops

import keras_flix

ONE = {"task": "qa", "language": "sw"}
# The same on every backend, since it comes down to files, numpy and Python.
once = pytest.mark.short("torch")


def adapted(base=None, features=FEATURES, seed=0, **kwargs):
    options = {"rank": 2, "targets": "all-linear", "seed": 3, **kwargs}
    model = keras_flix.enable_flix(base or make_mlp(), features, **options)
    return randomize(model, seed=seed)


def functional(*makers, shape=(8,)):
    """A model of layers made anew, and a head, with the same weights each time."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input(shape, name="x")
    for make in makers:
        x = make()(x)
    return keras.Model({"x": inputs}, keras.layers.Dense(4, name="head")(x))


def called(model, data=DATA, **kwargs):
    return to_numpy(model(data, **kwargs))


def tables(model):
    return [to_numpy(variable).copy() for variable in model.trainable_variables]


def saved(model, folder, name="one"):
    path = folder / f"{name}.flix.safetensors"
    keras_flix.save_adapters(model, path)
    return path


# Lost and mixed up. ------------------------------------------------------------

NAMES = ["weight", "lora_A", "flix_task_a", "default", "kernel"]
"""Of layers, and of values: other libraries look for them inside of keys."""


def dense(units, name=None):
    return lambda: keras.layers.Dense(units, name=name)


def make_named():
    return functional(*(dense(8, name) for name in NAMES))


@once
@pytest.mark.parametrize("kind", ["adapters", "keras", "weights"])
def test_names_that_are_parts_of_others(kind, tmp_path):
    """huggingface/peft #3584, #3433, #3282, #2772; superlinked/sie #193."""
    values = [*NAMES, "en", "en_US", "en_us", "a/b", "a.b", "..", "None", "-1"]
    features = {"task": values, "task_a": ["task", "b"], "kernel": ["head"]}
    count = len(values)
    data = {**rows(count), "task": values, "task_a": ["b"] * count, "kernel": "head"}
    model = adapted(make_named(), features, rank=1)
    if kind == "adapters":
        other = keras_flix.load_adapters(make_named(), saved(model, tmp_path))
    elif kind == "keras":
        model.save(tmp_path / "one.keras")
        other = keras.models.load_model(tmp_path / "one.keras")
    else:
        model.save_weights(tmp_path / "one.weights.h5")
        other = adapted(make_named(), features, rank=1, seed=1)
        other.load_weights(tmp_path / "one.weights.h5")
    outputs = called(model, data)
    np.testing.assert_array_equal(called(other, data), outputs)
    same = called(model, {**data, "x": np.repeat(data["x"][:1], count, 0)})
    assert len(np.unique(same, axis=0)) == count
    for i, value in enumerate(values):
        alone = {**data, "x": data["x"][i : i + 1], "task": value, "task_a": "b"}
        np.testing.assert_allclose(called(model, alone)[0], outputs[i], atol=1e-5)


@once
def test_what_is_done_twice_is_done_once(tmp_path):
    """unslothai/unsloth #289, axolotl-ai-cloud/axolotl #2568."""
    model = adapted()
    expected = called(model)
    first, second = saved(model, tmp_path), saved(model, tmp_path, "two")
    assert first.read_bytes() == second.read_bytes()
    for _ in range(2):
        keras_flix.load_adapters(model, first)
        merged = keras_flix.merge_features(model, ONE)
    np.testing.assert_array_equal(called(model), expected)
    np.testing.assert_allclose(
        called(merged, rows(6)), called(model, {**rows(6), **ONE}), atol=1e-5
    )
    # A merged model has the update already.
    with pytest.raises(ValueError, match="base model that they were trained on"):
        keras_flix.load_adapters(merged, first)


@once
def test_training_goes_on_from_a_file(tmp_path):
    """axolotl-ai-cloud/axolotl #1887, huggingface/peft #1340."""

    def train(model):
        model.compile(keras.optimizers.SGD(0.1), loss="mse")
        model.fit(DATA, Y, epochs=2, verbose=0, shuffle=False)
        return model

    model = train(adapted())
    other = keras_flix.load_adapters(make_mlp(), saved(model, tmp_path))
    before = tables(other)
    for one, two in zip(tables(train(model)), tables(train(other)), strict=True):
        np.testing.assert_array_equal(one, two)
    assert all((a != b).any() for a, b in zip(before, tables(other)))


@once
def test_the_best_epoch_comes_back():
    """huggingface/transformers #29078, #24103."""
    model, kept = adapted(), []
    model.compile(keras.optimizers.SGD(5.0), loss="mse")
    keep = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: kept.append((logs["val_loss"], tables(model)))
    )
    stop = keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True)
    model.fit(
        DATA, Y, epochs=5, validation_data=(DATA, Y), callbacks=[keep, stop], verbose=0
    )
    _, best = min(kept, key=lambda pair: pair[0])
    assert (best[0] != kept[-1][1][0]).any()
    for found, expected in zip(tables(model), best, strict=True):
        np.testing.assert_array_equal(found, expected)


@once
def test_a_value_that_comes_back_starts_anew():
    """huggingface/peft #2466: what belonged to a deleted adapter was kept."""
    model = adapted()
    model.compile(keras.optimizers.Adam(0.1), loss="mse")
    model.fit(DATA, Y, verbose=0)
    keras_flix.remove_values(model, "language", ["sw"])
    keras_flix.add_values(model, "language", ["sw"])
    data = {**rows(6), "task": None, "language": "sw"}
    np.testing.assert_array_equal(called(model, data), called(make_mlp(), rows(6)))
    moments = [v for v in model.optimizer.variables if "flix_language" in v.path]
    assert moments
    assert not any(to_numpy(v)[1].any() for v in moments)


@pytest.mark.slow
@once
def test_nothing_is_left_of_what_was_dropped(tmp_path):
    """huggingface/peft #738, #3625."""
    model, counts = adapted(), []
    model.compile("adam", loss="mse")
    model.train_on_batch(DATA, Y)
    path = saved(model, tmp_path)
    for _ in range(2):
        keras_flix.add_values(model, "language", ["yo"])
        keras_flix.remove_values(model, "language", ["yo"])
        keras_flix.load_adapters(model, path)
        keras_flix.load_adapters(make_mlp(), path)
        keras_flix.merge_features(model, ONE)
        gc.collect()
        variables = (issubclass(type(x), keras.Variable) for x in gc.get_objects())
        counts.append(sum(variables))
    assert counts[0] == counts[-1] > 0


# Stale. ------------------------------------------------------------------------


@pytest.mark.short("jax", "tensorflow", "torch")
def test_other_adapters_reach_what_is_compiled(tmp_path):
    """vllm-project/vllm #42125, #30931; huggingface/diffusers #9279."""
    model, other = adapted(), adapted(seed=1)
    layer, traces = model.get_layer("head"), []
    call = layer.call
    object.__setattr__(
        layer,
        "call",
        lambda *args, **kwargs: [traces.append(1), call(*args, **kwargs)][1],
    )
    before = predicted(model)
    compilations = len(traces)
    keras_flix.load_adapters(model, saved(other, tmp_path))
    after = predicted(model)
    np.testing.assert_array_equal(after, predicted(other))
    assert (before != after).any()
    if keras.config.backend() != "torch":
        assert len(traces) == compilations


@once
def test_a_loaded_model_drops_no_features(tmp_path):
    """huggingface/transformers #34469, huggingface/peft #3766, #2438."""
    model = adapted(dropout=0.5)
    other = keras_flix.load_adapters(make_mlp(), saved(model, tmp_path))
    expected = called(model)
    for _ in range(3):
        np.testing.assert_array_equal(called(other), expected)
    assert (called(other, training=True) != expected).any()
    np.testing.assert_array_equal(called(other), expected)


@once
def test_blocks_without_adapters_nest():
    """NVIDIA-NeMo/Megatron-Bridge #5945, huggingface/peft #3447."""
    model = keras_flix.set_trainable(adapted(), {"language": ["sw"]})
    expected, base = called(model), called(make_mlp(), rows(6))
    flags = [variable.trainable for variable in model.variables]
    with keras_flix.adapters_disabled(model):
        with keras_flix.adapters_disabled(model):
            np.testing.assert_array_equal(called(model), base)
        np.testing.assert_array_equal(called(model), base)
        with pytest.raises(KeyError), keras_flix.adapters_disabled(model):
            raise KeyError
        np.testing.assert_array_equal(called(model), base)
    np.testing.assert_array_equal(called(model), expected)
    assert [variable.trainable for variable in model.variables] == flags
    assert model._adaptation.trainable == {"language": ["sw"]}


# Trained in vain. --------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer", [keras.optimizers.AdamW, keras_flix.LazyAdam], ids=lambda x: x.__name__
)
def test_training_without_adapters_is_refused(optimizer):
    """huggingface/diffusers #6092: it ran, and nothing was learned."""
    model = adapted()
    model.compile(optimizer(0.1), loss="mse")
    before = tables(model)
    with keras_flix.adapters_disabled(model):
        for train in (model.fit, model.train_on_batch):
            with pytest.raises(ValueError, match="must be on while they train"):
                train(DATA, Y)
        assert np.isfinite(model.evaluate(DATA, Y, verbose=0))
    for one, two in zip(before, tables(model), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.short("jax", "torch")
def test_statistics_of_a_frozen_base_stay(tmp_path, recwarn):
    """huggingface/peft #1734: they moved in training, and were not saved."""

    def make():
        return functional(
            dense(6, "hidden"), lambda: keras.layers.BatchNormalization(name="norm")
        )

    model = adapted(make())
    assert not [w for w in recwarn if "should stay as it is" in str(w.message)]
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    model.fit(DATA, Y, epochs=2, verbose=0)
    for found, expected in zip(model.non_trainable_variables, make().variables):
        np.testing.assert_array_equal(to_numpy(found), to_numpy(expected))
    other = keras_flix.load_adapters(make(), saved(model, tmp_path))
    np.testing.assert_array_equal(called(other), called(model))


class Counting(keras.layers.Layer):
    """Counts training steps, though it is frozen."""

    def build(self, input_shape):
        self.steps = self.add_weight(
            shape=(), initializer="zeros", trainable=False, name="steps"
        )

    def call(self, inputs, training=None):
        if training:
            self.steps.assign(self.steps + 1)
        return inputs

    def compute_output_shape(self, input_shape):
        return input_shape


@pytest.mark.parametrize(
    "make, path",
    [
        (lambda: Counting(name="own"), "own/steps"),
        (
            lambda: keras.layers.SpectralNormalization(
                keras.layers.Dense(6, name="inner"), name="norm"
            ),
            "norm/inner/kernel",
        ),
    ],
    ids=["counting", "spectral"],
)
def test_what_changes_a_frozen_base_is_named(make, path):
    """A brother of huggingface/peft #1734."""
    with pytest.warns(UserWarning, match="should stay as it is") as caught:
        model = adapted(functional(make, lambda: keras.layers.Dropout(0.5)))
    assert path in str(caught[0].message)
    assert "dropout" not in str(caught[0].message)
    assert not model._adaptation.disabled
    model.compile(keras.optimizers.SGD(0.1), loss="mse", run_eagerly=True)
    before = [to_numpy(v).copy() for v in model.non_trainable_variables]
    if path == "norm/inner/kernel":
        model(DATA, training=True)
        assert any(
            (to_numpy(v) != b).any()
            for v, b in zip(model.non_trainable_variables, before)
        )


# Merged. -----------------------------------------------------------------------


class Tied(keras.layers.Layer):
    """Two layers of one kernel, or one whose kernel is read once more."""

    def __init__(self, form, **kwargs):
        super().__init__(**kwargs)
        self.form = form
        self.first = keras.layers.Dense(8, use_bias=False, name="first")
        self.second = keras.layers.Dense(8, use_bias=False, name="second")

    def build(self, input_shape):
        self.first.build(input_shape)
        if self.form == "one variable":
            self.second._kernel, self.second.bias = self.first._kernel, None
            self.second.built = True
        else:
            self.second.build(input_shape)

    def call(self, inputs):
        x = ops.tanh(self.first(inputs))
        if self.form == "read once more":
            x = ops.matmul(x, ops.transpose(self.first.weights[0].value))
        return self.second(x)

    def get_config(self):
        return {**super().get_config(), "form": self.form}


@pytest.mark.parametrize(
    "form, targets, shared",
    [
        ("one variable", ["first"], ["tied/first"]),
        ("one variable", ["second"], ["tied/second"]),
        ("one variable", ["first", "second"], ["tied/first", "tied/second"]),
        ("read once more", ["first"], ["tied/first"]),
        ("read once more", ["second"], []),
        ("apart", ["first", "second"], []),
    ],
)
def test_kernels_that_others_read_are_not_merged(form, targets, shared):
    """huggingface/peft #2018, #2972; unslothai/unsloth #9331."""
    model = adapted(functional(lambda: Tied(form, name="tied")), targets=targets)
    if shared:
        with pytest.raises(ValueError, match="used by its own layer only") as error:
            keras_flix.merge_features(model, ONE)
        assert str(shared) in str(error.value)
        return
    merged = keras_flix.merge_features(model, ONE)
    expected = called(model, {**rows(6), **ONE})
    np.testing.assert_allclose(called(merged, rows(6)), expected, atol=1e-4)


@once
@pytest.mark.parametrize(
    "dtype, scale, told",
    [
        ("bfloat16", 0.01, True),
        ("float16", 0.001, True),
        ("bfloat16", 0.3, False),
        ("float32", 0.001, False),
        ("mixed_bfloat16", 0.01, False),
    ],
)
def test_merging_says_what_half_precision_rounds_away(dtype, scale, told):
    """unslothai/unsloth #869, #3091; axolotl-ai-cloud/axolotl #1510, #3497."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        model = randomize(adapted(), scale)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            merged = keras_flix.merge_features(model, ONE)
    finally:
        keras.config.set_dtype_policy(policy)
    texts = [str(w.message) for w in caught if "rounded away" in str(w.message)]
    assert len(texts) == told
    kernel = model.get_layer("hidden").kernel
    assert merged.get_layer("hidden").kernel.dtype == kernel.dtype


# Refused. ----------------------------------------------------------------------


@once
def test_a_base_with_more_tokens_is_refused(tmp_path):
    """hiyouga/LlamaFactory #5262, #7665."""

    def make(tokens):
        return functional(
            lambda: keras.layers.Embedding(tokens, 8, name="tokens"), shape=(3,)
        )

    path = saved(adapted(make(10)), tmp_path)
    with pytest.raises(ValueError, match="tokens: input_dim=12"):
        keras_flix.load_adapters(make(12), path)


@once
def test_names_that_keras_counts_up_are_explained(tmp_path):
    """A brother of keras-team/keras-hub #2701, which goes by positions."""

    def make():
        return functional(dense(6))

    path = saved(adapted(make()), tmp_path)
    with pytest.raises(ValueError, match="counts up the names"):
        keras_flix.load_adapters(make(), path)
