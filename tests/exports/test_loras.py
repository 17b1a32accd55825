"""A grid of exported LoRAs, and the index that says which is whose."""

from __future__ import annotations

import itertools
import json

import keras
import keras_hub
import numpy as np
import pytest
import safetensors.numpy
from helpers.gemma import FEATURES, randomize, to_numpy

import keras_flix
from keras_flix import Feature, export_lora, export_loras
from keras_flix.exports.vllm_limits import RANKS


def make(features=FEATURES, **options):
    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=40,
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=24,
        max_sequence_length=16,
    )
    options = {"targets": ["feedforward_output_dense"], **options}
    return randomize(keras_flix.enable_flix(backbone, features, **options))


def read_index(directory):
    return json.loads((directory / "index.json").read_text(encoding="utf-8"))


def delta_of(directory):
    tensors = safetensors.numpy.load_file(directory / "adapter_model.safetensors")
    a, b = (
        tensors[f"base_model.model.h.0.mlp.c_proj.lora_{part}.weight"] for part in "AB"
    )
    assert len(a) == b.shape[1]
    return len(a), (b @ a).T


def test_all_combinations_with_one_rank_and_an_index(tmp_path):
    model = make(rank={"task": 3, "language": 4})
    export_loras(model, None, tmp_path / "all", base_model="gpt2")
    index = read_index(tmp_path / "all")
    adapters = index.pop("adapters")
    assert index == {
        "format": "keras_flix.loras",
        "version": 1,
        "base_model": "gpt2",
        "max_lora_rank": 8,
        "features": [
            {"name": name, "values": values, "multiple": False}
            for name, values in FEATURES.items()
        ],
        "not_for_vllm": "it has no LoRAs for a GPT2Backbone",
    }
    assert [a["features"] for a in adapters] == [
        {"task": task, "language": language}
        for task, language in itertools.product(*FEATURES.values())
    ]
    assert adapters[1] == {
        "features": {"task": "qa", "language": "sw"},
        "directory": "qa-sw",
    }
    (layer,) = model._adaptation.layers.values()
    for adapter in adapters:
        rank, delta = delta_of(tmp_path / "all" / adapter["directory"])
        assert rank == 8
        expected = to_numpy(layer.kernel_delta(adapter["features"]))
        np.testing.assert_allclose(delta, expected, atol=1e-5)
    # Each is what `export_lora` writes.
    export_lora(model, adapters[1]["features"], tmp_path / "one", base_model="gpt2")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        one, same = (tmp_path / d / name for d in ("one", "all/qa-sw"))
        assert one.read_bytes() == same.read_bytes()


def test_the_ranks_are_those_of_vllm():
    # `MaxLoRARanks` in `vllm/config/lora.py`, read at commit 01230b40128e; a slow test
    # in test_vllm_limits.py asks an installed one.
    assert RANKS == (1, 8, 16, 32, 64, 128, 256, 320, 512)


def test_the_rank_of_the_highest_holds_for_all(tmp_path):
    model = make(rank={"task": 6, "language": 6})
    combinations = [
        {"task": "qa", "language": None},
        {"task": "qa", "language": "sw"},
        {"task": None, "language": {"sw": 0.5, "yo": 0.25}},
        {"task": None, "language": None},
    ]
    export_loras(model, combinations, tmp_path / "some")
    index = read_index(tmp_path / "some")
    assert index["max_lora_rank"] == 16
    assert [a["features"] for a in index["adapters"]] == combinations
    names = [a["directory"] for a in index["adapters"]]
    assert names == ["qa-none", "qa-sw", "none-0.5-sw+0.25-yo", "none-none"]
    (layer,) = model._adaptation.layers.values()
    for name, combination in zip(names, combinations):
        rank, delta = delta_of(tmp_path / "some" / name)
        expected = to_numpy(layer.kernel_delta(combination))
        assert rank == 16
        np.testing.assert_allclose(delta, expected, atol=1e-5)


def test_every_value_gets_a_directory_of_its_own(tmp_path):
    values = [
        "../up",
        "a/b",
        "a_b",
        "A_B",
        "日本",
        "中文",
        "index.json",
        ".",
        "x" * 300,
    ]
    model = make([Feature("value", values, multiple=True, rank=1)])
    export_loras(model, None, tmp_path / "all")
    index = read_index(tmp_path / "all")
    names = [a["directory"] for a in index["adapters"]]
    assert [a["features"] for a in index["adapters"]] == [
        {"value": [v]} for v in values
    ]
    assert len({n.casefold() for n in names}) == len(values)
    assert names[:5] == ["_up", "a_b", "a_b-2", "A_B-3", "__"]
    found = {p.name for p in (tmp_path / "all").iterdir()}
    assert found == {"index.json", *names}


def test_integers_are_values_and_a_lora_is_one_combination(tmp_path):
    model = make([Feature("domain", [7, 5], rank=1), Feature("all", always=True)])
    export_loras(model, None, tmp_path / "two")
    index = read_index(tmp_path / "two")
    assert [a["features"] for a in index["adapters"]] == [{"domain": 7}, {"domain": 5}]
    (layer,) = model._adaptation.layers.values()
    _, delta = delta_of(tmp_path / "two" / "5")
    expected = to_numpy(layer.kernel_delta({"domain": 5}))
    np.testing.assert_allclose(delta, expected, atol=1e-5)
    export_loras(make([Feature("all", always=True)]), None, tmp_path / "one")
    (adapter,) = read_index(tmp_path / "one")["adapters"]
    assert adapter == {"features": {}, "directory": "shared"}


@pytest.mark.parametrize(
    "combinations, text",
    [
        ([], "`combinations` must hold at least one. Received: combinations=[]."),
        (
            [{"task": "qa", "language": "sw"}, {"task": 0, "language": 1}],
            "each of them once. Received: {'task': 'qa', 'language': 'sw'} twice.",
        ),
        ([{"task": "qa"}], "no entry 'language'"),
    ],
)
def test_wrong_lists_are_refused(combinations, text, tmp_path):
    with pytest.raises(ValueError) as error:
        export_loras(make(), combinations, tmp_path / "all")
    assert text in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_very_many_must_be_listed(tmp_path):
    many = {"task": [f"t{i}" for i in range(40)], "language": list(range(26))}
    with pytest.raises(ValueError, match="at most 1000 .*a model with 1040, each"):
        export_loras(make(many, rank=1), None, tmp_path / "all")
    assert list(tmp_path.iterdir()) == []
