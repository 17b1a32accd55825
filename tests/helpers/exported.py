"""Adapted models to export, and what runs the exported ones."""

from __future__ import annotations

import keras
import numpy as np
from helpers.gemma import FEATURES, make_backbone, randomize, to_numpy

import keras_flix

BAD = (3, -2, 2**31 - 1)
"""No places in the list of a feature's values, which has three, nor none."""


def features(multiple=False):
    return [
        keras_flix.Feature("task", FEATURES["task"], rank={"qa": 1, "*": 2}),
        keras_flix.Feature("language", FEATURES["language"], multiple=multiple),
        keras_flix.Feature("shared", always=True),
    ]


def small_model(multiple=False):
    inputs = keras.Input((6,), name="x")
    hidden = keras.layers.Dense(16, activation="relu", name="hidden")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(5, name="head")(hidden))
    keras_flix.enable_flix(
        model,
        features(multiple),
        targets="all-linear",
        rank=2,
        alpha=3,
        dropout=0.3,
        seed=0,
    )
    return randomize(model)


def ids(size, multiple=False):
    """Values of every kind: each of them, and none."""
    task = np.array([0, 2, -1, 1, -1], "int32")[:size]
    language = np.array([[1, 2], [-1, -1], [0, -1], [2, 0], [1, -1]], "int32")[:size]
    return {"task": task, "language": language if multiple else language[:, 0]}


def small_batch(size, multiple=False):
    x = np.random.default_rng(size).normal(size=(size, 6)).astype("float32")
    return {"x": x, **ids(size, multiple)}


def text_batch(size, length):
    generator = np.random.default_rng(size)
    return {
        "token_ids": generator.integers(1, 40, (size, length)).astype("int32"),
        "padding_mask": (np.arange(length) < length - np.arange(size)[:, None]).astype(
            "int32"
        ),
        **ids(size),
    }


def gemma():
    return randomize(
        keras_flix.enable_flix(make_backbone(num_layers=1), features(), alpha=3, rank=2)
    )


def load_saved_model(path):
    import tensorflow as tf

    artifact = tf.saved_model.load(str(path))
    serve = artifact.signatures["serving_default"]
    names = set(serve.structured_input_signature[1])

    def run(batch, keep=artifact):
        assert set(batch) == names
        (outputs,) = serve(**{k: tf.constant(v) for k, v in batch.items()}).values()
        return outputs.numpy()

    return run


def load_onnx(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    names = {value.name for value in session.get_inputs()}

    def run(batch):
        assert set(batch) == names
        (outputs,) = session.run(None, batch)
        return outputs

    return run


def load_litert(path):
    import tensorflow as tf

    program = tf.lite.Interpreter(str(path)).get_signature_runner()

    def run(batch):
        (outputs,) = program(**batch).values()
        return outputs

    return run


def load_openvino(path):
    """An ONNX file in OpenVINO, which would take half precision on some CPUs."""
    import openvino

    core = openvino.Core()
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    program = core.compile_model(core.read_model(str(path)), "CPU", exact)
    # A port may have further names.
    names = [port.names for port in program.inputs]

    def run(batch):
        assert len(batch) == len(names)
        assert all(any(name in own for own in names) for name in batch)
        # The next call overwrites its outputs.
        return np.array(program(dict(batch))[0])

    return run


def load_exported_program(path):
    import torch

    program = torch.export.load(str(path)).module()
    return lambda batch: program({k: torch.tensor(v) for k, v in batch.items()})


def assert_same(run, model, batches):
    """The artifact's numbers are the model's, and depend on the features."""
    for batch in batches:
        found = to_numpy(run(batch))
        np.testing.assert_allclose(found, to_numpy(model(batch)), atol=2e-5, rtol=1e-4)
        other = {**batch, "task": (batch["task"] + 2) % 3}
        assert np.abs(to_numpy(run(other)) - found).max() > 1e-2
        np.testing.assert_allclose(
            to_numpy(run(other)), to_numpy(model(other)), atol=2e-5, rtol=1e-4
        )


def assert_bad_ids_are_nan(run, batch):
    """An id that stands for no value spoils its example, and no other one."""
    expected = to_numpy(run(batch))
    others = np.arange(len(expected)) != 1
    for name in FEATURES:
        for bad in BAD:
            spoilt = batch[name].copy()
            spoilt[1] = bad
            found = to_numpy(run({**batch, name: spoilt}))
            assert np.isnan(found[1]).all(), (name, bad)
            np.testing.assert_array_equal(found[others], expected[others])
