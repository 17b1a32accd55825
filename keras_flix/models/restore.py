"""Adapted models out of Keras' own `.keras` files, pickles and deep copies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from keras_flix.features.schema import FeatureSchema
from keras_flix.layers.row_orders import as_orders
from keras_flix.models.adapted.adaptation import adaptation_of
from keras_flix.models.adapted.frozen_values import choose
from keras_flix.models.adapted.plain_view import REGISTERED_NAME, layers_with_kernels
from keras_flix.models.adapted.trained_base import restore_flags
from keras_flix.models.enable import adapt_layers
from keras_flix.models.targets import keyed_layers
from keras_flix.models.trainable_tokens import placed_tokens


class AdaptedModel:
    """Stands for every adapted model where Keras looks up classes by name."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> keras.Model:
        """The model whose `get_config` gave `config`, with fresh tables."""
        base = keras.saving.deserialize_keras_object(dict(config["base"]))
        linear = layers_with_kernels(base)
        keys = {id(layer): key for key, layer in keyed_layers(base)}
        layers = {}
        for position, name in config["layers"]:
            layer = linear[position] if position < len(linear) else None
            if layer is None or layer.name != name:
                raise ValueError(
                    "A saved model must be built again with the layers it had. "
                    f"Expected: layer {name!r} at place {position}. Received: "
                    f"{getattr(layer, 'name', 'none')!r}. Load its weights into a "
                    "model that you adapt with `enable_flix`."
                )
            layers[keys.get(id(layer), layer.path)] = layer
        schema = FeatureSchema.from_config(config["schema"])
        model = adapt_layers(
            base,
            schema,
            layers,
            alpha=config["alpha"],
            seed=config["seed"],
            rows={
                key: as_orders(orders)
                for key, orders in (config.get("rows") or {}).items()
                if key in layers
            },
            tokens=placed_tokens(
                base, config.get("tokens") or {}, "The model's config"
            ),
        )
        choose(adaptation_of(model), config.get("trainable"))
        restore_flags(model, config.get("flags", {}))
        return model


keras.saving.get_custom_objects()[REGISTERED_NAME] = AdaptedModel
