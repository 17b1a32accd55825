"""A tokenizer that TensorFlow's pipelines run otherwise is not trained with."""

import string

import keras
import keras_hub
import pytest
from helpers.gemma import FEATURES

import keras_flix
from keras_flix.models.adapted import tokenizer_paths

tf = pytest.importorskip("tensorflow", reason="extra `tensorflow`")

SPECIAL = [f"<|s{i}|>" for i in range(12)]
CHARACTERS = [*string.ascii_letters, *string.digits, "<", ">", "|", "Ġ", "Ä", "´"]


def byte_pairs(special):
    tokens = ["<|endoftext|>", *SPECIAL, *CHARACTERS, "ab"]
    return keras_hub.models.GPT2Tokenizer(
        vocabulary={token: i for i, token in enumerate(tokens)},
        merges=["a b"],
        unsplittable_tokens=special,
    )


@pytest.mark.parametrize("count", [3, 12])
def test_garbled_tokens_are_found(count):
    tokenizer = byte_pairs(SPECIAL[:count])
    garbled = tokenizer_paths.garbled_tokens(
        keras_hub.models.GPT2CausalLMPreprocessor(tokenizer, sequence_length=24)
    )
    # The letters of the 11th and the 12th token are BA and BB, those of the second B.
    assert sorted(garbled) == SPECIAL[10:count]
    for token, spelled in garbled.items():
        assert spelled.endswith(f"there and [{SPECIAL.index(token) + 1}] elsewhere")


@pytest.fixture
def model(make_gemma):
    model = keras_flix.enable_flix(make_gemma(), FEATURES, rank=2)
    model.compile(keras.optimizers.SGD(0.0))
    return model


def dataset(response):
    columns = {
        "prompts": ["the", "fox"],
        "responses": ["quick", response],
        "task": ["qa", "qa"],
        "language": ["en", "sw"],
    }
    return tf.data.Dataset.from_tensor_slices(columns).batch(2)


@pytest.mark.slow
@pytest.mark.eager
def test_texts_with_garbled_tokens_are_refused(model, monkeypatch):
    tokenizer = model.preprocessor.tokenizer
    spelled = {"dog": "[1] there and [2] elsewhere"}
    monkeypatch.setitem(tokenizer_paths._garbled, tokenizer, spelled)
    model.fit(dataset("lazy"), verbose=0)
    with pytest.raises(ValueError) as error:
        model.fit(dataset("a dog"), verbose=0)
    assert str(error.value) == (
        "A tokenizer must do in `tf.data` what it does in `generate`. Received: texts "
        "in a `tf.data` dataset, of which the special token 'dog' is [1] there and [2] "
        "elsewhere. Pass lists, a generator, a `PyDataset` or a grain dataset, whose "
        "texts are tokenized as in `generate`."
    )


@pytest.mark.slow
@pytest.mark.eager
def test_the_first_batch_is_compared(model, monkeypatch):
    cls = type(model.preprocessor.tokenizer)
    tokenize = cls._tokenize_tf
    monkeypatch.setattr(
        cls,
        "_tokenize_tf",
        lambda self, inputs: tokenize(self, tf.strings.upper(inputs)),
    )
    with pytest.raises(ValueError, match=r"of which example 0 is \[.* there and \["):
        model.predict(dataset("lazy"), verbose=0)


@pytest.mark.eager
def test_lists_are_tokenized_as_in_generate(model, monkeypatch):
    def refuse(self, inputs):
        raise AssertionError("TensorFlow tokenizes")

    monkeypatch.setattr(type(model.preprocessor.tokenizer), "_tokenize_tf", refuse)
    data = {"prompts": ["the"], "responses": ["fox"], "task": "qa", "language": "en"}
    model.fit(data, validation_data=(data,), verbose=0)


@pytest.mark.slow
@pytest.mark.eager
def test_a_seed_that_is_set_after_the_tokenizer_was_made(model):
    """TensorFlow then forgets what SentencePiece models it holds, in tf.data too."""
    keras.utils.set_random_seed(3)
    tokenizer = model.preprocessor.tokenizer
    with pytest.raises(tf.errors.NotFoundError, match="does not exist"):
        tokenizer._sentence_piece.tokenize(tf.constant(["the"]))
    model.fit(dataset("lazy"), validation_data=dataset("lazy"), verbose=0)
    made = tokenizer._sentence_piece
    model.evaluate(dataset("lazy"), verbose=0)
    assert tokenizer._sentence_piece is made
