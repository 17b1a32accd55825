"""What `flix_summary` counts and prints."""

import math

import keras
import pytest
from helpers.gemma import FEATURES
from helpers.models import make_mlp

import keras_flix


def test_counts():
    model = keras_flix.enable_flix(make_mlp(), FEATURES, rank=2, targets="all-linear")
    summary = keras_flix.flix_summary(model, print_fn=None)
    assert summary.layers == {"hidden": (8, 6), "head": (6, 4)}
    per_value = 2 * (8 + 6) + 2 * (6 + 4)
    assert summary.parameters == {"task": 3 * per_value, "language": 3 * per_value}
    base = 8 * 6 + 6 + 6 * 4 + 4
    assert summary.trainable == 6 * per_value
    assert summary.total == base + 6 * per_value == model.count_params()
    assert summary.share == summary.trainable / summary.total
    assert summary.base_bytes == 4 * base
    assert summary.adapter_bytes == 4 * summary.trainable


@pytest.mark.short("torch")
@pytest.mark.parametrize("mode, size", [("int8", 1), ("int4", 0.5)])
def test_memory_of_a_quantized_base(mode, size):
    model = make_mlp()
    model.quantize(mode)
    keras_flix.enable_flix(model, FEATURES, rank=2, targets="all-linear")
    summary = keras_flix.flix_summary(model, print_fn=None)
    assert summary.layers == {"hidden": (8, 6), "head": (6, 4)}
    kernels = size * (8 * 6 + 6 * 4)
    others = [v for layer in model.layers for v in layer.weights]
    others = [v for v in others if v.name != "kernel" and "flix_" not in v.name]
    sizes = {"float32": 4, "int8": 1}
    assert summary.base_bytes == kernels + sum(
        math.prod(v.shape) * sizes[keras.backend.standardize_dtype(v.dtype)]
        for v in others
    )


def test_lines():
    lines = []
    model = keras_flix.enable_flix(
        make_mlp(),
        [
            keras_flix.Feature("task", ["qa", "parse"], rank={"qa": 1, "*": 2}),
            keras_flix.Feature("shared", always=True, dropout=0.5),
        ],
        targets=["head"],
    )
    keras_flix.flix_summary(model, print_fn=lines.append)
    assert lines == [
        "FLix adapters in 1 layers:",
        "  head (6, 4)",
        "  task: 2 values of rank 1 to 2, dropout 0.0: 40 parameters",
        "  shared: 1 values of rank 4, always active, dropout 0.5: 40 parameters",
        "Trainable: 80 of 162 parameters (49.38%).",
        "Memory: 0.0 MB of base weights, 0.0 MB of adapters.",
    ]


@pytest.mark.short("torch")
def test_equal_blocks_are_listed_once(make_gemma):
    lines = []
    model = keras_flix.enable_flix(make_gemma(), {"task": ["qa"]}, rank=2)
    keras_flix.flix_summary(model, print_fn=lines.append)
    assert lines[:6] == [
        "FLix adapters in 8 layers:",
        "  decoder_block_0 to decoder_block_1 (2 blocks):",
        "    attention/query (4, 16, 6)",
        "    attention/key (2, 16, 6)",
        "    attention/value (2, 16, 6)",
        "    attention/attention_output (4, 6, 16)",
    ]


def test_the_scale_is_told_where_there_is_an_alpha():
    lines = []
    features = [keras_flix.Feature("task", ["qa"], alpha=8, scale="sqrt")]
    model = keras_flix.enable_flix(make_mlp(), features, targets=["head"])
    keras_flix.flix_summary(model, print_fn=lines.append)
    assert lines[2] == (
        "  task: 1 values of rank 4, dropout 0.0, scale 8 / sqrt(rank): 40 parameters"
    )


def test_a_plain_model_is_refused():
    with pytest.raises(ValueError, match="Received: a Functional without adapters"):
        keras_flix.flix_summary(make_mlp())
