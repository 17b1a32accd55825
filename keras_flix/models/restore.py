"""Adapted models out of Keras' own `.keras` files, pickles and deep copies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from keras_flix import _compat
from keras_flix.features.schema import FeatureSchema
from keras_flix.layers.row_orders import Orders, as_orders
from keras_flix.models.adapted.adaptation import adaptation_of
from keras_flix.models.adapted.frozen_values import choose
from keras_flix.models.adapted.learning_rates import Rates
from keras_flix.models.adapted.plain_view import (
    EMBEDDINGS_OF,
    REGISTERED_NAME,
    layers_with_kernels,
)
from keras_flix.models.adapted.trained_base import restore_flags
from keras_flix.models.enable import adapt_layers
from keras_flix.models.multiplied import expert_kernels
from keras_flix.models.targets import keyed_layers
from keras_flix.models.trainable_tokens import placed_tokens


class AdaptedModel:
    """Stands for every adapted model where Keras looks up classes by name."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> keras.Model:
        """The model whose `get_config` gave `config`, with fresh tables."""
        base = keras.saving.deserialize_keras_object(dict(config["base"]))
        linear, every = layers_with_kernels(base), _compat.flatten_layers(base)
        keys = {id(layer): key for key, layer in keyed_layers(base)}
        experts = {
            (id(kernel.holder()), kernel.attribute): kernel
            for _, kernel in expert_kernels(_compat.layers_with_parents(base))
        }
        layers: dict[str, Any] = {}
        rows: dict[str, Orders] = {}
        stated = config.get("rows") or [None] * len(config["layers"])
        for described, orders in zip(config["layers"], stated, strict=True):
            position, name, *attribute = described
            places = every if attribute else linear
            layer = places[position] if position < len(places) else None
            if layer is None or layer.name != name:
                raise ValueError(
                    "A saved model must be built again with the layers it had. "
                    f"Expected: layer {name!r} at place {position}. Received: "
                    f"{getattr(layer, 'name', 'none')!r}. Load its weights into a "
                    "model that you adapt with `enable_flix`."
                )
            if attribute and attribute != [EMBEDDINGS_OF]:
                kernel = experts[id(layer), *attribute]
                kernel.each = len(layers) in (config.get("each") or ())
                key, layer = kernel.path, kernel
            else:
                key = keys.get(id(layer), layer.path)
            layers[key] = layer
            if orders is not None:
                rows[key] = as_orders(orders)
        schema = FeatureSchema.from_config(config["schema"])
        order = list(layers)
        model = adapt_layers(
            base,
            schema,
            layers,
            alpha=config["alpha"],
            scale=config.get("scale", "rank"),
            places={
                name: [order[i] for i in places]
                for name, places in (config.get("places") or {}).items()
            },
            ranks={
                name: {order[i]: rank for i, rank in by_place}
                for name, by_place in (config.get("ranks") or {}).items()
            },
            seed=config["seed"],
            rows=rows,
            tokens=placed_tokens(
                base, config.get("tokens") or {}, "The model's config"
            ),
        )
        adaptation = adaptation_of(model)
        if config.get("rates"):
            for part in adaptation.users:
                part._adaptation.rates = Rates.from_config(config["rates"])
        choose(adaptation, config.get("trainable"))
        restore_flags(model, config.get("flags", {}))
        return model


keras.saving.get_custom_objects()[REGISTERED_NAME] = AdaptedModel
