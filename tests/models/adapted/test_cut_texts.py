"""Texts that are cut are counted, and a user is told once."""

import warnings

import keras
import numpy as np
import pytest
from helpers.gemma import FEATURES, randomize

import keras_flix

LONG = " ".join(["quick"] * 9)
DATA = {
    "prompts": ["dog", LONG, LONG, "fox", "dog", LONG],
    "responses": ["fox", "dog", LONG, LONG, "the", "fox"],
    "task": "qa",
    "language": "sw",
}
TOLD = "2 of 6 responses were cut at sequence_length=9"


@pytest.fixture
def model(make_gemma):
    model = randomize(keras_flix.enable_flix(make_gemma(), FEATURES, rank=2))
    model.compile(keras.optimizers.SGD(0.0), sampler="greedy")
    model.preprocessor.sequence_length = 9
    return model


def told(call):
    """What a call says about cut texts."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    texts = [str(w.message) for w in caught]
    return [text for text in texts if " cut" in text]


def rows(count=6):
    return {
        k: [v] * count if isinstance(v, str) else v[:count] for k, v in DATA.items()
    }


def as_tf():
    tf = pytest.importorskip("tensorflow", reason="extra `tensorflow`")
    return tf.data.Dataset.from_tensor_slices(rows()).batch(2)


def as_grain():
    grain = pytest.importorskip("grain", reason="extra `test`")
    examples = [{k: v[i] for k, v in rows().items()} for i in range(6)]
    return grain.MapDataset.source(examples).batch(2)


def as_generator():
    for start in (0, 2, 4):
        yield {k: v[start : start + 2] for k, v in rows().items()}


@pytest.mark.short("torch")
@pytest.mark.eager
def test_fit_tells_once_after_its_first_epoch(model):
    counted = dict(DATA)
    (text,) = told(
        lambda: model.fit(
            counted, batch_size=4, epochs=3, validation_data=(DATA,), verbose=0
        )
    )
    assert text == (
        "3 of 6 prompts were cut at sequence_length=9; 2 of 6 responses were cut at "
        "sequence_length=9; 3 of 6 validation prompts were cut at sequence_length=9; 2 "
        "of 6 validation responses were cut at sequence_length=9. What was cut off is "
        "not seen by the model. Raise the preprocessor's length, or shorten the texts."
    )
    # The next call counts anew.
    assert len(told(lambda: model.fit(DATA, verbose=0))) == 1
    model.preprocessor.sequence_length = 200
    assert not told(lambda: model.fit(DATA, verbose=0))
    assert model._adaptation.cut_texts is None


@pytest.mark.slow
@pytest.mark.short("torch")
@pytest.mark.eager
@pytest.mark.parametrize("source", [as_tf, as_grain, as_generator])
def test_all_sources_are_counted(model, source):
    expected = (
        "3 of 6 different prompts were cut at sequence_length=9; 2 of 6 different "
        "responses were cut at sequence_length=9"
    )
    (text,) = told(lambda: model.evaluate(source(), verbose=0))
    assert text.startswith(expected)
    (text,) = told(lambda: model.fit(source(), verbose=0))
    assert text.startswith(expected)


@pytest.mark.slow
@pytest.mark.short("torch")
@pytest.mark.eager
@pytest.mark.parametrize(
    ("train", "validation"),
    [(as_tf, as_tf), (as_tf, lambda: (DATA,)), (lambda: DATA, as_tf)],
)
def test_validation_is_counted_apart(model, train, validation):
    (text,) = told(lambda: model.fit(train(), validation_data=validation(), verbose=0))
    text = text.replace("different ", "")
    assert text.startswith(
        f"3 of 6 prompts were cut at sequence_length=9; {TOLD}; 3 of 6 validation "
        "prompts were cut at sequence_length=9; 2 of 6 validation responses were cut "
    )


@pytest.mark.short("torch")
@pytest.mark.eager
def test_beside_grain_validation_is_said_to_be_counted_along(model):
    """There, only KerasHub's pipeline knows what is what."""
    (text,) = told(lambda: model.fit(as_grain(), validation_data=as_grain(), verbose=0))
    assert text.startswith("3 of 6 different training and validation prompts w")


