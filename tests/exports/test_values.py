"""One LoRA per value, put together by the servers that people run."""

from __future__ import annotations

import concurrent.futures
import functools
import json
import sys

import keras
import keras_hub
import numpy as np
import pytest
from helpers.gemma import FEATURES, randomize, to_numpy
from helpers.hugging_face import (
    keras_outputs,
    load,
    load_keras,
    peft,
    read_config,
    save_base,
    torch_outputs,
)
from helpers.llama_cpp import (
    LENGTH,
    OPTIONS,
    PROMPT,
    Server,
    assert_same,
    log_probabilities,
    make_task,
    prompt_tokens,
    silent_tokens,
)
from helpers.places import GUIDES

import keras_flix
from keras_flix import Feature, export_base, export_values, merge_features
from keras_flix.serving import read_index

if keras.config.backend() != "torch":
    reason = "what is exported does not depend on the backend: tested once, with torch"
    pytest.skip(reason, allow_module_level=True)

pytestmark = pytest.mark.slow

SHARED = [
    *(Feature(name, values) for name, values in FEATURES.items()),
    Feature("shared", always=True, rank=1),
]
COMBINATIONS = [
    {"task": "qa", "language": "en"},
    {"task": "qa", "language": "sw"},
    {"task": "parse", "language": "sw"},
    {"task": "list", "language": "yo"},
    {"task": None, "language": "yo"},
    {"task": "parse", "language": None},
    {"task": None, "language": None},
    {"task": "list", "language": {"sw": 0.75, "yo": -0.5}},
]
# llama.cpp reads GELU from a table in float16.
TOLERANCE = dict.fromkeys(OPTIONS, 1e-4) | dict.fromkeys(
    ("Gemma", "Gemma2", "Gemma3", "GPT2"), 8e-3
)


def zero_beyond_ranks(model):
    """As training leaves the tables of values of a lower rank than others."""
    for table in model._adaptation.tables():
        feature = model._adaptation.feature_in(table.layer, table.feature)
        values = to_numpy(table.variable).copy()
        for row, rank in enumerate(feature.ranks):
            beyond = (
                (row, slice(rank, None))
                if table.part == "b"
                else (row, ..., slice(rank, None))
            )
            values[beyond] = 0
        table.variable.assign(values)
    return model


