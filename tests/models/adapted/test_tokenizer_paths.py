"""A tokenizer that TensorFlow's pipelines run otherwise is not trained with."""

import string

import keras
import keras_hub
import numpy as np
import pytest

import keras_flix

tf = pytest.importorskip("tensorflow")

SPECIAL = [f"<|s{i}|>" for i in range(12)]
CHARACTERS = [*string.ascii_letters, *string.digits, "<", ">", "|", "Ġ", "Ä", "´"]


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    tokens = ["<|endoftext|>", *SPECIAL, *CHARACTERS, "ab"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = keras_hub.models.GPT2Tokenizer(
        vocabulary=vocabulary, merges=["a b"], unsplittable_tokens=SPECIAL
    )
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=len(vocabulary),
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=8,
        max_sequence_length=24,
        dropout=0.0,
    )
    preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(
        tokenizer, sequence_length=24
    )
    model = keras_hub.models.GPT2CausalLM(backbone, preprocessor)
    keras_flix.enable_flix(model, {"task": ["a"]}, rank=2)
    model.compile(keras.optimizers.SGD(0.0))
    return model


def data(text):
    return {"prompts": ["x", "y"], "responses": ["z", text], "task": ["a", "a"]}


def as_dataset(text):
    return tf.data.Dataset.from_tensor_slices(data(text)).batch(2)


@pytest.mark.eager
def test_texts_with_garbled_tokens_are_refused(model):
    with pytest.raises(ValueError) as error:
        model.fit(as_dataset("a<|s11|>"), verbose=0)
    text = str(error.value)
    assert text.startswith("A tokenizer must do in `tf.data` what it does in `generate")
    assert "the special token '<|s11|>' is [" in text
    assert "Pass lists, a generator, a `PyDataset` or a grain dataset" in text


@pytest.mark.eager
def test_texts_without_them_train(model):
    history = model.fit(as_dataset("a<|s3|>"), verbose=0).history
    expected = model.evaluate(data("a<|s3|>"), verbose=0, return_dict=True)
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-5)


@pytest.mark.eager
def test_lists_are_tokenized_as_in_generate(model):
    seen = []
    preprocess = model._preprocess_batch
    model._preprocess_batch = lambda batch: seen.append(preprocess(batch)) or seen[-1]
    model.fit(data("a<|s11|>"), verbose=0, shuffle=False)
    found = keras.ops.convert_to_numpy(seen[0][0]["token_ids"])[1]
    assert model.preprocessor.tokenizer("<|s11|>") == [12]
    assert 12 in found


@pytest.mark.eager
def test_the_first_batch_is_compared(model, monkeypatch):
    tokenize = type(model.preprocessor.tokenizer)._tokenize_tf
    monkeypatch.setattr(
        type(model.preprocessor.tokenizer),
        "_tokenize_tf",
        lambda self, inputs: tokenize(self, tf.strings.upper(inputs)),
    )
    with pytest.raises(ValueError, match=r"of which example 0 is \[.* there and \["):
        model.predict(as_dataset("b"), verbose=0)
