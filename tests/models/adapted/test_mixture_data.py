"""`fit`, `evaluate` and `predict` of a `Mixture`: what each of them sees."""

import keras
import numpy as np
import pytest
from helpers.gemma import to_numpy
from helpers.models import make_mlp

import keras_flix
from keras_flix.mixtures import Dataset, Mixture
from keras_flix.models.adapted.example_order import new_seed

pytestmark = pytest.mark.eager


def refusal(make):
    with pytest.raises(ValueError) as error:
        make()
    return str(error.value)


def numbers(temperature=1.0):
    """Examples of a functional model, with labels and weights."""
    generator = np.random.default_rng(0)

    def dataset(task, language, count):
        columns = {
            "x": generator.normal(size=(count, 8)).astype("float32"),
            "label": generator.integers(0, 4, count),
            "weight": generator.uniform(0.5, 2, count).astype("float32"),
        }
        return Dataset({"task": task, "language": language}, columns)

    parts = [("qa", "en", 7), ("qa", None, 3), ("parse", "sw", 12), ("parse", "en", 2)]
    return Mixture([dataset(*part) for part in parts], temperature)


NAMES = {"y": "label", "sample_weight": "weight"}


def adapted(mixture, rate=0.05):
    model = keras_flix.enable_flix(
        make_mlp(), mixture.schema(rank=2), targets="all-linear", seed=0
    )
    model.compile(
        optimizer=keras.optimizers.SGD(rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def tables(model):
    return [to_numpy(v) for v in model.trainable_variables]


def assert_same(model, other):
    for found, wanted in zip(tables(model), tables(other), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


def parts(batch):
    return batch, batch.pop("label"), batch.pop("weight")


def trained_on(mixture, draws):
    """What training on some places of a mixture, batch by batch, gives."""
    model = adapted(mixture)
    for places in draws:
        x, y, weight = parts(mixture.take(places))
        model.train_on_batch(x, y, sample_weight=weight)
    return model


# Which examples train. ----------------------------------------------------------


@pytest.mark.pairs
@pytest.mark.parametrize(("temperature", "steps"), [(1.0, 3), (2.0, None), (9.0, 3)])
def test_epochs_are_drawn(temperature, steps):
    """With steps, or a temperature: the tables are those of what `draw` draws."""
    mixture = numbers(temperature)
    model = adapted(mixture)
    keras.utils.set_random_seed(3)
    # `fit` draws one seed for the order, and one for the examples.
    _, seed = new_seed(), new_seed()
    keras.utils.set_random_seed(3)
    history = model.fit(
        mixture, **NAMES, batch_size=5, steps_per_epoch=steps, epochs=2, verbose=0
    )
    assert len(history.history["loss"]) == 2
    steps = steps or 5  # 24 examples
    draws = [
        mixture.draw(steps * 5, seed=(seed, epoch))[5 * i : 5 * i + 5]
        for epoch in range(2)
        for i in range(steps)
    ]
    assert_same(model, trained_on(mixture, draws))


@pytest.mark.short("torch")
def test_resumed_training_draws_what_comes_next():
    mixture = numbers(2.0)
    whole, resumed = adapted(mixture), adapted(mixture)
    options = {**NAMES, "batch_size": 8, "epochs": 2, "verbose": 0}
    keras.utils.set_random_seed(3)
    whole.fit(mixture, **options)
    keras.utils.set_random_seed(3)
    resumed.fit(mixture, **{**options, "epochs": 1})
    keras.utils.set_random_seed(3)
    resumed.fit(mixture, **options, initial_epoch=1)
    assert_same(whole, resumed)


@pytest.mark.short("torch")
def test_without_both_an_epoch_is_one_pass():
    mixture = numbers()
    model = adapted(mixture)
    model.fit(mixture, **NAMES, batch_size=24, verbose=0)
    x, y, weight = parts(mixture.inputs())
    other = adapted(mixture)
    other.train_on_batch(x, y, sample_weight=weight)
    assert_same(model, other)
    # Labels by position, as in Keras, and of a dataset alone.
    one = mixture.datasets[0].select([0, 1])
    columns = {name: c for name, c in one.columns.items() if name != "weight"}
    model, other = adapted(mixture), adapted(mixture)
    model.fit(Dataset(one.features, columns), "label", verbose=0, shuffle=False)
    other.train_on_batch({"x": columns["x"], **one.features}, columns["label"])
    assert_same(model, other)


# Validation and evaluation. -----------------------------------------------------


def test_validation_and_evaluation_see_all_examples_in_order():
    mixture = numbers(3.0)
    rest, held_out = mixture.split({"language": "sw"})
    model = adapted(mixture, rate=0.0)
    x, y, weight = parts(held_out.inputs())
    expected = model.evaluate(x, y, sample_weight=weight, verbose=0)
    found = model.evaluate(held_out, **NAMES, batch_size=5, verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    options = {"batch_size": 8, "verbose": 0}
    history = model.fit(rest, **NAMES, validation_data=held_out, **options).history
    np.testing.assert_allclose(history["val_loss"], expected, rtol=1e-5)
    # Beside arrays, the names come with the mixture.
    named = (held_out, "label", "weight")
    history = model.fit(x, y, validation_data=named, **options).history
    np.testing.assert_allclose(history["val_loss"], expected, rtol=1e-5)
    alone = Mixture([Dataset(d.features, {"x": d.columns["x"]}) for d in rest.datasets])
    np.testing.assert_allclose(
        model.predict(alone, verbose=0), to_numpy(model(alone.inputs())), rtol=1e-5
    )


@pytest.mark.short("torch")
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_validation_split_is_that_of_the_mixture(temperature):
    mixture = numbers(temperature)
    train, validation = mixture.validation_split(0.25)
    options = {**NAMES, "batch_size": 32, "verbose": 0}
    model, other = adapted(mixture), adapted(mixture)
    keras.utils.set_random_seed(3)
    found = model.fit(mixture, validation_split=0.25, **options).history
    keras.utils.set_random_seed(3)
    expected = other.fit(train, validation_data=validation, **options).history
    assert found == expected and "val_loss" in found
    assert_same(model, other)


# Tasks. -------------------------------------------------------------------------

TEXTS = {"prompts": ["the quick", "dog", "over"], "responses": ["brown", "fox", "the"]}


def test_tasks(make_gemma):
    mixture = Mixture(
        [
            Dataset({"task": task, "language": language}, TEXTS)
            for task, language in [("qa", "en"), ("qa", "sw"), ("parse", None)]
        ],
        temperature=2.0,
    )
    model = keras_flix.enable_flix(
        make_gemma(num_layers=1), mixture.schema(), rank=2, seed=0
    )
    model.compile(optimizer=keras.optimizers.SGD(0.5))
    before = tables(model)
    keras.utils.set_random_seed(3)
    _, seed = new_seed(), new_seed()
    keras.utils.set_random_seed(3)
    history = model.fit(
        mixture, batch_size=3, steps_per_epoch=2, validation_split=1 / 3, verbose=0
    ).history
    assert "val_loss" in history
    found = tables(model)
    assert any(not np.array_equal(a, b) for a, b in zip(before, found, strict=True))
    for variable, value in zip(model.trainable_variables, before, strict=True):
        variable.assign(value)
    train, _ = mixture.validation_split(1 / 3)
    places = train.draw(6, seed=(seed, 0))
    for rows in (places[:3], places[3:]):
        model.train_on_batch(train.take(rows))
    for value, wanted in zip(found, tables(model), strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-6)
    assert "Pass such as `mixture.sample(32)`" in refusal(
        lambda: model.generate(mixture)
    )


# What is refused. ---------------------------------------------------------------


@pytest.mark.short("torch")
def test_refusals():
    mixture = numbers()
    model = adapted(mixture)
    before = tables(model)
    assert refusal(lambda: model.fit(mixture, y="labl", verbose=0)) == (
        "`y` and `sample_weight` must name columns of the mixture, ['x', 'label', "
        "'weight']. Received: y='labl'. The nearest is 'label'. Name the column."
    )
    for make in (model.fit, model.evaluate):
        assert "Received: y=a ndarray. Name" in refusal(
            lambda m=make: m(mixture, np.zeros(24), verbose=0)
        )
    assert refusal(lambda: model.fit(mixture, **NAMES, steps_per_epoch=0)) == (
        "An epoch must have at least one batch. Received: steps_per_epoch=0. Pass a "
        "positive integer, or leave it out for one pass over the mixture."
    )
    for method in (model.train_on_batch, model.predict_on_batch, model):
        assert "all else takes one batch. Received: Mixture(4 " in refusal(
            lambda m=method: m(mixture)
        )
    assert "part off an example" in refusal(
        lambda: model.fit(mixture, **NAMES, validation_split=1.5)
    )
    assert "'label'" in refusal(lambda: model.fit(mixture, verbose=0))
    for value, wanted in zip(tables(model), before, strict=True):
        np.testing.assert_array_equal(value, wanted)