def files_of(index):
    return [index.directory / adapter["file"] for adapter in index.adapters]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Models with their servers, each made once."""

    @functools.cache
    def make(family):
        keras.utils.set_random_seed(0)
        folder = tmp_path_factory.mktemp(family)
        task = make_task(family)
        keras_flix.enable_flix(
            task,
            SHARED,
            rank={"task": 3, "language": {"sw": 1, "*": 2}},
            alpha=2,
            targets="all-linear",
        )
        zero_beyond_ranks(randomize(task))
        export_base(task, folder / "base.gguf")
        export_values(task, folder / "values", format="gguf")
        index = read_index(folder / "values")
        return task, index, Server(folder / "base.gguf", files_of(index))

    return make


@pytest.mark.parametrize("family", OPTIONS)
def test_the_server_puts_values_together(family, served):
    task, index, server = served(family)
    requests = [index.request(combination) for combination in COMBINATIONS]
    answers = server.answers(task, requests)
    features = {name: [c[name] for c in COMBINATIONS] for name in FEATURES}
    ours = assert_same(task, answers, TOLERANCE[family], features)
    # Each is another model.
    differences = np.abs(ours[:, None] - ours[None]).max(-1)
    assert differences[~np.eye(len(ours), dtype=bool)].min() > 10 * TOLERANCE[family]
    for i in (2, 7):
        merged = merge_features(task, COMBINATIONS[i])
        plain = log_probabilities(merged, [prompt_tokens(task)])[0, -1]
        np.testing.assert_allclose(plain, ours[i], atol=1e-4)


@pytest.mark.parametrize("family", OPTIONS)
def test_the_server_reads_prompts_as_the_model_does(family, served):
    task, _, server = served(family)
    prompts = [PROMPT, " fox", "the  quick"]
    if task.preprocessor.tokenizer.vocabulary_size() > 300:
        # A few letters are all that the others know.
        prompts += ["Hello, World! 12\n", " 日本  "]
    for prompt in prompts:
        found = server.post("tokenize", content=prompt, add_special=True)["tokens"]
        assert found == prompt_tokens(task, prompt)


def test_the_other_endpoints_take_the_same_request(served):
    task, index, server = served("Llama")
    never = [[token, False] for token in silent_tokens(task)]
    options = {"n_predict": LENGTH, "temperature": 0, "logit_bias": never}
    messages = [{"role": "user", "content": PROMPT}]
    rendered = server.post("apply-template", messages=messages)["prompt"]
    texts = set()
    for i in (0, 2):
        request = {**options, **index.request(COMBINATIONS[i])}
        text = server.post("completion", prompt=rendered, **request)["content"]
        found = server.post("v1/completions", prompt=rendered, **request)
        assert found["choices"][0]["text"] == text
        found = server.post("v1/chat/completions", messages=messages, **request)
        assert found["choices"][0]["message"]["content"] == text
        texts.add(text)
    assert len(texts) == 2


def test_a_prompt_read_with_other_values_is_not_used_again(served):
    """The trap: llama-server's cache in memory does not know adapters."""
    task, index, _ = served("Llama")
    base, files = index.directory.parent / "base.gguf", files_of(index)
    server = Server(base, files, slots=1)
    # As with `server_arguments`.
    without = Server(base, files, slots=1, cache_ram=0)
    first = prompt_tokens(task) * 2
    second = [first[0], *first[:0:-1]]
    one, other = (index.request(COMBINATIONS[i]) for i in (0, 2))
    _, expected = server.answer(task, other, first)
    assert one["cache_prompt"] is False
    assert index.server_arguments()[-2:] == ["--cache-ram", "0"]
    for own, cached, least, most in (
        (server, True, 0.1, np.inf),
        (server, False, 0, 1e-4),
        (without, True, 0, 1e-4),
    ):
        options = {"cache_prompt": cached}
        for request, prompt in ((one, first), (other, second), (other, first)):
            _, found = own.answer(task, {**request, **options}, prompt)
        assert least <= np.abs(found - expected)[0].max() <= most


TRAINED = [
    {"task": "full_date", "language": "fr"},
    # Training has not shown this one.
    {"task": "weekday", "language": "it"},
    {"task": "duration", "language": "hi"},
    {"task": "full_date", "language": "ja"},
    {"task": "full_date", "language": {"it": 0.5, "fr": 0.5}},
    {"task": "weekday", "language": None},
    {"task": None, "language": "de"},
    {"task": None, "language": None},
]


def test_greedy_tokens_of_a_trained_model(tmp_path):
    task = keras_hub.models.CausalLM.from_preset(str(GUIDES / "cldr_gemma"))
    keras_flix.load_adapters(task, GUIDES / "cldr_adapters.flix.safetensors")
    with pytest.warns(UserWarning, match="llama.cpp reads a text as other tokens"):
        export_base(task, tmp_path / "base.gguf")
    export_values(task, tmp_path / "values", format="gguf")
    index = read_index(tmp_path / "values")
    server = Server(tmp_path / "base.gguf", files_of(index))
    prompt = prompt_tokens(task, "2024-07-24 3 = ")

    def answer(combination):
        options = {"n_predict": 20, "temperature": 0, "return_tokens": True}
        request = index.request(combination)
        return server.post("completion", prompt=prompt, **options, **request)["tokens"]

    with concurrent.futures.ThreadPoolExecutor(len(TRAINED)) as pool:
        found = list(pool.map(answer, TRAINED))
    end = task.preprocessor.tokenizer.end_token_id
    task.compile(sampler="greedy")
    task.preprocessor = None
    tokens = np.zeros((len(TRAINED), len(prompt) + 20), "int32")
    tokens[:, : len(prompt)] = prompt
    features = {name: [c[name] for c in TRAINED] for name in ("task", "language")}
    x = {"token_ids": tokens, "padding_mask": (tokens != 0).astype("int32")}
    ours = task.generate({**x, **features}, stop_token_ids=[end])["token_ids"]
    for row, theirs in zip(to_numpy(ours)[:, len(prompt) :].tolist(), found):
        assert theirs == row[: [*row, end].index(end) + 1]
    # Full answers that end by themselves, each another one.
    assert len(set(map(tuple, found))) >= 6
    assert all(answer[-1] == end for answer in found[:4])


