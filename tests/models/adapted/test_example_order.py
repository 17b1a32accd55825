"""In which order examples in memory come, and what batches are made of them."""

import warnings

import keras
import numpy as np
import pytest
from helpers.gemma import FEATURES, randomize, to_numpy

import keras_flix
from keras_flix.models.adapted.example_order import (
    Examples,
    new_seed,
    split_examples,
)

N = 10
DATA = {
    "prompts": ["the quick"] * 5 + ["dog"] * 5,
    "responses": [("fox " * (1 + i % 3)).strip() for i in range(N)],
    "task": ["qa"] * 5 + ["list"] * 5,
    "language": ["sw", "en"] * 5,
}


def examples(data, batch_size=4, **kwargs):
    return Examples((data,), batch_size, lambda batch: batch, **kwargs)


def order(source, count):
    return [source.rows(i).tolist() for i in range(count)]


def test_every_pass_has_each_example_once_in_a_new_order():
    source = examples(np.arange(N), seed=3, first_batch=lambda: 0)
    assert source.num_batches is None
    passes = [sum(order(source, 9)[i : i + 3], []) for i in (0, 3, 6)]
    assert [sorted(found) for found in passes] == [list(range(N))] * 3
    assert len(set(map(tuple, passes))) == 3
    assert [len(rows) for rows in order(source, 3)] == [4, 4, 2]


def test_a_seed_gives_one_order_whatever_is_read_first():
    one = examples(np.arange(N), seed=3, first_batch=lambda: 0)
    other = examples(np.arange(N), seed=3, first_batch=lambda: 0)
    backwards = [other.rows(i).tolist() for i in reversed(range(9))]
    assert order(one, 9) == backwards[::-1]
    assert order(one, 3) != order(examples(np.arange(N), seed=4), 3)


def test_resumed_training_goes_on_in_the_order_it_would_have_had():
    whole = examples(np.arange(N), seed=3, first_batch=lambda: 0)
    resumed = examples(np.arange(N), seed=3, first_batch=lambda: 4)
    assert order(resumed, 5) == order(whole, 9)[4:]


def test_integers_keep_their_values():
    large, small = [3_000_000_000, 5], [-(2**31), 5]
    source = Examples(({"x": large}, small), 2, lambda batch: batch)
    x, y = source[0]
    assert x["x"].tolist() == large and x["x"].dtype == "int64"
    assert y.tolist() == small and y.dtype == "int32"


def test_without_a_seed_the_order_is_that_of_the_data():
    source = examples(np.arange(N))
    assert source.num_batches == 3
    assert sum(order(source, 3), []) == list(range(N))


def test_seeds_follow_keras():
    keras.utils.set_random_seed(5)
    found = new_seed(), new_seed()
    keras.utils.set_random_seed(5)
    assert found == (new_seed(), new_seed())
    assert found[0] != found[1]


def test_columns_of_all_kinds_are_taken_by_row():
    data = {
        "strings": list("abcd"),
        "bytes": np.array([b"a", b"b", b"c", b"d"]),
        "objects": np.array(["a", None, "c", "d"], object),
        "ints": [1, 2, 3, 4],
        "floats": [0.5, 1.5, 2.5, 3.5],
        "rows": [[1, 2], [3, 4], [5, 6], [7, 8]],
        "ragged": [[1], [2, 3], [], [4]],
        "array": np.arange(4, dtype="int64"),
        "tensor": keras.ops.reshape(keras.ops.arange(8, dtype="float32"), (4, 2)),
        "images": [np.full((2, 2, 3), i, "uint8") for i in range(4)],
        "pair": (["a", "b", "c", "d"], ["e", "f", "g", "h"]),
    }
    seen = []
    source = Examples((data,), 2, lambda batch: seen.append(batch) or (np.zeros(2),))
    source[1]
    (found,) = seen[0]
    assert found["strings"] == found["bytes"] == ["c", "d"] == found["objects"]
    assert found["pair"] == (["c", "d"], ["g", "h"])
    assert found["ragged"] == [[], [4]]
    for name, dtype, values in (
        ("ints", "int32", [3, 4]),
        ("floats", "float32", [2.5, 3.5]),
        ("rows", "int32", [[5, 6], [7, 8]]),
        ("array", "int64", [2, 3]),
        ("tensor", "float32", [[4, 5], [6, 7]]),
    ):
        assert found[name].dtype == dtype
        assert found[name].tolist() == values
    assert found["images"].shape == (2, 2, 2, 3)
    assert found["images"].dtype == "uint8"


def test_data_is_not_copied():
    column, array = list(range(N)), np.arange(N)
    source = examples({"list": column, "array": array})
    assert source.data[0]["list"] is column
    assert np.shares_memory(source.data[0]["array"], array)


