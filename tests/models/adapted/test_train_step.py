"""What trains, what stays bit-identical, and in which precision."""

import keras
import numpy as np
import pytest
from helpers.gemma import FEATURES, make_backbone, randomize, to_numpy
from helpers.models import make_mlp, rows
from keras import ops

import keras_flix
from keras_flix.features import input_entries

PROMPTS = {"prompts": ["the quick", "dog", "fox"], "responses": ["brown", "fox", "the"]}
FEATURES_OF = {"task": ["qa", None, "list"], "language": ["sw", "sw", None]}
SEEN = {"task": [0, 2], "language": [1]}


def weights(model):
    return {v.path: to_numpy(v) for v in model.weights}


@pytest.mark.parametrize(
    "optimizer", ["adam", pytest.param("sgd", marks=pytest.mark.short("torch"))]
)
def test_only_tables_of_seen_values_train(make_gemma, optimizer):
    model = keras_flix.enable_flix(make_gemma(), FEATURES, rank=2)
    randomize(model)
    before = weights(model)
    model.compile(optimizer=optimizer)
    model.fit({**PROMPTS, **FEATURES_OF}, batch_size=2, epochs=3, verbose=0)
    for path, value in weights(model).items():
        name = path.rpartition("/")[2]
        if not name.startswith("flix_"):
            np.testing.assert_array_equal(value, before[path])
            continue
        seen = SEEN[name.split("_")[1]]
        unseen = [i for i in range(3) if i not in seen]
        np.testing.assert_array_equal(value[unseen], before[path][unseen])
        assert all(not np.array_equal(value[i], before[path][i]) for i in seen)


def test_trainable_variables_are_the_tables(make_gemma):
    model = keras_flix.enable_flix(make_gemma(), FEATURES)
    names = {v.path.rpartition("/")[2] for v in model.trainable_variables}
    parts = [f"flix_{f}_{p}" for f in ("task", "language") for p in "ab"]
    assert names == set(parts)
    assert len(model.trainable_variables) == 2 * 4 * 4  # blocks, projections, parts


@pytest.mark.short("torch", "jax")
@pytest.mark.eager
def test_training_moves_the_loss_down(make_gemma):
    model = keras_flix.enable_flix(make_gemma(), FEATURES, rank=4)
    model.compile(optimizer=keras.optimizers.Adam(0.02))
    losses = model.fit({**PROMPTS, **FEATURES_OF}, epochs=15, verbose=0).history["loss"]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.eager
