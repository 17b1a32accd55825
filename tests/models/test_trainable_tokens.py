"""`enable_flix(..., trainable_tokens=...)`: rows of tokens that train whole."""

import copy
import dataclasses

import keras
import keras_hub
import numpy as np
import pytest
from helpers.causal_lms import gemma, llama
from helpers.gemma import FEATURES, make_backbone, randomize, to_numpy
from helpers.models import make_mlp, state

import keras_flix
from keras_flix.files.adapter_file import write_adapters
from keras_flix.files.saving import adapters_of
from keras_flix.layers.token_rows import EMBEDDINGS

pytestmark = pytest.mark.eager

TOKENS = [30, 3, 7]
PLAIN = {
    "token_ids": np.array([[3, 7, 5, 0], [30, 9, 1, 2], [8, 8, 4, 6]], "int32"),
    "padding_mask": np.ones((3, 4), "int32"),
}
X = {**PLAIN, "task": ["qa", "parse", None], "language": "sw"}
ROWS = "token_embedding/flix_token_rows"
COLUMNS = "token_embedding/flix_token_columns"


def adapted(make=gemma, **options):
    options = {"rank": 2, "trainable_tokens": TOKENS, **options}
    return keras_flix.enable_flix(make(), FEATURES, **options)


def rows_of(model):
    return {v.path: to_numpy(v) for v in model.weights if "flix_token_" in v.path}


# The model. ---------------------------------------------------------------------


@pytest.mark.parametrize("make", [gemma, llama])
def test_it_is_exact(make):
    model = adapted(make)
    base = to_numpy(make()(PLAIN))
    absent = {"task": None, "language": None}
    np.testing.assert_allclose(to_numpy(model({**PLAIN, **absent})), base, atol=1e-6)
    randomize(model)
    mixed = to_numpy(model(X))
    for i, task in enumerate(X["task"]):
        merged = keras_flix.merge_features(model, {"task": task, "language": "sw"})
        assert type(merged.backbone.token_embedding) in (
            keras_hub.layers.ReversibleEmbedding,
            keras.layers.ReversibleEmbedding,
        )
        one = {name: value[i : i + 1] for name, value in PLAIN.items()}
        alone = to_numpy(merged(one))
        np.testing.assert_allclose(mixed[i : i + 1], alone, rtol=1e-4, atol=1e-4)
    with keras_flix.adapters_disabled(model):
        np.testing.assert_array_equal(to_numpy(model(PLAIN)), base)


@pytest.mark.parametrize("make", [gemma, llama])
def test_their_rows_train_and_the_base_stays(make):
    model = adapted(make)
    names = [ROWS] if make is gemma else [ROWS, COLUMNS]
    besides = [v.path for v in model.trainable_variables if "flix_t" in v.path]
    assert [p for p in besides if "token_" in p] == names
    before = {v.path: to_numpy(v).copy() for v in model.variables}
    model.compile(keras.optimizers.SGD(0.5), sampler="greedy")
    model.train_on_batch(X, np.ones((3, 4), "int32"))
    after = {v.path: to_numpy(v) for v in model.variables}
    for path in names:
        assert (after[path] != before[path]).any(axis=1).all()
    for path in before:
        if "flix_" not in path:
            np.testing.assert_array_equal(after[path], before[path], err_msg=path)
    lines = []
    keras_flix.flix_summary(model, lines.append)
    size = sum(after[name].size for name in names)
    text = f"Rows of 3 tokens in token_embedding train whole: {size} parameters."
    assert text in lines


@pytest.mark.short("torch")
def test_freezing_and_thawing():
    model = adapted()
    before = [v.path for v in model.trainable_variables]
    model.trainable = False
    assert model.trainable_variables == []
    model.trainable = True
    assert [v.path for v in model.trainable_variables] == before
    with pytest.warns(UserWarning, match="token_rows'. train besides"):
        keras_flix.set_trainable(model, {"task": ["qa"]})


