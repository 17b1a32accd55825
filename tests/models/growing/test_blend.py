"""`fit_blend`: only the weights of known values are learned."""

import keras
import numpy as np
import pytest
from helpers.gemma import FEATURES, randomize, to_numpy
from helpers.models import make_mlp, rows

import keras_flix
from keras_flix.mixtures import Mixture

pytestmark = pytest.mark.eager

TRUE = {"en": 0.7, "sw": -0.4, "yo": 0.0}


def trained_model():
    model = make_mlp()
    keras_flix.enable_flix(model, FEATURES, rank=2, targets=["hidden", "head"], seed=0)
    randomize(model)
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss="mse")
    return model


def few_examples(model, count=12):
    x = {**rows(count), "task": ["qa", "parse", None] * (count // 3)}
    return x, to_numpy(model({**x, "language": TRUE}))


@pytest.mark.short("torch", "jax")
@pytest.mark.eager(False)
@pytest.mark.support("Life of an adapter", "`fit_blend`")
def test_finds_the_weights_that_made_the_data():
    model = trained_model()
    x, y = few_examples(model)
    blend = keras_flix.fit_blend(model, "language", "rw", (x, y), epochs=200, rank=4)
    assert blend.losses[-1] < 1e-3 * blend.losses[0]
    for value, weight in TRUE.items():
        assert blend.weights[value] == pytest.approx(weight, abs=0.02)
    # The weights are the blend itself; with enough rank, so is the new value.
    exact = to_numpy(model({**x, "language": blend.weights}))
    np.testing.assert_allclose(exact, y, atol=0.02)
    added = to_numpy(model({**x, "language": "rw"}))
    np.testing.assert_allclose(added, exact, atol=0.01)
    assert blend.kept == pytest.approx(1, abs=1e-3)


def test_a_list_of_dicts():
    found = []
    for as_records in (False, True):
        model = trained_model()
        x, y = few_examples(model)
        records = [dict(zip(x, row)) for row in zip(*x.values())]
        data = (records if as_records else x, y)
        found.append(keras_flix.fit_blend(model, "language", "rw", data, epochs=2))
    assert found[0] == found[1]


def test_a_mixture():
    found = []
    for as_mixture in (False, True):
        model = trained_model()
        x, y = few_examples(model)
        mixture = Mixture({**x, "y": y}, features=["task"])
        data = (mixture, "y") if as_mixture else (x, y)
        found.append(keras_flix.fit_blend(model, "language", "rw", data, epochs=2))
    # One batch, whose rows are in another order.
    for value, weight in found[0].weights.items():
        assert found[1].weights[value] == pytest.approx(weight, abs=1e-5)


def test_a_lower_rank_says_what_it_lost():
    model = trained_model()
    x, y = few_examples(model)
    blend = keras_flix.fit_blend(model, "language", "rw", (x, y), epochs=3)
    lost = total = 0.0
    for layer in model._adaptation.layers.values():
        parts = [
            weight * to_numpy(layer.kernel_delta({"task": None, "language": value}))
            for value, weight in blend.weights.items()
        ]
        own = to_numpy(layer.kernel_delta({"task": None, "language": "rw"}))
        total += (sum(parts) ** 2).sum()
        lost += ((sum(parts) - own) ** 2).sum()
    assert 0.1 < blend.kept < 0.999
    assert blend.kept == pytest.approx(1 - lost / total, abs=1e-4)


def test_nothing_else_moves():
    model = trained_model()
    x, y = few_examples(model)
    model.fit({**x, "language": "en"}, y, epochs=1, verbose=0)
    before = [to_numpy(v).copy() for v in model.variables]
    trainable = [v.trainable for v in model.variables]
    optimizer = model.optimizer
    state = {v.path: to_numpy(v).copy() for v in optimizer.variables}
    keras_flix.fit_blend(model, "language", "rw", (x, y), epochs=2)
    assert [v.trainable for v in model.variables] == trainable
    for variable, old in zip(model.variables, before):
        # Tables of languages have one row more.
        value = to_numpy(variable)[: len(old)] if old.ndim == 3 else to_numpy(variable)
        np.testing.assert_array_equal(value, old)
    assert model.optimizer is optimizer
    for variable in optimizer.variables:
        old = state[variable.path]
        value = to_numpy(variable)[: len(old)] if old.ndim == 3 else to_numpy(variable)
        np.testing.assert_array_equal(value, old)
    model.fit({**x, "language": "rw"}, y, epochs=1, verbose=0)


@pytest.mark.short("torch")
@pytest.mark.slow
def test_prompts_and_responses(make_gemma):
    gemma = keras_flix.enable_flix(make_gemma(), FEATURES, rank=2)
    randomize(gemma, scale=0.2)
    gemma.compile(optimizer="adam", loss=gemma.loss)
    data = {
        "prompts": ["the quick", "the lazy", "jumps"],
        "responses": ["brown fox", "dog", "over"],
        "task": ["qa", "parse", None],
    }
    blend = keras_flix.fit_blend(
        gemma, "language", "rw", data, init={"sw": 0.5, "yo": 0.5}, epochs=12
    )
    assert list(blend.weights) == ["sw", "yo"]
    assert blend.losses[-1] < blend.losses[0]
    # The first loss is that of the weights it starts from.
    start = {"sw": 0.5, "yo": 0.5}
    loss = gemma.evaluate({**data, "language": [start] * 3}, verbose=0)
    assert blend.losses[0] == pytest.approx(_scalar(loss), rel=1e-4)
    out = gemma.generate(
        {"prompts": ["the"], "task": "qa", "language": "rw"}, max_length=8
    )
    assert out[0].startswith("the")


def _scalar(loss):
    return loss[0] if isinstance(loss, list) else loss


def test_bad_arguments_raise_and_change_nothing():
    model = trained_model()
    x, y = few_examples(model)
    before = [to_numpy(v).copy() for v in model.variables]

    def refusal(*args, **kwargs):
        with pytest.raises(ValueError) as error:
            keras_flix.fit_blend(model, *args, **kwargs)
        assert model._adaptation.schema["language"].values == ("en", "sw", "yo")
        for variable, old in zip(model.variables, before, strict=True):
            np.testing.assert_array_equal(to_numpy(variable), old)
        return str(error.value)

    assert "Received: 'dialect'" in refusal("dialect", "rw", (x, y))
    assert "'sw', which it has" in refusal("language", "sw", (x, y))
    with_entry = {**x, "language": "en"}
    assert "without an entry 'language'" in refusal("language", "rw", (with_entry, y))
    assert "Received: no responses and no `y`" in refusal("language", "rw", x)
    assert "no entry 'task'" in refusal("language", "rw", (rows(12), y))
    assert "must be at most 4" in refusal("language", "rw", (x, y), rank=6)
    start = {"en": 1.0}
    assert "'kn'" in refusal("language", "rw", (x, y), init={"kn": 1.0})
    bad = np.full_like(y, np.nan)
    assert "must get a finite gradient" in refusal(
        "language", "rw", (x, bad), init=start, epochs=1
    )
    model.loss = None
    assert "compiled with a loss" in refusal("language", "rw", (x, y))


def test_untrained_values_cannot_be_blended():
    model = make_mlp()
    keras_flix.enable_flix(model, {"language": ["en", "sw"]}, targets="all-linear")
    model.compile(optimizer="adam", loss="mse")
    with pytest.raises(ValueError, match="Train the known values first"):
        keras_flix.fit_blend(
            model, "language", "rw", (rows(3), np.ones((3, 4), "float32")), epochs=1
        )


@pytest.mark.short("torch", "jax")
@pytest.mark.eager(False)
@pytest.mark.parametrize("weighted, value", [("p", "en"), ("q", "sw")])
def test_the_loss_is_weighted_as_the_model_was_compiled(weighted, value):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8,), name="x")
    hidden = keras.layers.Dense(6, name="hidden")(inputs)
    outputs = {name: keras.layers.Dense(3, name=name)(hidden) for name in "pq"}
    model = keras.Model({"x": inputs}, outputs)
    keras_flix.enable_flix(
        model, {"language": ["en", "sw"]}, rank=2, targets=["hidden"], seed=1
    )
    randomize(model)
    weights = {name: float(name == weighted) for name in "pq"}
    model.compile("adam", loss=dict.fromkeys("pq", "mse"), loss_weights=weights)
    # One output is that of English, the other one that of Swahili.
    x = rows(12)
    y = {
        name: to_numpy(model({**x, "language": language})[name])
        for name, language in (("p", "en"), ("q", "sw"))
    }
    blend = keras_flix.fit_blend(model, "language", "rw", (x, y), epochs=200)
    for known, weight in blend.weights.items():
        assert weight == pytest.approx(float(known == value), abs=0.02)


def test_arrays_as_lists():
    found = []
    for as_lists in (False, True):
        model = trained_model()
        x, y = few_examples(model)
        data = x, y, np.linspace(0.5, 1, len(y), dtype="float32")
        if as_lists:
            data = {**x, "x": x["x"].tolist()}, *(part.tolist() for part in data[1:])
        found.append(keras_flix.fit_blend(model, "language", "rw", data, epochs=2))
    assert found[0].weights == pytest.approx(found[1].weights, abs=1e-6)


def test_ragged_lists_raise():
    model = trained_model()
    x, y = few_examples(model)
    ragged = [*x["x"].tolist()[:-1], [1.0]]
    with pytest.raises(ValueError, match="equally many in every row"):
        keras_flix.fit_blend(model, "language", "rw", ({**x, "x": ragged}, y))
