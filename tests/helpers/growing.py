"""Small trained models for the tests of growing, with every optimizer."""

import keras
import numpy as np
import pytest
from helpers.gemma import randomize, to_numpy
from helpers.models import make_mlp, rows

import keras_flix

IDS = {
    "task": np.array([0, 1, -1, 1, 0, 1], "int32"),
    "language": np.array([1, 0, 1, -1, 1, 0], "int32"),
}
DATA = {**rows(6), **IDS}
Y = np.random.default_rng(1).normal(size=(6, 4)).astype("float32")
FEATURES = {"task": ["qa", "parse"], "language": ["en", "sw"]}
OPTIMIZERS = {
    "adam": lambda: keras.optimizers.Adam(0.05),
    "adamw, weight decay, clipping": lambda: keras.optimizers.AdamW(
        0.05, weight_decay=0.1, global_clipnorm=0.5
    ),
    "sgd with momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    "adagrad": lambda: keras.optimizers.Adagrad(0.05),
    "adafactor": lambda: keras.optimizers.Adafactor(0.05),
    "lion": lambda: keras.optimizers.Lion(0.01),
    "nadam": lambda: keras.optimizers.Nadam(0.01),
    "averages": lambda: keras.optimizers.Adam(
        0.05, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3
    ),
    "accumulated": lambda: keras.optimizers.Adam(0.05, gradient_accumulation_steps=2),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(
        keras.optimizers.Adam(0.05), initial_scale=4.0
    ),
    "schedule": lambda: keras.optimizers.Adam(
        keras.optimizers.schedules.ExponentialDecay(0.05, 3, 0.5)
    ),
}

SLOW = ("loss scale", "accumulated")
"""Those that compile much on JAX."""


def cases(*left_out):
    """The optimizers as parameters of a test."""
    pairs = pytest.mark.pairs("optimizers of what grows")
    return [
        pytest.param(name, marks=[pairs, *[pytest.mark.slow] * (name in SLOW)])
        for name in OPTIMIZERS
        if name not in left_out
    ]


def small(optimizer="adam", features=None, trained=True, **kwargs):
    """An adapted model whose optimizer has made three steps."""
    model = keras_flix.enable_flix(
        make_mlp(),
        features or FEATURES,
        **{"rank": 2, "targets": "all-linear", "seed": 3, "alpha": 3, **kwargs},
    )
    for layer in randomize(model)._adaptation.layers.values():
        for feature in layer.features:
            # As training leaves them: nothing beyond a value's rank.
            for axis, table in zip((2, 1), layer._tables.variables[feature.name]):
                value = to_numpy(table)
                for row, rank in enumerate(feature.ranks):
                    np.moveaxis(value[row], axis - 1, 0)[rank:] = 0
                table.assign(value)
    model.compile(OPTIMIZERS[optimizer](), loss="mse")
    shapes = [tuple(v.shape) for v in model.trainable_variables]
    return step(model, shapes, 3) if trained else model


def step(model, shapes, count, seed=0):
    """Applies random gradients to what is in the given shapes: no compiling."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        gradients = []
        for variable, shape in zip(model.trainable_variables, shapes, strict=True):
            gradient = np.zeros(variable.shape, "float32")
            gradient[tuple(map(slice, shape))] = generator.normal(size=shape)
            gradients.append(keras.ops.convert_to_tensor(gradient))
        apply(model.optimizer, gradients, model.trainable_variables)
    return model


def apply(optimizer, gradients, variables):
    """As trainers do."""
    if not optimizer.built:
        optimizer.build(variables)
    if keras.config.backend() != "jax":
        optimizer.apply(gradients, variables)
        return
    new = optimizer.stateless_apply(
        [v.value for v in optimizer.variables], gradients, [v.value for v in variables]
    )
    for variable, value in zip([*variables, *optimizer.variables], [*new[0], *new[1]]):
        variable.assign(value)


def train(model, steps, data=None):
    for _ in range(steps):
        model.train_on_batch(data or DATA, Y)
    return model


def tables(model):
    """Every table, by path."""
    return {
        f"{path}/{name}": to_numpy(variable)
        for path, layer in model._adaptation.layers.items()
        for name, variable in layer._tables.named_variables.items()
    }


def slots(model):
    return [to_numpy(v) for v in model.optimizer.variables]


def predicted(model, data=None):
    return to_numpy(model.predict(data or DATA, verbose=0))


def delta(model, **combination):
    layer = model._adaptation.layers["hidden"]
    return to_numpy(layer.kernel_delta({"task": None, **combination}))


# Traps. ---------------------------------------------------------------------