@pytest.mark.support("Paths", "Mixed precision, bfloat16")
@pytest.mark.parametrize(
    "policy",
    [
        pytest.param("mixed_float16", marks=pytest.mark.slow),
        pytest.param(
            "mixed_bfloat16", marks=[pytest.mark.slow, pytest.mark.short("torch")]
        ),
        pytest.param("bfloat16", marks=pytest.mark.short("torch")),
    ],
)
def test_precision_policies(policy):
    reference = keras_flix.enable_flix(make_backbone(), FEATURES, rank=2)
    randomize(reference, scale=0.1)
    model = make_backbone(dtype=policy)
    for own, other in zip(model.weights, make_backbone().weights):
        own.assign(other)
    plain = [v for v in reference.weights if "flix" not in v.path]
    for own, other in zip(model.weights, plain):
        own.assign(to_numpy(other))
    keras_flix.enable_flix(model, FEATURES, rank=2)
    for own, other in zip(model.trainable_variables, reference.trainable_variables):
        assert own.dtype == "float32"
        own.assign(to_numpy(other))
    inputs = {
        "token_ids": np.arange(10).reshape(2, 5),
        "padding_mask": np.ones((2, 5), "int32"),
        "task": ["qa", "list"],
        "language": "sw",
    }
    expected = to_numpy(reference(inputs))
    found = model(inputs)
    found_dtype = keras.backend.standardize_dtype(found.dtype)
    assert found_dtype == keras.DTypePolicy(policy).compute_dtype
    found = to_numpy(keras.ops.cast(found, "float32"))
    with keras_flix.adapters_disabled(model):
        base = to_numpy(keras.ops.cast(model(inputs), "float32"))
    error, effect = np.abs(found - expected).max(), np.abs(base - expected).max()
    assert error < 0.2 * effect
    before = weights(model)
    model.compile(optimizer="adam", loss="mse")
    history = model.fit(inputs, np.zeros((2, 5, 16), "float32"), epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    moved = [p for p, v in weights(model).items() if not np.array_equal(v, before[p])]
    assert moved and all("flix_" in path for path in moved)


@pytest.mark.short("torch", "tensorflow")
@pytest.mark.eager
def test_an_optimizer_from_before_is_refused(make_gemma):
    model = make_gemma()
    model.compile(optimizer=keras.optimizers.SGD(0.1))
    model.fit(PROMPTS["prompts"], verbose=0)
    keras_flix.enable_flix(model, FEATURES)
    with pytest.raises(ValueError, match=r"Call `model.compile\(...\)` again"):
        model.fit({**PROMPTS, **FEATURES_OF}, verbose=0)
    model.compile(optimizer="sgd")
    model.fit({**PROMPTS, **FEATURES_OF}, verbose=0)


def test_custom_training_loops_see_the_tables():
    model = keras_flix.enable_flix(make_backbone(), FEATURES)
    if keras.config.backend() == "torch":
        known = {id(p) for p in model.parameters()}
        assert all(id(v.value) in known for v in model.trainable_variables)
    x = {
        "token_ids": np.ones((2, 3), "int32"),
        "padding_mask": np.ones((2, 3), "int32"),
        "task": np.array([0, 1], "int32"),
        "language": np.array([2, -1], "int32"),
    }
    outputs, _ = model.stateless_call(
        [v.value for v in model.trainable_variables],
        [v.value for v in model.non_trainable_variables],
        {k: keras.ops.convert_to_tensor(v) for k, v in x.items()},
    )
    np.testing.assert_allclose(to_numpy(outputs), to_numpy(model(x)), atol=1e-6)


@pytest.mark.support("Paths", "Rematerialization")
def test_gradients_with_rematerialization_equal_those_without():
    """On TensorFlow too, whose graphs stock Keras cannot rematerialize Gemma in."""

    def trained(remat):
        keras.utils.set_random_seed(0)
        with keras.RematScope(mode="full" if remat else None):
            model = make_backbone(num_layers=1)
        randomize(keras_flix.enable_flix(model, FEATURES, rank=2, dropout=0.3, seed=1))
        model.compile(optimizer=keras.optimizers.SGD(0.5), loss="mse")
        inputs = {
            "token_ids": np.arange(20).reshape(4, 5),
            "padding_mask": np.ones((4, 5), "int32"),
            "task": ["qa", "list", None, "parse"],
            "language": ["sw", "yo", "en", None],
        }
        # The last norm makes the mean square a constant: aim at something else.
        target = np.random.default_rng(0).normal(size=(4, 5, 16))
        history = model.fit(inputs, target, epochs=2, verbose=0)
        return history.history["loss"], [to_numpy(v) for v in model.trainable_variables]

    losses, expected = trained(False)
    remat_losses, found = trained(True)
    np.testing.assert_allclose(remat_losses, losses, rtol=1e-6)
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, atol=1e-6)


def rematerialized(mode):
    """The tables of a small model after training in a mode, or in none."""
    rng = np.random.default_rng(0)
    x = {"x": rng.normal(size=(6, 8)), "task": np.array([0, 1, 2, -1, 0, 1])}
    y = rng.normal(size=(6, 4))
    options = {
        "larger_than": {"output_size_threshold": 1},
        "list_of_layers": {"layer_names": ["hidden"]},
    }

    with keras.RematScope(mode=mode, **options.get(mode, {})):
        model = make_mlp()
    features = {"task": FEATURES["task"]}
    keras_flix.enable_flix(
        model, features, rank=2, dropout=0.3, targets="all-linear", seed=1
    )
    before = [to_numpy(v) for v in randomize(model).trainable_variables]
    model.compile(keras.optimizers.SGD(0.5), loss="mse")
    model.fit(x, y, batch_size=3, epochs=2, shuffle=False, verbose=0)
    after = [to_numpy(v) for v in model.trainable_variables]
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(after, before))
    return after


@pytest.fixture(scope="module")
def without_rematerialization():
    return rematerialized(None)