OWN = [
    Feature(
        "task",
        FEATURES["task"],
        rank={"qa": 3, "*": 1},
        alpha=6,
        scale="sqrt",
        targets=["query", ".*_0/feedforward_output_dense"],
    ),
    Feature("language", FEATURES["language"], alpha=2, multiple=True),
    Feature("shared", always=True, targets=["value"]),
]


def adapt_by_layer(task):
    options = {"rank": {"language": {"sw": 1, "*": 2}, "shared": 2, "task": 4}}
    ranks = {"key": {"language": 4}}
    keras_flix.enable_flix(
        task, OWN, **options, layer_ranks=ranks, targets="all-linear"
    )
    return zero_beyond_ranks(randomize(task))


def test_ranks_scales_and_layers_of_their_own(tmp_path):
    task = adapt_by_layer(make_task("Qwen"))
    export_base(task, tmp_path / "base.gguf")
    export_values(task, tmp_path / "values", format="gguf")
    index = read_index(tmp_path / "values")
    assert [a["rank"] for a in index.adapters] == [3, 1, 1, 4, 4, 4, 2]
    server = Server(tmp_path / "base.gguf", files_of(index))
    for combination in (
        {"task": "qa", "language": ["en", "sw"]},
        {"task": "list", "language": {"yo": 0.5}},
        {"task": None, "language": []},
    ):
        answers = [server.answer(task, index.request(combination))]
        features = {name: [entry] for name, entry in combination.items()}
        assert_same(task, answers, 1e-4, features)
    # And of a base that is quantized: the tables are floats.
    quantized = make_task("Qwen")
    quantized.backbone.quantize("int8", filters=["query", "feedforward_.*"])
    adapt_by_layer(quantized)
    pairs = zip(task._adaptation.tables(), quantized._adaptation.tables(), strict=True)
    for ours, other in pairs:
        other.variable.assign(ours.variable)
    export_values(quantized, tmp_path / "same", format="gguf")
    for path in files_of(index):
        assert path.read_bytes() == (tmp_path / "same" / path.name).read_bytes()


# The second one with its embedding too, which a tied head shares.
WITH_EMBEDDING = [".*/self_attention/.*", ".*_dense", "token_embedding"]


@pytest.mark.parametrize(
    "family, targets", [("Qwen3", "all-linear"), ("GPT2", WITH_EMBEDDING)]
)
def test_peft_puts_values_together(family, targets, tmp_path):
    save_base(family, tmp_path / "base", "AutoModelForCausalLM")
    backbone = load_keras(family, tmp_path / "base")
    cls = getattr(keras_hub.models, f"{family}CausalLM")
    task = cls(backbone=backbone, preprocessor=None)
    ranks = {"task": 3, "language": {"sw": 1, "*": 2}}
    keras_flix.enable_flix(task, SHARED, rank=ranks, alpha=2, targets=targets)
    zero_beyond_ranks(randomize(task))
    export_values(task, tmp_path / "values", base_model="base")
    index = read_index(tmp_path / "values")
    loaded = load(tmp_path / "base", "AutoModelForCausalLM")
    names = [adapter["file"] for adapter in index.adapters]
    folder = index.directory
    model = peft.PeftModel.from_pretrained(loaded, folder / names[0], names[0])
    for name in names[1:]:
        model.load_adapter(folder / name, name)
    for i in (2, 4, 7):
        model.add_weighted_adapter(
            adapter_name=f"mixed{i}", **index.request(COMBINATIONS[i])
        )
        model.set_adapter(f"mixed{i}")
        ours = keras_outputs(task, **COMBINATIONS[i])
        np.testing.assert_allclose(torch_outputs(model), ours, atol=1e-4)
    config = read_config(folder / "language-sw")
    assert config["r"] == config["lora_alpha"] == (3 if family == "GPT2" else 1)
    assert config["base_model_name_or_path"] == "base"


