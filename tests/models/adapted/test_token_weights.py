"""`sample_weight` of tasks whose preprocessor makes the targets; `y` is refused."""

import keras
import numpy as np
import pytest
from helpers.gemma import FEATURES, randomize, to_numpy

import keras_flix
from keras_flix.models.adapted.token_weights import weigh

DATA = {
    "prompts": ["the quick", "dog", "fox jumps"],
    "responses": ["brown fox", "lazy", "over the"],
    "task": ["qa", "parse", "list"],
    "language": "sw",
}
WEIGHTS = [2.0, 0.0, 0.25]


@pytest.fixture
def model(make_gemma):
    model = randomize(keras_flix.enable_flix(make_gemma(), FEATURES, rank=2))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.0), loss=loss)
    return model


def weighted_loss(model, weights):
    """The mean over all positions of what Keras makes of single examples."""
    alone = []
    for i in range(3):
        one = {k: v if isinstance(v, str) else [v[i]] for k, v in DATA.items()}
        alone.append(model.evaluate(one, verbose=0, return_dict=True)["loss"])
    return float(np.mean(np.array(weights) * alone))


@pytest.mark.eager
def test_weights_count_at_every_entry_point(model):
    expected = weighted_loss(model, WEIGHTS)
    given = {"sample_weight": WEIGHTS, "return_dict": True}
    array = {"sample_weight": np.array(WEIGHTS), "return_dict": True}
    whole = {"batch_size": 3, "verbose": 0}
    found = [
        model.evaluate(DATA, **whole, **given)["loss"],
        model.test_on_batch(DATA, **array)["loss"],
        model.train_on_batch(DATA, **array)["loss"],
    ]
    history = model.fit(
        DATA, sample_weight=WEIGHTS, validation_data=(DATA, None, WEIGHTS), **whole
    ).history
    found += [history["loss"][0], history["val_loss"][0]]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert weighted_loss(model, [1, 1, 1]) != pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
@pytest.mark.eager
@pytest.mark.short("torch", "tensorflow")
def test_weights_in_datasets_count(model):
    tf = pytest.importorskip("tensorflow", reason="extra `tensorflow`")
    columns = {**DATA, "language": ["sw"] * 3}
    dataset = tf.data.Dataset.from_tensor_slices((columns, WEIGHTS)).batch(3)
    dataset = dataset.map(lambda x, weight: (x, None, weight))
    expected = weighted_loss(model, WEIGHTS)
    found = model.evaluate(dataset, verbose=0, return_dict=True)["loss"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    batches = iter([(DATA, None, np.array(WEIGHTS))])
    found = model.evaluate(batches, verbose=0, return_dict=True)["loss"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.eager
@pytest.mark.short("torch")
def test_texts_without_responses_are_weighed_too(model):
    data = {"text": DATA["prompts"], "task": "qa", "language": "sw"}
    loss = model.evaluate(data, sample_weight=np.zeros(3), verbose=0)
    assert (loss[0] if isinstance(loss, list) else loss) == 0


def test_tokens_are_multiplied_by_the_weight_of_their_example(model):
    x, y, tokens = model.preprocess_samples(DATA)
    _, _, weighed = model.preprocess_samples(DATA, None, WEIGHTS)
    expected = to_numpy(tokens) * np.array(WEIGHTS, "float32")[:, None]
    np.testing.assert_array_equal(weighed, expected)
    assert weigh((x, y, tokens), None)[2] is tokens


@pytest.mark.parametrize(
    "weights, text",
    [
        (
            [1.0, 2.0],
            "`sample_weight` must have one weight per example. Received: 2 weights for "
            "3 examples. Pass equally many.",
        ),
        (
            np.ones((3, 24)),
            "`sample_weight` must have one weight per example, which weighs all tokens "
            "of its response. Received: sample_weight of shape (3, 24). Pass a vector.",
        ),
        (
            [1.0, np.nan, 1.0],
            "`sample_weight` must hold finite numbers. Received: nan (at example 1). "
            "Leave an example out by 0.",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(model, weights, text):
    with pytest.raises(ValueError) as error:
        model.test_on_batch(DATA, sample_weight=weights)
    assert str(error.value) == text
    with pytest.raises(ValueError, match="one entry per example|sample_weight"):
        model.fit(DATA, sample_weight=weights, verbose=0)


CALLS = {
    "fit": lambda model, y: model.fit(DATA, y, verbose=0),
    "evaluate": lambda model, y: model.evaluate(DATA, y, verbose=0),
    "train_on_batch": lambda model, y: model.train_on_batch(DATA, y),
    "test_on_batch": lambda model, y: model.test_on_batch(DATA, y),
    "validation": lambda model, y: model.fit(
        DATA, validation_data=(DATA, y), verbose=0
    ),
    "generator": lambda model, y: model.fit(iter([(DATA, y)]), verbose=0),
}


@pytest.mark.parametrize("call", CALLS)
def test_targets_are_refused(model, call):
    text = "takes no `y`. Received: y of type ndarray, with a GemmaCausalLMPrepro"
    with pytest.raises(ValueError, match=text):
        CALLS[call](model, np.zeros((3, 24)))
