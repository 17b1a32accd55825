"""The Gemma that every script here trains, its batch, and its numbers as JSON."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import keras_hub
import numpy as np

import keras_flix

FEATURES = [
    keras_flix.Feature("task", ["qa", "parse", "list"]),
    keras_flix.Feature("language", ["en", "sw"], multiple=True),
    keras_flix.Feature("shared", always=True),
]
# No example of the second half has a task: there, one axis is never active.
ENTRIES = {
    "task": ["qa", "parse", "list", "qa", None, None, None, None],
    "language": [["en"], ["sw"], ["en", "sw"], [], ["sw"], [], ["en"], ["en"]],
}
TOKENS = np.random.default_rng(1).integers(4, 40, size=(8, 6)).astype("int32")
OWN = {"token_ids": TOKENS, "padding_mask": np.ones((8, 6), "int32")}
BATCH = {**OWN, **ENTRIES}
LABELS = np.roll(TOKENS, -1, axis=1)
PROMPTS = {
    "token_ids": np.where(np.arange(6) < 3, TOKENS, 0).astype("int32"),
    "padding_mask": np.tile(np.arange(6) < 3, (8, 1)).astype("int32"),
    **ENTRIES,
}


def make_gemma():
    """A Gemma whose axes a mesh of (2, 4) divides, with weights that numpy draws."""
    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=40,
        num_layers=1,
        num_query_heads=4,
        num_key_value_heads=4,
        hidden_dim=16,
        intermediate_dim=32,
        head_dim=6,
    )
    draw(backbone.variables, 0.25)
    return keras_hub.models.GemmaCausalLM(backbone=backbone, preprocessor=None)


def draw(variables, scale=0.3, seed=0):
    generator = np.random.default_rng(seed)
    for variable in variables:
        variable.assign(generator.normal(size=variable.shape) * scale)


def listed(x):
    return keras.ops.convert_to_numpy(x).tolist()


def values(variables):
    return {v.path: listed(v) for v in variables}


def base_of(model):
    """All that must stay as it is; the state of a seed may not."""
    return values(v for v in model.non_trainable_variables if "seed" not in v.path)


def predict(model, batch=BATCH):
    return model.predict(batch, batch_size=8, verbose=0)


def generate(model, sampler="greedy"):
    model.compile(sampler=sampler)
    return model.generate(PROMPTS, stop_token_ids=None)["token_ids"].tolist()


def fit(model):
    """Losses of two epochs of one step, and of the model after them."""
    model.compile(
        optimizer=keras.optimizers.SGD(0.1),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[],
    )
    options = {"batch_size": 8, "verbose": 0}
    losses = model.fit(BATCH, LABELS, epochs=2, **options).history["loss"]
    return [*losses, model.evaluate(BATCH, LABELS, **options)]
