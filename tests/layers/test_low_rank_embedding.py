"""Adapted embeddings: tokens that are looked up, and heads that share the weights."""

import copy

import keras
import keras_hub
import numpy as np
import pytest
from helpers.causal_lms import gemma, llama
from helpers.gemma import FEATURES, randomize, to_numpy

import keras_flix
from keras_flix import Feature
from keras_flix.features.schema import FeatureSchema
from keras_flix.layers.active_scope import Routing, routing_scope, switched_off
from keras_flix.layers.low_rank_embedding import LowRankEmbedding
from keras_flix.layers.row_orders import KERAS_HUB
from keras_flix.layers.token_rows import EMBEDDINGS

pytestmark = pytest.mark.eager

# The layer. ----------------------------------------------------------------------

VALUES = [
    Feature("task", ["qa", "parse", "list"], rank={"qa": 1, "*": 2}, alpha=3),
    Feature("language", ["en", "sw"], rank=2, multiple=True),
    Feature("shared", rank=1, always=True, alpha=2),
]
IDS = {
    "task": np.array([0, -1, 2], "int32"),
    "language": np.array([[1, 0], [0, -1], [-1, -1]], "int32"),
}
TOKENS = np.array([[0, 1, 5, 1], [8, 9, 1, 0], [2, 2, 7, 9]], "int32")
X = np.random.default_rng(2).normal(size=(3, 2, 4)).astype("float32")


def make(cls=keras_hub.layers.ReversibleEmbedding, **options):
    keras.utils.set_random_seed(0)
    layer = cls(10, 4, name="tokens", **options)
    layer.build()
    return layer


def adapted_layer(*args, quantize=None, **options):
    layer = make(*args, **options)
    if quantize:
        layer.quantize(quantize)
    schema = FeatureSchema(VALUES).resolve(2, 0.0, None, "rank")
    LowRankEmbedding.from_layer(layer, schema, seed=0, key="tokens", names=schema.names)
    layer.row_orders = KERAS_HUB
    generator = np.random.default_rng(1)
    for feature in schema:
        a, b = layer._tables.variables[feature.name]
        beyond = np.arange(2)[: a.shape[2]] >= np.asarray(feature.ranks)[:, None]
        a.assign(np.where(beyond[:, None], 0.0, generator.normal(size=a.shape)))
        b.assign(np.where(beyond[..., None], 0.0, generator.normal(size=b.shape)))
    return layer


def kernels(layer, base):
    """The embeddings of each example, in float64."""
    found = []
    for i in range(3):
        total = base.astype("float64")
        for feature in layer.features:
            a, b = (to_numpy(v).astype("float64") for v in tables_of(layer, feature))
            for row in np.atleast_1d(0 if feature.always else IDS[feature.name][i]):
                if row >= 0:
                    total = total + feature.scales[row] * a[row] @ b[row]
        found.append(total)
    return found


def tables_of(layer, feature):
    return layer._tables.variables[feature.name]


def routed(layer, call, orders=None):
    with routing_scope(Routing.from_ids(layer.features, IDS, orders=orders)):
        return to_numpy(keras.ops.cast(call(), "float32"))


