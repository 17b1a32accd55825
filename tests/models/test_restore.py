"""Adapted models made again: with what `enable_flix` was told, or refused."""

import copy
import pickle

import keras
import numpy as np
import pytest
from helpers.gemma import randomize, to_numpy
from helpers.models import make_centred
from helpers.training import small_model

BATCH = {
    "x": np.random.default_rng(0).normal(size=(3, 4)).astype("float32"),
    "task": ["p", None, "q"],
}


def from_keras_file(model, folder):
    model.save(folder / "model.keras")
    return keras.models.load_model(folder / "model.keras")


def from_json(model, folder):
    found = keras.models.model_from_json(model.to_json())
    found.set_weights(model.get_weights())
    return found


def from_weights(model, folder):
    model.save_weights(folder / "model.weights.h5")
    found = make_centred()
    found.load_weights(folder / "model.weights.h5")
    return found


@pytest.mark.parametrize(
    "again",
    [
        from_keras_file,
        from_json,
        from_weights,
        lambda model, _: copy.deepcopy(model),
        lambda model, _: pickle.loads(pickle.dumps(model)),
    ],
    ids=["keras", "json", "weights", "deepcopy", "pickle"],
)
def test_stated_rows_survive(again, tmp_path):
    model = randomize(make_centred())
    (path,) = model._adaptation.layers
    found = again(from_keras_file(model, tmp_path), tmp_path)
    ((other, layer),) = found._adaptation.layers.items()
    assert other != path and layer.row_orders == {"batch"}
    assert found._adaptation.rows == {other: {"batch"}}
    np.testing.assert_allclose(
        to_numpy(found(BATCH)), to_numpy(model(BATCH)), rtol=1e-6
    )


@pytest.mark.parametrize(
    "place, name, found", [(0, "head", "hidden"), (7, "hidden", "none")]
)
def test_other_layers_than_those_of_the_config_are_refused(place, name, found):
    model = small_model()
    config = model.get_config()
    config["layers"] = [[place, name]]
    with pytest.raises(ValueError) as error:
        type(model).from_config(config)
    assert (
        f"Expected: layer {name!r} at place {place}. Received: {found!r}. Load its "
        "weights"
    ) in str(error.value)