@pytest.mark.support("Paths", "Rematerialization")
@pytest.mark.parametrize(
    "mode", ["full", "activations", "larger_than", "list_of_layers"]
)
def test_modes_of_rematerialization(mode, without_rematerialization):
    for one, other in zip(rematerialized(mode), without_rematerialization, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_ids_out_of_range_in_compiled_code_are_loud():
    """Compiled code cannot raise; the example turns NaN, never another value's."""
    model = randomize(keras_flix.enable_flix(make_backbone(), FEATURES, rank=2))
    x = {
        "token_ids": np.arange(15).reshape(3, 5).astype("int32"),
        "padding_mask": np.ones((3, 5), "int32"),
        "language": np.array([0, 1, 2], "int32"),
    }
    good = to_numpy(model({**x, "task": np.array([0, 1, 2], "int32")}))
    wrong = {**x, "task": np.array([0, 7, 2], "int32")}
    found = to_numpy(compiled(model)(wrong))
    assert np.isnan(found[1]).all()
    np.testing.assert_allclose(found[[0, 2]], good[[0, 2]], atol=1e-5)


def compiled(model):
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        def call(x):
            values = [v.value for v in model.trainable_variables]
            others = [v.value for v in model.non_trainable_variables]
            return model.stateless_call(values, others, x)[0]

        return jax.jit(call)
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(model)
    pytest.skip("Keras runs torch models eagerly, where ids are checked and raise.")


@pytest.mark.parametrize("optimizer", [keras.optimizers.Adam, keras_flix.LazyAdam])
def test_entries_are_encoded_once_per_step(monkeypatch, optimizer):
    counts = []
    encode = input_entries.encode_inputs

    def counted(*args):
        counts[-1] += 1
        return encode(*args)

    monkeypatch.setattr(input_entries, "encode_inputs", counted)
    for steps in (2, 5):
        model = keras_flix.enable_flix(
            make_mlp(), {"task": ["qa", "parse"]}, rank=1, targets="all-linear"
        )
        model.compile(optimizer(0.01), "mse", run_eagerly=True)
        counts.append(0)
        x = {**rows(2 * steps), "task": ["qa", "parse"] * steps}
        model.fit(x, np.zeros((2 * steps, 4)), batch_size=2, verbose=0)
    # The data set is encoded once, and its shape is learned from a first call.
    assert counts[1] - counts[0] == 3


class Reporting(keras.Model):
    """A model with a `train_step` of its own, which reports the gradients' norm."""

    def train_step(self, *args):
        backend = keras.config.backend()
        x, y = args[-1][:2]
        if backend == "jax":
            import jax

            trained, others, state, metrics = args[0]

            def loss_of(trained):
                found, new = self.stateless_call(trained, others, x, training=True)
                return ops.mean((found - y) ** 2), new

            gradients, others = jax.grad(loss_of, has_aux=True)(trained)
            norm = ops.sqrt(sum(ops.sum(g**2) for g in gradients))
            trained, state = self.optimizer.stateless_apply(state, gradients, trained)
            return {"norm": norm}, (trained, others, state, metrics)
        variables = self.trainable_weights
        if backend == "torch":
            self.zero_grad()
            ops.mean((self(x, training=True) - y) ** 2).backward()
            gradients = [v.value.grad for v in variables]
        else:
            import tensorflow as tf

            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((self(x, training=True) - y) ** 2)
            gradients = tape.gradient(loss, variables)
            # Of rows that occur twice, this one's norm would be wrong.
            _, norm = tf.clip_by_global_norm(gradients, 1e9)
        self.optimizer.apply(gradients, variables)
        if backend == "torch":
            norm = ops.sqrt(sum(ops.sum(g**2) for g in gradients))
        return {"norm": norm}


class Scaled:
    """An optimizer of the user's own that looks at the gradients."""

    def apply(self, grads, trainable_variables=None):
        norm = ops.sqrt(sum(ops.sum(ops.square(g)) for g in grads))
        return super().apply([g / norm for g in grads], trainable_variables)


class ScaledSGD(Scaled, keras.optimizers.SGD):
    pass


class ScaledLazySGD(Scaled, keras_flix.LazySGD):
    pass


def gradients_seen(kind, optimizer):
    keras.utils.set_random_seed(0)
    x = keras.Input((8,), name="x")
    head = keras.layers.Dense(4, name="head")
    model = kind({"x": x}, head(x))
    users = {"user": [f"u{i}" for i in range(50)]}
    keras_flix.enable_flix(model, users, rank=2, targets=["head"], seed=0)
    randomize(model).compile(optimizer, loss="mse")
    batch = {**rows(4), "user": ["u1", "u1", "u2", "u3"]}
    history = model.fit(batch, np.ones((4, 4)), batch_size=4, epochs=2, verbose=0)
    return history.history, weights(model)


@pytest.mark.parametrize(
    ("kind", "eager", "lazy"),
    [
        (Reporting, keras.optimizers.SGD, keras_flix.LazySGD),
        (keras.Model, ScaledSGD, ScaledLazySGD),
    ],
)
def test_who_looks_at_gradients_gets_dense_ones(kind, eager, lazy):
    expected, tables = gradients_seen(kind, eager(0.1))
    found, others = gradients_seen(kind, lazy(0.1))
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5)
    for path, table in tables.items():
        np.testing.assert_allclose(others[path], table, rtol=1e-5, atol=1e-6)