@pytest.mark.short("torch")
def test_a_model_of_its_own_has_one_embedding():
    inputs = keras.Input((4,), dtype="int32", name="x")
    x = keras.layers.Embedding(10, 8, name="words")(inputs)
    model = keras.Model({"x": inputs}, keras.layers.Dense(4, name="head")(x))
    options = {"targets": ["head"], "rank": 2, "trainable_tokens": range(2)}
    keras_flix.enable_flix(model, FEATURES, **options)
    assert list(rows_of(model)) == ["words/flix_token_rows"]
    ids = np.array([[0, 1, 2, 9]], "int32")
    found = to_numpy(randomize(model)({"x": ids, "task": "qa", "language": "sw"}))
    merged = keras_flix.merge_features(model, {"task": "qa", "language": "sw"})
    assert type(merged.get_layer("words")) is keras.layers.Embedding
    np.testing.assert_allclose(to_numpy(merged({"x": ids})), found, atol=1e-5)


@pytest.mark.slow
@pytest.mark.short("torch")
def test_onnx_files_look_them_up(tmp_path):
    if keras.config.backend() != "torch":
        pytest.skip("ONNX files of language models are exported from PyTorch.")
    runtime = pytest.importorskip("onnxruntime")
    model = randomize(adapted(lambda: gemma().backbone))
    model.export(tmp_path / "model.onnx", format="onnx", verbose=False)
    session = runtime.InferenceSession(str(tmp_path / "model.onnx"))
    x = model._adaptation.schema.encode({"task": X["task"], "language": ["sw"] * 3})
    x = {**PLAIN, **x}
    inputs = {one.name: np.asarray(x[one.name]) for one in session.get_inputs()}
    (found,) = session.run(None, inputs)
    np.testing.assert_allclose(found, to_numpy(model(X)), rtol=1e-4, atol=1e-4)


# Copies and files. ----------------------------------------------------------------


def reloaded(model, folder):
    model.save(folder / "model.keras")
    return keras.models.load_model(folder / "model.keras")


def of_weights(model, folder):
    model.save_weights(folder / "one.weights.h5")
    found = adapted(llama)
    found.load_weights(folder / "one.weights.h5")
    return found


def of_adapters(model, folder):
    keras_flix.save_adapters(model, folder / "one.flix.safetensors")
    return keras_flix.load_adapters(llama(), folder / "one.flix.safetensors")


def of_adapters_in_adapted(model, folder):
    keras_flix.save_adapters(model, folder / "one.flix.safetensors")
    found = adapted(llama)
    return keras_flix.load_adapters(found, folder / "one.flix.safetensors")


WAYS = [reloaded, lambda m, _: copy.deepcopy(m), of_weights, of_adapters]


@pytest.mark.support("State", "Rows of tokens that train: copies, files")
@pytest.mark.parametrize("way", [*WAYS, of_adapters_in_adapted])
def test_copies_and_files_hold_them(way, tmp_path):
    model = randomize(adapted(llama))
    found = way(model, tmp_path)
    for path, value in rows_of(model).items():
        np.testing.assert_array_equal(rows_of(found)[path], value)
    np.testing.assert_array_equal(to_numpy(found(X)), to_numpy(model(X)))
    assert [v.path for v in found.trainable_variables] == [
        v.path for v in model.trainable_variables
    ]


@pytest.mark.short("torch")
def test_files_say_which_tokens(tmp_path):
    path = tmp_path / "one.flix.safetensors"
    keras_flix.save_adapters(adapted(), path)
    adapters = keras_flix.files.read_adapters(path)
    assert adapters.tokens == {"token_embedding": sorted(TOKENS)}
    assert list(adapters.trained) == [ROWS]
    # Its fingerprint is that of the base.
    assert adapters.base.digest == keras_flix.base_fingerprint(gemma()).digest
    other = adapted(trainable_tokens=[3])
    text = "Expected: {'token_embedding': .3.}. Received: {'token_embedding': .3, 7, 30"
    with pytest.raises(ValueError, match=text):
        keras_flix.load_adapters(other, path)
    with pytest.raises(ValueError, match="Expected: none. Received: {'token_emb"):
        keras_flix.load_adapters(adapted(trainable_tokens=None), path)
    other.save_weights(tmp_path / "one.weights.h5")
    with pytest.raises(ValueError, match="<ReversibleEmbedding name=token_embedding"):
        adapted().load_weights(tmp_path / "one.weights.h5")
    with pytest.raises(ValueError, match="must be rows of the model's embedding"):
        keras_flix.load_adapters(
            keras_hub.models.GemmaCausalLM(make_backbone(20), preprocessor=None), path
        )


