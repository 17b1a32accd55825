"""Adapted experts in PEFT: transformers computes what the adapted model does."""

from __future__ import annotations

import json

import keras_hub
import numpy as np
import pytest
from helpers.gemma import FEATURES, randomize
from helpers.hugging_face import (
    keras_outputs,
    load,
    load_keras,
    read_config,
    torch_outputs,
    with_lora,
)
from helpers.loras import (
    CAUSAL_LM,
    COMBINATION,
    NONE,
    assert_same,
    generator,
    needs_torch,
)

import keras_flix

pytestmark = needs_torch
GEMMA4_MIXTURE = {
    "enable_moe_block": True,
    "num_experts": 3,
    "top_k_experts": 2,
    "moe_intermediate_size": 12,
}
BOTH = ["experts.down_proj", "experts.gate_up_proj"]


def make(family, base, experts, **options):
    options = {"rank": {"task": 3, "language": 2}, "alpha": 2, **options}
    model = generator(family, load_keras(family, base))
    keras_flix.enable_flix(model, FEATURES, experts=experts, **options)
    return randomize(model)


@pytest.mark.parametrize(
    "family, experts, options, rank",
    [
        # Two kernels are one parameter, whose ranks add up.
        ("Mixtral", "shared", {}, 16),
        ("Mixtral", "each", {"expert_rank": {"task": 2}}, 8),
        ("Gemma4", "each", {"expert_rank": 1}, 8),
        # One kernel is one parameter, and others train beside it.
        ("QwenMoe", "each", {"targets": "all-linear"}, 8),
        ("Qwen3Moe", "shared", {"trainable_tokens": [7, 9]}, 8),
        ("Qwen3_5Moe", "each", {"targets": "all-linear"}, 8),
        # Gates and inputs are interleaved, and kernels not transposed.
        ("GptOss", "each", {"scale": "sqrt"}, 8),
    ],
)
def test_transformers_computes_the_same(
    family,
    experts,
    options,
    rank,
    bases,
    tmp_path,
):
    base = bases(family, CAUSAL_LM, **(GEMMA4_MIXTURE if family == "Gemma4" else {}))
    model = make(family, base, experts, **options)
    keras_flix.export_lora(model, COMBINATION, tmp_path / "lora")
    config = read_config(tmp_path / "lora")
    assert config["target_parameters"] == BOTH
    assert config["r"] == config["lora_alpha"] == rank
    if "trainable_tokens" in options:
        adapted = with_lora(load(base, CAUSAL_LM), tmp_path / "lora")
        ours = keras_outputs(model, **COMBINATION)
        np.testing.assert_allclose(torch_outputs(adapted), ours, atol=1e-4)
    else:
        assert_same(model, base, CAUSAL_LM, tmp_path / "lora")
    merged = with_lora(load(base, CAUSAL_LM), tmp_path / "lora").merge_and_unload()
    ours = keras_outputs(model, **COMBINATION)
    np.testing.assert_allclose(torch_outputs(merged), ours, atol=1e-4)


def test_blends_and_all_combinations(bases, tmp_path):
    base = bases("Qwen3Moe", CAUSAL_LM)
    model = make("Qwen3Moe", base, "each", rank=1)
    keras_flix.export_lora(model, NONE, tmp_path / "none")
    theirs = with_lora(load(base, CAUSAL_LM), tmp_path / "none")
    ours = keras_outputs(model, **NONE)
    np.testing.assert_allclose(torch_outputs(theirs), ours, atol=1e-4)
    blend = {"task": "qa", "language": {"en": 0.25, "sw": 0.5}}
    keras_flix.export_lora(model, blend, tmp_path / "blend")
    assert_same(model, base, CAUSAL_LM, tmp_path / "blend", blend)
    with pytest.warns(UserWarning, match="it names the LoRAs of experts otherwise"):
        keras_flix.export_loras(model, [blend, COMBINATION], tmp_path / "loras")
    index = json.loads((tmp_path / "loras" / "index.json").read_text())
    directory = index["adapters"][1]["directory"]
    assert_same(model, base, CAUSAL_LM, tmp_path / "loras" / directory)


def test_values_add_up(bases, tmp_path):
    base = bases("Mixtral", CAUSAL_LM)
    model = make("Mixtral", base, "shared", rank={"task": 2, "language": 1})
    keras_flix.export_values(model, tmp_path / "values")
    for name, one in {
        "task-parse": {"task": "parse", "language": None},
        "language-sw": {"task": None, "language": "sw"},
    }.items():
        assert_same(model, base, CAUSAL_LM, tmp_path / "values" / name, one)
    theirs = with_lora(load(base, CAUSAL_LM), tmp_path / "values" / "task-parse")
    theirs.load_adapter(tmp_path / "values" / "language-sw", "language")
    # All adapters of experts must have the same parameters, which these have.
    theirs.base_model.set_adapter(["default", "language"])
    ours = keras_outputs(model, **COMBINATION)
    np.testing.assert_allclose(torch_outputs(theirs), ours, atol=1e-4)


def test_names_that_peft_takes_for_experts_are_refused(tmp_path):
    backbone = keras_hub.models.Qwen3MoeBackbone(
        vocabulary_size=20,
        num_layers=2,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=8,
        intermediate_dim=12,
        moe_intermediate_dim=8,
        head_dim=4,
        num_experts=2,
        top_k=1,
        # The first layer is dense.
        decoder_sparse_step=2,
    )
    keras_flix.enable_flix(backbone, FEATURES, targets="all-linear", experts="shared")
    with pytest.raises(ValueError, match="which have none: PEFT takes the names gate"):
        keras_flix.export_lora(backbone, COMBINATION, tmp_path / "lora")
    assert not (tmp_path / "lora").exists()
