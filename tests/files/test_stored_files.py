"""Files that keras_flix 0.1.0 wrote load, and give what they gave (see `make.py`)."""

import keras
import keras_hub
import numpy as np
import pytest
from files.saved_by_0_1.make import BATCH, FEATURES, TOKENS
from helpers.gemma import to_numpy
from helpers.models import make_mlp
from helpers.places import TESTS

import keras_flix

STORED = TESTS / "files" / "saved_by_0_1"
OUTPUTS = np.load(STORED / "outputs.npz")


def assert_gives(model, inputs, name):
    np.testing.assert_allclose(to_numpy(model(inputs)), OUTPUTS[name], atol=1e-5)


@pytest.mark.short("torch")
def test_a_keras_file_with_its_choice_and_optimizer():
    model = keras.models.load_model(STORED / "mlp.keras")
    assert_gives(model, BATCH, "mlp")
    assert isinstance(model.optimizer, keras_flix.LazyAdam)
    assert int(model.optimizer.iterations) == 2
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-3)
    schema = model._adaptation.schema
    # The model's alpha for those that had none of their own.
    assert [feature.alpha for feature in schema] == [4.0, 3.0, 4.0, 4.0]
    before = {t.name: to_numpy(t.variable) for t in model._adaptation.tables()}
    model.fit(BATCH, np.zeros((3, 4)), verbose=0)
    changed = {
        table.name
        for table in model._adaptation.tables()
        if (to_numpy(table.variable) != before[table.name]).any()
    }
    assert {name.split("flix_")[1].split("_")[0] for name in changed} == {
        "task",
        "shared",
    }


def test_a_weights_file():
    model = keras_flix.enable_flix(make_mlp(5), FEATURES, targets="all-linear", alpha=4)
    model.load_weights(STORED / "mlp.weights.h5")
    assert_gives(model, BATCH, "mlp")


@pytest.mark.parametrize("alpha", [None, 5])
def test_a_weights_file_with_another_alpha_is_refused(alpha):
    model = keras_flix.enable_flix(
        make_mlp(), FEATURES, targets="all-linear", alpha=alpha
    )
    with pytest.raises(ValueError, match="The features in a weights file must match"):
        model.load_weights(STORED / "mlp.weights.h5")


@pytest.mark.parametrize("adapted", [False, True])
def test_an_adapter_file(adapted):
    # The base comes from the file of the whole model, and the tables do not.
    whole = keras.models.load_model(STORED / "mlp.keras")
    plain = keras_flix.merge_features(
        whole, {"task": None, "language": None, "domain": []}
    )
    shared = [
        layer.kernel_delta(dict.fromkeys(["task", "language"]) | {"domain": []})
        for layer in whole._adaptation.layers.values()
    ]
    for layer, delta in zip(plain.layers[1:], shared):
        layer.kernel.assign_sub(delta)
    if adapted:
        keras_flix.enable_flix(plain, FEATURES, targets="all-linear", alpha=4.0)
    keras_flix.load_adapters(plain, STORED / "mlp.flix.safetensors", check_base=False)
    assert_gives(plain, BATCH, "mlp")


def test_a_layer_of_its_own():
    model = keras.models.load_model(STORED / "layer.keras")
    assert_gives(model, np.ones((2, 5, 8), "float32"), "layer")
    assert isinstance(model.get_layer("layer"), keras_flix.FlixEinsumDense)


@pytest.mark.short("torch")
def test_a_backbone_of_keras_hub():
    model = keras.models.load_model(STORED / "gemma.keras")
    assert isinstance(model, keras_hub.models.GemmaBackbone)
    assert_gives(model, TOKENS, "gemma")
    before = [to_numpy(v) for v in model.trainable_variables]
    keras_flix.load_adapters(model, STORED / "gemma.flix.safetensors")
    for one, other in zip(before, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(one, to_numpy(other))
