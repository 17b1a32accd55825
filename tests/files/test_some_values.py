"""A file of some values: the smaller model computes what the whole one does."""

import numpy as np
import pytest
from helpers.gemma import to_numpy
from helpers.growing import DATA, predicted, small, tables
from helpers.models import make_mlp

import keras_flix

FEATURES = {"task": ["qa", "parse"], "language": ["en", "sw", "yo"]}
RANKS = {"language": {"en": 3, "*": 1}, "task": 2}


@pytest.mark.short("torch", "jax")
def test_a_plain_model_loads_it_and_others_take_it_over(tmp_path):
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
    other = small(features={**FEATURES, "language": ["rw"]}, rank=2)
    keras_flix.update_from(other, path, {"language": ["sw"]})
    for name, layer in other._adaptation.layers.items():
        chosen = {"task": None, "language": "sw"}
        np.testing.assert_allclose(
            to_numpy(layer.kernel_delta(chosen)),
            to_numpy(model._adaptation.layers[name].kernel_delta(chosen)),
            rtol=1e-5,
            atol=1e-6,
        )


@pytest.mark.short("torch")
@pytest.mark.parametrize("values", [{"user": ["ann"]}, {"language": ["rw"]}])
def test_unknown_values_write_nothing(values, tmp_path):
    with pytest.raises((ValueError, KeyError), match="user|rw"):
        path = tmp_path / "some.flix.safetensors"
        keras_flix.save_values(small(trained=False), path, values)
    assert not list(tmp_path.iterdir())
