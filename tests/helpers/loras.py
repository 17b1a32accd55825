"""Exported LoRAs compared with what transformers and PEFT make of them."""

from __future__ import annotations

import warnings

import keras
import keras_hub
import numpy as np
import pytest
from helpers.hugging_face import (
    keras_outputs,
    load,
    torch_outputs,
    with_lora,
)

COMBINATION = {"task": "parse", "language": "sw"}
NONE = {"task": None, "language": None}
CAUSAL_LM = "AutoModelForCausalLM"
needs_torch = pytest.mark.skipif(
    keras.config.backend() != "torch",
    reason="files do not depend on the backend: all families with one backend",
)


def generator(family, backbone):
    name = {"Gemma2": "Gemma"}.get(family, family)
    kind = "Seq2SeqLM" if family == "Bart" else "CausalLM"
    cls = getattr(keras_hub.models, f"{name}{kind}")
    return cls(backbone=backbone, preprocessor=None)


def assert_same(model, base, auto, directory, combination=COMBINATION):
    """The adapted Keras model is `base` with the LoRA, and that has an effect."""
    theirs = load(base, auto)
    plain = torch_outputs(theirs)
    ours = keras_outputs(model, **combination)
    np.testing.assert_allclose(keras_outputs(model, **NONE), plain, atol=1e-4)
    with warnings.catch_warnings():
        # PEFT only warns of what is missing.
        warnings.filterwarnings("error", message=".*missing.*")
        adapted = with_lora(theirs, directory)
    np.testing.assert_allclose(torch_outputs(adapted), ours, atol=1e-4)
    assert np.abs(plain - ours).max() > 0.1