@pytest.mark.parametrize(
    "data, text",
    [
        (
            ({"prompts": ["a", "b"], "task": [1]}, None, np.ones(3)),
            "All columns must have one entry per example. Received: 2 of 'prompts', "
            "1 of 'task', 3 of 'sample_weight'. Pass equally many.",
        ),
        (
            ({"prompts": "a"},),
            "`fit`, `evaluate` and `predict` take a batch of examples. Received: a "
            "single value of 'prompts'. Wrap it in a list.",
        ),
        (
            ({"prompts": []},),
            "There must be at least one example. Received: {'prompts': 0}. Pass lists "
            "or arrays with one entry each.",
        ),
    ],
)
def test_columns_that_do_not_fit_are_refused(data, text):
    with pytest.raises(ValueError) as error:
        Examples(data, 2, lambda batch: batch)
    assert str(error.value) == text


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True])
def test_a_batch_size_must_be_positive(batch_size):
    with pytest.raises(ValueError, match=f"Received: batch_size={batch_size}"):
        examples(np.arange(N), batch_size)


def test_a_split_leaves_examples_on_both_sides():
    train, held = split_examples((DATA, None, np.arange(N)), 0.25)
    assert train[0]["prompts"] == DATA["prompts"][:7]
    assert held[0]["prompts"] == DATA["prompts"][7:]
    assert held[2].tolist() == [7, 8, 9]
    (one,), (other,) = split_examples((np.arange(2),), 0.5)
    assert (one.tolist(), other.tolist()) == ([0], [1])
    with pytest.raises(ValueError, match=r"validation_split=0\.99 of 10 examples"):
        split_examples((DATA,), 0.99)


def permuted(rows):
    return {name: [column[i] for i in rows] for name, column in DATA.items()}


def trained(make_gemma, runs, **kwargs):
    """The tables after several calls of `fit`, one for each data set."""
    model = keras_flix.enable_flix(make_gemma(), FEATURES, rank=2, seed=0)
    randomize(model)
    model.compile(keras.optimizers.SGD(0.5))
    for data in runs:
        keras.utils.set_random_seed(7)
        model.fit(data, batch_size=4, verbose=0, **kwargs)
    return [to_numpy(v) for v in model.trainable_variables]


@pytest.mark.short("torch")
@pytest.mark.eager
@pytest.mark.parametrize("grain", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_fit_shuffles_lists_anew_in_every_epoch(make_gemma, monkeypatch, grain):
    from keras_hub.src.utils import pipeline_model

    if not grain and hasattr(pipeline_model, "grain"):
        monkeypatch.setattr(pipeline_model, "grain", None)
    keras.utils.set_random_seed(7)
    shuffled = examples(DATA, seed=new_seed(), first_batch=lambda: 0)
    epochs = [permuted(sum(order(shuffled, 6)[i : i + 3], [])) for i in (0, 3)]
    found = trained(make_gemma, [DATA], epochs=2)
    expected = trained(make_gemma, epochs, shuffle=False)
    in_order = trained(make_gemma, [DATA, DATA], shuffle=False)
    for one, other, unshuffled in zip(found, expected, in_order):
        np.testing.assert_array_equal(one, other)
        assert not np.array_equal(one, unshuffled)


class Steps(keras.callbacks.Callback):
    """Counts the steps of each epoch."""

    def __init__(self):
        super().__init__()
        self.epochs = []

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs.append(0)

    def on_train_batch_end(self, batch, logs=None):
        self.epochs[-1] += 1


@pytest.mark.short("torch")
@pytest.mark.eager
def test_steps_per_epoch_go_through_the_data(make_gemma):
    keras.utils.set_random_seed(7)
    shuffled = examples(DATA, seed=new_seed(), first_batch=lambda: 0)
    batches = [permuted(rows) for rows in order(shuffled, 4)]
    steps = Steps()
    found = trained(make_gemma, [DATA], epochs=2, steps_per_epoch=2, callbacks=[steps])
    assert steps.epochs == [2, 2]
    expected = trained(make_gemma, batches, shuffle=False)
    for one, other in zip(found, expected):
        np.testing.assert_array_equal(one, other)
    with pytest.warns(UserWarning, match="steps_per_epoch=5. Each epoch takes 3"):
        trained(make_gemma, [DATA], steps_per_epoch=5, callbacks=[steps])
    assert steps.epochs == [2, 2, 3]


@pytest.mark.short("torch")
@pytest.mark.eager
def test_validation_and_predictions_keep_their_order(make_gemma):
    model = randomize(keras_flix.enable_flix(make_gemma(), FEATURES, rank=2))
    model.compile(keras.optimizers.SGD(0.0))
    with warnings.catch_warnings():
        # Nothing is said about the order or the end of the data.
        warnings.filterwarnings("error", ".*(shuffle|ran out)")
        expected = model.evaluate(DATA, batch_size=4, verbose=0, return_dict=True)
        history = model.fit(
            DATA, batch_size=4, epochs=2, validation_data=DATA, verbose=0
        ).history
    assert history["val_loss"] == [expected["loss"]] * 2
    held = model.fit(DATA, batch_size=4, validation_split=0.3, verbose=0).history
    last = {name: column[7:] for name, column in DATA.items()}
    assert held["val_loss"] == [model.evaluate(last, batch_size=4, verbose=0)[0]]
    found = model.predict(DATA, batch_size=4, verbose=0)
    x = model.preprocess_samples(DATA)[0]
    np.testing.assert_allclose(found, to_numpy(model(x)), atol=1e-5)
