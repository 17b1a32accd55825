"""A file of some values: the smaller model computes what the whole one does."""

import keras
import numpy as np
import pytest
from families.decoders import FAMILIES
from helpers.gemma import randomize, to_numpy
from helpers.growing import DATA, predicted, small, tables
from helpers.models import make_mlp

import keras_flix

FEATURES = {"task": ["qa", "parse"], "language": ["en", "sw", "yo"]}
RANKS = {"language": {"en": 3, "*": 1}, "task": 2}


def of_sw(model):
    chosen = {"task": None, "language": "sw"}
    layers = model._adaptation.layers
    return {n: to_numpy(layer.kernel_delta(chosen)) for n, layer in layers.items()}


@pytest.mark.short("torch", "jax")
@pytest.mark.parametrize("others", [True, False])
def test_others_take_values_over(others, tmp_path):
    model = small(features=FEATURES, trained=False, rank=RANKS)
    path = tmp_path / "sw.flix.safetensors"
    keras_flix.save_values(model, path, {"language": ["sw"]}, others=others)
    names = keras_flix.files.read_adapters(path).schema.names
    assert names == (["task", "language"] if others else ["language"])
    other = small(features={**FEATURES, "language": ["rw"]}, rank=2)
    keras_flix.update_from(other, path, {"language": ["sw"]})
    expected = of_sw(model)
    for name, found in of_sw(other).items():
        np.testing.assert_allclose(found, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("what", ["save", "load", "values"])
def test_files_within_fit_are_of_the_weights_after_a_batch(what, tmp_path):
    """JAX's loops hold the weights, and give their arrays away."""
    path, model, seen = tmp_path / "one.flix.safetensors", small(), []
    other = small(trained=False)
    keras_flix.save_adapters(other, path)

    def act(batch, logs=None):
        if batch:
            return
        if what == "load":
            keras_flix.load_adapters(model, path)
        elif what == "save":
            keras_flix.save_adapters(model, path)
        else:
            keras_flix.save_values(model, path, {"language": ["sw"]})
        seen.append(tables(model))

    x = {name: list(value)[:2] * 2 for name, value in DATA.items()}
    x["x"] = np.stack(x["x"])
    callback = keras.callbacks.LambdaCallback(on_train_batch_end=act)
    model.fit(x, np.ones((4, 4)), batch_size=2, verbose=0, callbacks=[callback])
    (now,) = seen
    if what == "load":
        for name, value in tables(other).items():
            np.testing.assert_array_equal(now[name], value)
    else:
        read = keras_flix.files.read_adapters(path).tables
        name = "hidden/flix_language_b"
        of_sw = slice(1, 2) if what == "values" else slice(None)
        np.testing.assert_array_equal(read[name], now[name][of_sw])
    assert any((tables(model)[name] != value).any() for name, value in now.items())


def own_ranks():
    options = {"layer_ranks": {"head": {"language": 4, "task": 1}}}
    return make_mlp, {"targets": "all-linear", **options}


def own_experts():
    (mixtral,) = [one for one in FAMILIES if one.name == "Mixtral"]
    return mixtral.build, {"experts": "each"}


@pytest.mark.short("torch")
@pytest.mark.parametrize("others", [True, False])
@pytest.mark.parametrize("of", [own_ranks, own_experts])
def test_layers_with_ranks_or_experts_of_their_own(of, others, tmp_path):
    make, options = of()
    model = keras_flix.enable_flix(make(), FEATURES, rank=2, **options)
    randomize(model)
    path = tmp_path / "sw.flix.safetensors"
    keras_flix.save_values(model, path, {"language": ["sw"]}, others=others)
    loaded = keras_flix.load_adapters(make(), path)
    chosen = {"language": "sw"}
    expected = {"task": None, **chosen}
    for name, layer in model._adaptation.layers.items():
        found = loaded._adaptation.layers[name]
        ids = expected if others else chosen
        np.testing.assert_allclose(
            to_numpy(found.kernel_delta(ids)),
            to_numpy(layer.kernel_delta(expected)),
            atol=1e-6,
        )


@pytest.mark.short("torch")
def test_others_take_over_a_feature_of_some_layers(tmp_path):
    features = [
        keras_flix.Feature("task", ["qa", "parse"], rank=2),
        keras_flix.Feature("language", ["en", "sw"], rank=1, targets=["hidden"]),
    ]

    def model_of(scale):
        model = keras_flix.enable_flix(make_mlp(), features, targets="all-linear")
        return randomize(model, scale=scale)

    model, other = model_of(0.5), model_of(0.8)
    path = tmp_path / "sw.flix.safetensors"
    keras_flix.save_values(model, path, {"language": ["sw"]}, others=False)
    keras_flix.update_from(other, path, {"language": ["sw"]})
    expected = of_sw(model)
    assert expected["hidden"].any()
    for name, found in of_sw(other).items():
        np.testing.assert_array_equal(found, expected[name])


@pytest.mark.short("torch")
def test_a_feature_of_some_layers(tmp_path):
    features = [
        keras_flix.Feature("task", ["qa", "parse"], rank=2),
        keras_flix.Feature("language", ["en", "sw"], rank=1, targets=["hidden"]),
    ]
    model = keras_flix.enable_flix(make_mlp(), features, targets="all-linear", seed=0)
    path = tmp_path / "sw.flix.safetensors"
    for others, layers in ((True, ["hidden", "head"]), (False, ["hidden"])):
        keras_flix.save_values(model, path, {"language": ["sw"]}, others=others)
        loaded = keras_flix.load_adapters(make_mlp(), path)
        assert sorted(loaded._adaptation.layers) == sorted(layers)
        own = loaded._adaptation.layers["hidden"]._tables.pair("language")
        whole = model._adaptation.layers["hidden"]._tables.pair("language")
        for one, both in zip(own, whole, strict=True):
            np.testing.assert_array_equal(one, both[1:])


@pytest.mark.short("torch", "jax")
def test_a_plain_model_loads_it(tmp_path):
    model = small(features=FEATURES, trained=False, rank=RANKS)
    path = tmp_path / "sw.flix.safetensors"
    keras_flix.save_values(model, path, {"language": ["sw"]})
    loaded = keras_flix.load_adapters(make_mlp(), path)
    schema = keras_flix.schema_of(loaded)
    assert schema["language"].values == ("sw",) and schema["language"].ranks == (1,)
    assert schema["task"].values == ("qa", "parse")
    x = {"x": DATA["x"], "task": ["qa", None, "parse", "qa", None, "parse"]}
    batch = {**x, "language": 5 * ["sw"] + [None]}
    np.testing.assert_allclose(
        predicted(loaded, batch), predicted(model, batch), rtol=1e-6, atol=1e-6
    )
    # None of the room for the rank of another is left.
    assert all(
        t.shape[0] <= 2 and min(t.shape[1:]) <= 2 for t in tables(loaded).values()
    )


@pytest.mark.short("torch")
@pytest.mark.parametrize("values", [{"user": ["ann"]}, {"language": ["rw"]}])
def test_unknown_values_write_nothing(values, tmp_path):
    with pytest.raises((ValueError, KeyError), match="user|rw"):
        path = tmp_path / "some.flix.safetensors"
        keras_flix.save_values(small(trained=False), path, values)
    assert not list(tmp_path.iterdir())
