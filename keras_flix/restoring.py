"""Adapted models out of Keras' own `.keras` files, pickles and deep copies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import keras

from keras_flix.features import FeatureSchema
from keras_flix.routed_model import REGISTERED_NAME
from keras_flix.surgery import enable_flix


class AdaptedModel:
    """Stands for every adapted model where Keras looks up classes by name."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> keras.Model:
        """The model whose `get_config` gave `config`, with fresh tables."""
        return enable_flix(
            keras.saving.deserialize_keras_object(dict(config["base"])),
            FeatureSchema.from_config(config["schema"]),
            alpha=config["alpha"],
            targets=[re.escape(path) for path in config["layers"]],
            seed=config["seed"],
        )


keras.saving.get_custom_objects()[REGISTERED_NAME] = AdaptedModel