@pytest.mark.parametrize("cls", EMBEDDINGS)
def test_each_example_looks_up_in_its_own_kernel(cls):
    layer = adapted_layer(cls)
    expected = kernels(layer, to_numpy(layer.kernel))
    found = routed(layer, lambda: layer(TOKENS))
    exact = np.stack([kernel[x] for kernel, x in zip(expected, TOKENS)])
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)
    found = routed(layer, lambda: layer(TOKENS[:, 0]))
    np.testing.assert_allclose(found, exact[:, 0], rtol=1e-5, atol=1e-5)
    # One row of positions for all, and beams side by side.
    found = routed(layer, lambda: layer(TOKENS[:1]))
    exact = np.stack([kernel[TOKENS[0]] for kernel in expected])
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)
    beams = np.repeat(TOKENS, 2, axis=0)
    found = routed(layer, lambda: layer(beams))
    exact = np.stack([expected[i // 2][x] for i, x in enumerate(beams)])
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)
    with switched_off([layer]):
        found = routed(layer, lambda: layer(TOKENS))
    np.testing.assert_array_equal(found, to_numpy(make(cls)(TOKENS)))
    assert isinstance(layer, cls) and layer.plain_class is cls


@pytest.mark.parametrize("cap", [None, 0.5])
@pytest.mark.parametrize("tied", [True, False])
def test_tied_heads_have_the_update_and_others_are_the_bases(tied, cap):
    layer = adapted_layer(tie_weights=tied, logit_soft_cap=cap)
    own = kernels(layer, to_numpy(layer.kernel))
    if not tied:
        own = [to_numpy(layer.reverse_embeddings).T] * 3
    expected = np.stack([x @ kernel.T for x, kernel in zip(X, own)])
    if cap:
        expected = cap * np.tanh(expected / cap)
    found = routed(layer, lambda: layer(X, reverse=True))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_quantized_bases(mode):
    layer = adapted_layer(keras.layers.ReversibleEmbedding, quantize=mode)
    plain = make(keras.layers.ReversibleEmbedding)
    plain.quantize(mode)
    deltas = kernels(layer, np.zeros((10, 4)))
    found = routed(layer, lambda: layer(TOKENS)) - to_numpy(plain(TOKENS))
    exact = np.stack([delta[x] for delta, x in zip(deltas, TOKENS)])
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5)
    logits = routed(layer, lambda: layer(X, reverse=True))
    exact = np.stack([x @ delta.T for x, delta in zip(X, deltas)])
    found = logits - to_numpy(plain(X, reverse=True))
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.short("torch")
def test_kernel_delta_is_what_look_ups_add():
    layer = adapted_layer()
    deltas = kernels(layer, np.zeros((10, 4)))
    found = layer.kernel_delta({"task": "qa", "language": ["sw", "en"]})
    np.testing.assert_allclose(to_numpy(found), deltas[0], rtol=1e-5, atol=1e-5)


@pytest.mark.short("torch")
def test_it_starts_as_the_base_and_unseen_tokens_stay():
    layer = make()
    schema = FeatureSchema(VALUES).resolve(2, 0.0, None, "rank")
    LowRankEmbedding.from_layer(layer, schema, seed=0, key="tokens", names=schema.names)
    for feature in schema:
        a, b = map(to_numpy, tables_of(layer, feature))
        assert not a.any()
        for row, rank in enumerate(feature.ranks):
            assert b[row, :rank].all() and not b[row, rank:].any()


def test_out_of_range_is_the_bases_and_never_another_value():
    layer = adapted_layer()
    last = routed(layer, lambda: layer(np.full((3, 1), -1, "int32")))
    expected = routed(layer, lambda: layer(np.full((3, 1), 9, "int32")))
    if keras.config.backend() != "tensorflow":  # It counts no rows from the end.
        np.testing.assert_allclose(last, expected, rtol=1e-6)
    if keras.config.backend() == "jax":
        found = routed(layer, lambda: layer(np.full((3, 1), 10, "int32")))
        assert np.isnan(found).all()


def test_masks_go_on_and_dtypes_stay():
    layer = adapted_layer(mask_zero=True, dtype="mixed_bfloat16")
    with routing_scope(Routing.from_ids(layer.features, IDS)):
        outputs = layer(keras.ops.convert_to_tensor(TOKENS))
        np.testing.assert_array_equal(to_numpy(outputs._keras_mask), TOKENS != 0)
        logits = layer(outputs, reverse=True)
    kinds = {keras.backend.standardize_dtype(x.dtype) for x in (outputs, logits)}
    assert kinds == {"bfloat16"}


@pytest.mark.short("torch")
def test_who_reads_all_rows_is_told():
    layer = adapted_layer()
    np.testing.assert_array_equal(to_numpy(layer.embeddings), to_numpy(layer.kernel))
    with pytest.raises(ValueError, match="'tokens', whose `embeddings` another layer"):
        routed(layer, lambda: layer.embeddings)
    with pytest.raises(ValueError, match="must not have a LoRA of Keras' own"):
        layer.enable_lora(2)


# Models. -------------------------------------------------------------------------

PLAIN = {
    "token_ids": np.array([[3, 7, 5, 0], [30, 9, 1, 2], [8, 8, 4, 6]], "int32"),
    "padding_mask": np.ones((3, 4), "int32"),
}
TASKS, LANGUAGES = ["qa", "parse", None], ["sw", "en", "sw"]
BATCH = {**PLAIN, "task": TASKS, "language": LANGUAGES}
TARGETS = ["query", "token_embedding"]


def adapted(make=gemma, **options):
    options = {"rank": 2, "targets": TARGETS, **options}
    return keras_flix.enable_flix(make(), FEATURES, **options)


def embedding_tables(model):
    return {v.path: to_numpy(v) for v in model.weights if "embedding/flix" in v.path}


@pytest.mark.support("Paths", "Adapted embeddings, with tied and untied heads")
@pytest.mark.parametrize("make", [gemma, llama])
def test_a_mixed_batch_is_each_alone_is_the_merged_model(make):
    model = adapted(make)
    base = to_numpy(make()(PLAIN))
    np.testing.assert_array_equal(to_numpy(model(BATCH)), base)
    randomize(model)
    mixed = to_numpy(model(BATCH))
    assert np.abs(mixed - base).max() > 0.05
    for i, (task, language) in enumerate(zip(TASKS, LANGUAGES)):
        one = {name: value[i : i + 1] for name, value in PLAIN.items()}
        merged = keras_flix.merge_features(model, {"task": task, "language": language})
        assert type(merged.backbone.token_embedding) in EMBEDDINGS
        for found in (model({**one, "task": task, "language": language}), merged(one)):
            np.testing.assert_allclose(to_numpy(found)[0], mixed[i], atol=2e-5)
    with keras_flix.adapters_disabled(model):
        np.testing.assert_array_equal(to_numpy(model(PLAIN)), base)


@pytest.mark.short("torch")
@pytest.mark.parametrize("rank", [4, {"language": {"sw": 1, "*": 4}, "task": 4}])
def test_ranks_of_its_own_scale_look_ups_as_the_merged_model(rank):
    options = {"alpha": 8.0, "layer_ranks": {"token_embedding": 2}}
    model = randomize(adapted(rank=rank, **options))
    mixed = to_numpy(model(BATCH))
    for i, (task, language) in enumerate(zip(TASKS, LANGUAGES)):
        one = {name: value[i : i + 1] for name, value in PLAIN.items()}
        merged = keras_flix.merge_features(model, {"task": task, "language": language})
        np.testing.assert_allclose(to_numpy(merged(one))[0], mixed[i], atol=2e-5)


def test_generation_takes_each_examples_tokens():
    model = randomize(adapted())
    model.compile("sgd", sampler="greedy")
    mask = np.array([[1, 1, 0, 0]] * 3)
    prompts = {**BATCH, "padding_mask": mask}
    texts = model.generate(prompts, stop_token_ids=None)["token_ids"]
    last = {"task": TASKS[-1], "language": LANGUAGES[-1]}
    merged = keras_flix.merge_features(model, last)
    merged.compile("sgd", sampler="greedy")
    prompt = {"token_ids": PLAIN["token_ids"][-1:], "padding_mask": mask[-1:]}
    found = merged.generate(prompt, stop_token_ids=None)["token_ids"]
    np.testing.assert_array_equal(found[0], texts[-1])


@pytest.mark.parametrize("lazy", [False, True])
def test_training_moves_the_tokens_and_values_of_the_batch(lazy):
    # Untied: in a tied head, every token counts.
    model = adapted(llama, rank=1)
    before = {v.path: to_numpy(v).copy() for v in model.variables}
    rate = 0.1
    optimizer = keras_flix.LazyAdam(rate) if lazy else keras.optimizers.SGD(rate)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(True))
    model.train_on_batch(BATCH, np.ones((3, 4), "int32"))
    after = {v.path: to_numpy(v) for v in model.variables}
    for path, value in before.items():
        if "flix_" not in path:
            np.testing.assert_array_equal(after[path], value, err_msg=path)
    a = "token_embedding/flix_task_a"
    moved = (after[a] != before[a]).any(axis=-1)
    seen = {task: set(PLAIN["token_ids"][i]) for i, task in enumerate(TASKS) if task}
    for row, task in enumerate(FEATURES["task"]):
        assert set(np.flatnonzero(moved[row])) == seen.get(task, set())


