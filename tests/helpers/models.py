"""Small models that the tests of adaptation share, and what must not change in them."""

import keras
import keras_hub
import numpy as np
from keras import ops

import keras_flix


def make_mlp(seed=0):
    """A functional model with two Dense layers and a dict input."""
    keras.utils.set_random_seed(seed)
    x = keras.Input((8,), name="x")
    hidden = keras.layers.Dense(6, activation="tanh", name="hidden")(x)
    outputs = keras.layers.Dense(4, name="head")(hidden)
    return keras.Model({"x": x}, outputs)


class Bypassing(keras.layers.Layer):
    """Reads the kernel of one of its sublayers without calling it, as Gemma 4 does."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.gating = keras.layers.Dense(6, use_bias=False, name="gating")
        self.output_layer = keras.layers.Dense(8, name="linear")

    def build(self, input_shape):
        self.gating.build(input_shape)
        self.output_layer.build((*input_shape[:-1], 6))

    def call(self, inputs):
        return self.output_layer(ops.matmul(inputs, self.gating.kernel))


def make_bypassing(seed=0):
    keras.utils.set_random_seed(seed)
    x = keras.Input((8,), name="x")
    return keras.Model({"x": x}, Bypassing(name="block")(x))


class Subclassed(keras.Model):
    """A model that does not tell its inputs."""

    def __init__(self):
        super().__init__()
        self.block = Bypassing(name="block")

    def call(self, inputs):
        return self.block(inputs["x"])


@keras.saving.register_keras_serializable("tests")
class Centred(keras.layers.Layer):
    """Its encoder reads rows that depend on the whole batch: theirs must be stated.

    A copy has no name of its own, so the path of its encoder is another.
    """

    def __init__(self, name=None):
        super().__init__(name=name)
        self.encoder = keras.layers.Dense(4, name="encoder")

    def build(self, shape):
        self.encoder.build(shape)

    def call(self, x):
        return self.encoder(x - ops.mean(x, axis=0))

    def get_config(self):
        return {}


def make_centred(name=None, adapted=True):
    """A model over `Centred`, adapted by two tasks."""
    keras.utils.set_random_seed(0)
    x = keras.Input((4,), name="x")
    model = keras.Model({"x": x}, Centred(name)(x))
    if adapted:
        rows = {"encoder": "batch"}
        keras_flix.enable_flix(
            model, {"task": ["p", "q"]}, rank=2, targets=["encoder"], rows=rows
        )
    return model


def make_gemma4():
    return keras_hub.models.Gemma4Backbone(
        vocabulary_size=40,
        image_size=16,
        num_layers=1,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=16,
        intermediate_dim=24,
        head_dim=8,
        layer_types=["full_attention"],
    )


def rows(count=3, seed=0):
    x = np.random.default_rng(seed).normal(size=(count, 8)).astype("float32")
    return {"x": x}


def state(model, inputs):
    """All that a refused change must leave as it was."""
    return {
        "class": type(model),
        "layer classes": [type(layer) for layer in model._flatten_layers()],
        "variables": [id(v) for v in model.variables],
        "trainable": [id(v) for v in model.trainable_variables],
        "paths": [v.path for v in model.variables],
        "flags": [v.trainable for v in model.variables],
        "layer flags": [layer.trainable for layer in model._flatten_layers()],
        "values": [ops.convert_to_numpy(v).tolist() for v in model.variables],
        "outputs": ops.convert_to_numpy(model(inputs)).tolist(),
        "attributes": [sorted(vars(layer)) for layer in model._flatten_layers()],
    }
