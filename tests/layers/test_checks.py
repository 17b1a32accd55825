"""What no layer can be adapted on."""

import keras
import pytest
from helpers.models import make_mlp, rows, state

import keras_flix

FEATURES = {"task": ["qa", "parse"]}


def test_a_backend_without_training_is_refused_with_what_works(monkeypatch, tmp_path):
    """Keras' own backend for OpenVINO only runs models, and lacks many operations."""
    path = tmp_path / "a.flix.safetensors"
    options = {"targets": ["hidden"], "rank": 2}
    keras_flix.save_adapters(
        keras_flix.enable_flix(make_mlp(), FEATURES, **options), path
    )
    model = make_mlp()
    before = state(model, rows())
    monkeypatch.setattr(keras.config, "backend", lambda: "openvino")
    refused = [
        lambda: keras_flix.enable_flix(model, FEATURES, **options),
        lambda: keras_flix.load_adapters(model, path),
        lambda: keras_flix.FlixDense(4, features=FEATURES),
        lambda: keras_flix.FlixEinsumDense("ab,bc->ac", (4,), features=FEATURES),
    ]
    for call in refused:
        with pytest.raises(ValueError, match="KERAS_BACKEND='openvino'") as error:
            call()
        assert 'model.export(path, format="onnx")' in str(error.value)
    monkeypatch.undo()
    assert state(model, rows()) == before


def test_a_rank_may_be_the_smaller_dim_of_a_layer():
    options = {"targets": ["hidden"], "rank": 6}
    model = keras_flix.enable_flix(make_mlp(), FEATURES, **options)
    (feature,) = model.get_layer("hidden").features
    assert feature.ranks == (6, 6)
    with pytest.raises(ValueError, match="must be at most 6, the smaller dim of layer"):
        keras_flix.enable_flix(make_mlp(), FEATURES, **{**options, "rank": 7})