@pytest.mark.short("torch")
def test_lazy_steps_are_those_of_adam_where_all_values_occur():
    x = {**PLAIN, "task": ["qa", "parse", "list"], "language": ["en", "sw", "yo"]}
    found = []
    for cls in (keras.optimizers.Adam, keras_flix.LazyAdam):
        model = adapted()
        loss = keras.losses.SparseCategoricalCrossentropy(True)
        model.compile(cls(0.01), loss)
        for _ in range(2):
            model.train_on_batch(x, np.ones((3, 4), "int32"))
        found.append(embedding_tables(model))
    for path, value in found[0].items():
        np.testing.assert_allclose(found[1][path], value, atol=1e-5, err_msg=path)


def reloaded(model, folder):
    model.save(folder / "model.keras")
    return keras.models.load_model(folder / "model.keras")


def of_weights(model, folder):
    model.save_weights(folder / "one.weights.h5")
    found = adapted()
    found.load_weights(folder / "one.weights.h5")
    return found


def of_adapters(model, folder):
    keras_flix.save_adapters(model, folder / "one.flix.safetensors")
    return keras_flix.load_adapters(gemma(), folder / "one.flix.safetensors")


WAYS = [reloaded, lambda m, _: copy.deepcopy(m), of_weights, of_adapters]