@pytest.mark.slow
@pytest.mark.short("torch")
@pytest.mark.eager
def test_examples_that_are_there_twice(model):
    """Rows of data in memory are told apart; those of other sources by their texts."""
    twice = {k: [v] * 2 if isinstance(v, str) else v[1:2] * 2 for k, v in DATA.items()}
    (text,) = told(lambda: model.evaluate(twice, verbose=0))
    assert text.startswith("2 of 2 prompts were cut")
    tf = pytest.importorskip("tensorflow", reason="extra `tensorflow`")
    source = tf.data.Dataset.from_tensor_slices(twice).batch(1)
    (text,) = told(lambda: model.evaluate(source, verbose=0))
    assert text.startswith("1 of 1 different prompts were cut")


@pytest.mark.short("torch")
@pytest.mark.eager
def test_a_text_that_just_fits_is_not_cut(model):
    tokens = len(model.preprocessor.tokenizer(DATA["prompts"][0]))
    tokens += len(model.preprocessor.tokenizer(DATA["responses"][0]))
    one = {"prompts": ["dog"], "responses": ["fox"], "task": "qa", "language": "sw"}
    # With a start and an end, one of them beyond the inputs.
    model.preprocessor.sequence_length = tokens + 1
    assert not told(lambda: model.evaluate(one, verbose=0))
    model.preprocessor.sequence_length = tokens
    assert len(told(lambda: model.evaluate(one, verbose=0))) == 1


@pytest.mark.short("torch")
@pytest.mark.eager
def test_whole_texts_are_counted(model):
    data = {"text": DATA["prompts"], "task": "qa", "language": "sw"}
    (text,) = told(lambda: model.evaluate(data, verbose=0))
    assert text.startswith("3 of 6 texts were cut at sequence_length=9.")


@pytest.mark.eager
def test_generate_tells_of_prompts_without_room(model):
    prompts = {"prompts": DATA["prompts"], "task": "qa", "language": "sw"}
    (text,) = told(lambda: model.generate(prompts, max_length=9))
    assert text.startswith(
        "3 of 6 prompts were cut, or left without room for an answer, at "
        "sequence_length=9."
    )
    assert not told(lambda: model.generate({**prompts, "prompts": "dog"}))
    tf = pytest.importorskip("tensorflow", reason="extra `tensorflow`")
    one = {"task": ["qa"] * 6, "language": ["sw"] * 6, "prompts": DATA["prompts"]}
    dataset = tf.data.Dataset.from_tensor_slices(one).batch(3)
    assert told(lambda: model.generate(dataset, max_length=9)) == [text]


@pytest.mark.short("torch")
@pytest.mark.eager
def test_evaluation_tells_once(model):
    columns = {name: DATA[name] for name in ("prompts", "responses")}
    dataset = keras_flix.mixtures.Dataset({"task": "qa", "language": "sw"}, columns)
    (text,) = told(
        lambda: keras_flix.evaluation.evaluate(
            model, dataset, batch_size=4, max_length=9
        )
    )
    assert text.startswith("3 of 6 prompts were cut")


GONE = (
    "A response must keep at least one token to be trained on. Received: 6 of 6 "
    "responses of a batch that were cut off whole at sequence_length=1 (examples 0, 1, "
    "2, 3, 4, ... of the {}). Raise the preprocessor's `sequence_length`, shorten the "
    "prompts, or leave these examples out by a `sample_weight` of 0."
)


@pytest.mark.slow
@pytest.mark.short("torch")
@pytest.mark.eager
def test_training_on_responses_that_are_gone_is_refused(model):
    model.preprocessor.sequence_length = 1
    with pytest.raises(ValueError) as error:
        model.fit(DATA, verbose=0)
    assert str(error.value) == GONE.format("data")
    with pytest.raises(ValueError) as error:
        model.train_on_batch(DATA)
    assert str(error.value) == GONE.format("batch")
    with pytest.raises(ValueError, match="2 of 2 responses of a batch that were cut"):
        model.fit(as_tf(), verbose=0)
    assert model._adaptation.cut_texts is None
    # By choice, they are left out; and an evaluation counts them as cut.
    history = model.fit(DATA, sample_weight=np.zeros(6), verbose=0).history
    assert history["loss"] == [0.0]
    assert "6 of 6 responses were cut" in told(lambda: model.evaluate(DATA))[0]