def test_the_index(served):
    _, index, _ = served("Qwen")
    written = json.loads((index.directory / "index.json").read_text())
    adapters = written.pop("adapters")
    assert written == {
        "format": "keras_flix.values",
        "version": 1,
        "files": "gguf",
        "base_model": None,
        "features": [
            {"name": name, "values": values, "multiple": False}
            for name, values in FEATURES.items()
        ],
    }
    assert [(a["feature"], a["value"], a["rank"]) for a in adapters] == [
        *(("task", value, 3) for value in FEATURES["task"]),
        *(("language", v, 1 if v == "sw" else 2) for v in FEATURES["language"]),
        ("shared", "shared", 1),
    ]
    assert adapters[-1] == {
        "feature": "shared",
        "value": "shared",
        "always": True,
        "file": "shared-shared.gguf",
        "rank": 1,
        "scale": 1.0,
    }
    assert {path.name for path in index.directory.iterdir()} == {
        "index.json",
        *(adapter["file"] for adapter in adapters),
    }


def test_values_of_any_name_and_kind(tmp_path):
    backbone = make_task("GPT2").backbone
    features = [
        Feature("topic", ["a/b", "a_b", "A_B", "日本", "v1.5", "a,b:c"], multiple=True),
        Feature("year", [1999, 2000]),
    ]
    keras_flix.enable_flix(backbone, features, targets=["query"])
    export_values(randomize(backbone), tmp_path / "values", format="gguf")
    index = read_index(tmp_path / "values")
    assert [adapter["file"] for adapter in index.adapters] == [
        "topic-a_b.gguf",
        "topic-a_b-2.gguf",
        "topic-A_B-3.gguf",
        "topic-__.gguf",
        "topic-v1_5.gguf",
        "topic-a_b_c.gguf",
        "year-1999.gguf",
        "year-2000.gguf",
    ]
    request = index.request({"topic": ["A_B", "日本"], "year": 2000})
    assert [entry["id"] for entry in request["lora"]] == [2, 3, 7]


def test_what_cannot_be_exported_is_refused(tmp_path, monkeypatch):
    task = make_task("GPT2")
    with pytest.raises(ValueError, match="must have been adapted by `enable_flix`"):
        export_values(task, tmp_path / "values")
    keras_flix.enable_flix(task, FEATURES, targets=["query"])
    text = r"must be one of \['peft', 'gguf'\]. Received: format='onnx'"
    with pytest.raises(ValueError, match=text):
        export_values(task, tmp_path / "values", format="onnx")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match="pip install 'keras-flix.gguf.'"):
        export_values(task, tmp_path / "values", format="gguf")
    options = {"vocabulary_size": 9, "num_layers": 1, "num_heads": 2}
    sizes = {"hidden_dim": 8, "intermediate_dim": 8, "max_sequence_length": 8}
    bert = keras_hub.models.BertBackbone(**options, **sizes)
    keras_flix.enable_flix(bert, FEATURES)
    with pytest.raises(ValueError, match="'Qwen3Backbone'.*Received: a BertBackbone"):
        export_values(bert, tmp_path / "values", format="gguf")
    assert list(tmp_path.iterdir()) == []