@pytest.mark.parametrize("way", WAYS)
def test_copies_and_files_hold_them(way, tmp_path):
    model = randomize(adapted())
    found = way(model, tmp_path)
    assert embedding_tables(found).keys() == embedding_tables(model).keys()
    np.testing.assert_array_equal(to_numpy(found(BATCH)), to_numpy(model(BATCH)))


def test_values_come_and_go():
    model = randomize(adapted())
    keras_flix.set_learning_rates(model, {"task": {"qa": 0.5}})
    keras_flix.set_trainable(model, {"task": ["parse"]})
    before = to_numpy(model(BATCH))
    keras_flix.add_values(model, "task", ["new", "like"], init={"qa": 1.0})
    keras_flix.add_values(model, "task", ["fresh"])
    keras_flix.remove_values(model, "task", ["list"])
    np.testing.assert_allclose(to_numpy(model(BATCH)), before, atol=1e-6)
    likes = {**BATCH, "task": ["like", "parse", "fresh"]}
    alike = {**BATCH, "task": ["qa", "parse", None]}
    np.testing.assert_allclose(
        to_numpy(model(likes)), to_numpy(model(alike)), atol=1e-5
    )
    a, b = map(
        to_numpy, model._adaptation.layers["token_embedding"]._tables.pair("task")
    )
    row = model._adaptation.schema["task"].id_of("fresh")
    assert not a[row].any() and b[row].any()


@pytest.mark.short("torch")
def test_only_where_they_are_named():
    for targets in (None, "all-linear", [".*"], [".*query"], ["decoder_block_0/.*"]):
        layers = adapted(targets=targets)._adaptation.layers
        assert "token_embedding" not in layers
    for name in ("token_embedding", ".*embedding", ".*(query|token_embedding)"):
        assert "token_embedding" in adapted(targets=[name])._adaptation.layers
    own = [
        Feature("task", ["qa", "parse"], rank=2, targets=["token_embedding"]),
        Feature("language", ["en", "sw"], rank=2),
    ]
    model = keras_flix.enable_flix(gemma(), own)
    assert model._adaptation.places["task"] == ["token_embedding"]
    lines = []
    summary = keras_flix.flix_summary(model, lines.append)
    assert summary.layers["token_embedding"] == (40, 16)
    assert "  token_embedding (40, 16)" in lines


@pytest.mark.short("torch")
def test_what_is_refused():
    with pytest.raises(ValueError, match="in `targets`, and trainable_tokens. Leave"):
        adapted(trainable_tokens=[3])
    with pytest.raises(ValueError, match="must be at most 16, the smaller dim of lay"):
        adapted(rank=17, targets=["token_embedding"])
    backbone = gemma()
    backbone.backbone.token_embedding.enable_lora(2)
    with pytest.raises(ValueError, match="must not have a LoRA of Keras' own"):
        adapted(lambda: backbone)
    model = gemma()
    model.backbone.quantize("int8")
    model = randomize(adapted(lambda: model))
    found = to_numpy(model(BATCH))
    assert np.isfinite(found).all()
    with pytest.raises(ValueError, match="Only floating-point kernels can be merged"):
        keras_flix.merge_features(model, {"task": "qa", "language": "sw"})


@pytest.mark.short("torch")
def test_a_model_of_its_own():
    inputs = keras.Input((4,), dtype="int32", name="x")
    x = keras.layers.Embedding(10, 8, name="words")(inputs)
    model = keras.Model({"x": inputs}, keras.layers.Dense(4, name="head")(x))
    keras_flix.enable_flix(model, FEATURES, rank=2, targets=["words"])
    ids = np.array([[0, 1, 2, 9], [3, 3, 1, 2]], "int32")
    found = to_numpy(randomize(model)({"x": ids, "task": "qa", "language": "sw"}))
    merged = keras_flix.merge_features(model, {"task": "qa", "language": "sw"})
    assert type(merged.get_layer("words")) is keras.layers.Embedding
    np.testing.assert_allclose(to_numpy(merged({"x": ids})), found, atol=1e-5)
