"""A script of a user, as type checkers see it: see tests/project/test_typing.py."""

from typing import assert_type

import keras
import keras_hub
import numpy as np

import keras_flix
from keras_flix import Feature, FeatureDropout, FeatureSchema
from keras_flix.files import Adapters, read_adapters
from keras_flix.mixtures import Dataset, Mixture


def adapt(gemma: keras_hub.models.GemmaCausalLM) -> keras_hub.models.GemmaCausalLM:
    adapted = keras_flix.enable_flix(
        gemma,
        features=[
            Feature("task", ["qa", "parse"], rank=8),
            Feature("language", ["en", "sw"], rank={"en": 2, "*": 4}),
            Feature("shared", always=True),
        ],
        rank={"task": 8, "language": {"en": 2, "*": 4}},
        dropout={"task": 0.3, "language": FeatureDropout(0.1, rescale=True)},
        targets="all-linear",
    )
    assert_type(adapted, keras_hub.models.GemmaCausalLM)
    with keras_flix.adapters_disabled(adapted) as base:
        assert_type(base, keras_hub.models.GemmaCausalLM)
    keras_flix.save_adapters(adapted, "gemma.flix.safetensors")
    loaded = keras_flix.load_adapters(adapted, "gemma.flix.safetensors")
    assert_type(loaded, keras_hub.models.GemmaCausalLM)
    return keras_flix.merge_features(adapted, {"task": "qa", "language": None})


def adapt_by_values(model: keras.Model) -> keras.Model:
    return keras_flix.enable_flix(model, {"task": ["qa", "parse"]}, rank=4, dropout=0.5)


def layers(schema: FeatureSchema) -> list[keras.layers.Layer]:
    dense = keras_flix.FlixDense(8, features={"task": ["qa"]}, rank={"task": 2})
    einsum = keras_flix.FlixEinsumDense("ab,bc->ac", 8, features=schema, dropout=0.1)
    return [dense, einsum]


def values_of(path: str) -> dict[str, tuple[str | int, ...]]:
    adapters = read_adapters(path)
    assert_type(adapters, Adapters)
    return {feature.name: tuple(feature.values) for feature in adapters.schema}


def ids(schema: FeatureSchema) -> dict[str, np.ndarray]:
    found = schema.encode({"task": ["qa", None], "language": "sw"})
    assert_type(schema.names, list[str])
    return found


def mixture() -> Mixture:
    return Mixture([Dataset({"task": "qa"}, {"prompts": ["a"], "responses": ["b"]})])