@pytest.mark.short("torch")
@pytest.mark.parametrize("tokens", [[3, 3, 7], [7, 3, 30], [-1, 3, 7], [3, 7, 99], []])
def test_files_of_no_such_tokens_change_nothing(tmp_path, tokens):
    path = tmp_path / "one.flix.safetensors"
    adapters = adapters_of(adapted())
    odd = dataclasses.replace(adapters, tokens={"token_embedding": tokens})
    without = dataclasses.replace(adapters, trained={})
    for one, text in ((odd, "in rising order. Expected: 'tok"), (without, "none in '")):
        write_adapters(one, path)
        model = gemma()
        with pytest.raises(ValueError, match=text):
            keras_flix.load_adapters(model, path)
        assert not rows_of(model)
        assert type(model.backbone.token_embedding) in EMBEDDINGS


@pytest.mark.short("torch")
def test_values_come_over_between_models_of_the_same_rows():
    model, other = adapted(), randomize(adapted())
    with pytest.raises(ValueError, match=f"with another '{ROWS}'"):
        keras_flix.update_from(model, other, {"task": ["qa"]})
    with pytest.raises(ValueError, match="The tokens that train must be the same in"):
        keras_flix.update_from(model, adapted(trainable_tokens=None), {"task": ["qa"]})
    keras_flix.update_from(model, adapted(), {"task": ["qa"]})


# What is refused. -----------------------------------------------------------------

REFUSALS = {
    "a string": (
        "x",
        "`trainable_tokens` must be a list of token ids, or of tokens as the model's "
        "tokenizer has them. Received: trainable_tokens='x'. Pass a list.",
    ),
    "too large": (
        [3, 40],
        "A token's id must be from 0 to 39, as the embedding has 40 rows. Received: "
        "40. Correct it.",
    ),
    "no id": (
        [1.5],
        "A token is an id or a string. Received: 1.5 in trainable_tokens. Correct it.",
    ),
    "no tokenizer": (
        ["x"],
        "Tokens are named by a tokenizer. Received: trainable_tokens with 'x', and a "
        "model without a preprocessor. Pass ids.",
    ),
}


@pytest.mark.short("torch")
@pytest.mark.parametrize("case", REFUSALS)
def test_refusal_changes_nothing(case):
    tokens, text = REFUSALS[case]
    model = gemma()
    before = state(model, PLAIN)
    with pytest.raises(ValueError) as error:
        adapted(lambda: model, trainable_tokens=tokens)
    assert str(error.value) == text
    assert state(model, PLAIN) == before


@pytest.mark.short("torch")
def test_models_without_such_rows_are_refused():
    with pytest.raises(ValueError, match="or the only one of the model. Received: no"):
        adapted(make_mlp, targets=["head"])
    with pytest.raises(ValueError, match="trains whole, or by the rows of some tokens"):
        adapted(train=["token_embedding"])
    model = gemma()
    model.backbone.quantize("int8")
    with pytest.raises(ValueError, match="layer 'token_embedding' with int8. Quantize"):
        adapted(lambda: model)


@pytest.mark.short("torch")
def test_tokens_by_name(make_gemma):
    task = make_gemma()
    tokenizer = task.preprocessor.tokenizer
    name = tokenizer.id_to_token(9)
    keras_flix.enable_flix(task, FEATURES, trainable_tokens=[name, 4])
    assert task.backbone.token_embedding.token_ids.tolist() == [4, 9]
    with pytest.raises(ValueError, match="one of the tokenizer's. Received: 'nosuch'"):
        keras_flix.enable_flix(make_gemma(), FEATURES, trainable_tokens=["nosuch"])
