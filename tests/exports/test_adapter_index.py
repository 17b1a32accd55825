"""Features as requests: what each server is asked for, and what is refused before."""

from __future__ import annotations

import itertools
import json

import pytest

from keras_flix.serving import AdapterIndex, read_index

FEATURES = {"task": ["qa", "parse"], "language": ["en", "sw"]}
ADAPTERS = [
    {"feature": feature, "value": value, "always": False}
    for feature, values in FEATURES.items()
    for value in values
]
ALWAYS = {"feature": "shared", "value": "shared", "always": True}


def write(directory, files, adapters, features=FEATURES, **more):
    index = {
        "format": "keras_flix.values",
        "version": 1,
        "files": files,
        "features": [
            {"name": name, "values": values, "multiple": name == "topic"}
            for name, values in (
                FEATURES if features is None else dict(features)
            ).items()
        ],
        "adapters": [
            {"file": f"{i}.{files}", "rank": 4, "scale": 1.0, **adapter}
            for i, adapter in enumerate(adapters)
        ],
    }
    (directory / "index.json").write_text(json.dumps({**index, **more}))
    return read_index(directory)


def write_loras(directory, combinations):
    adapters = [
        {"features": c, "directory": f"lora{i}"} for i, c in enumerate(combinations)
    ]
    text = {"format": "keras_flix.loras", "max_lora_rank": 8}
    return write(directory, "peft", adapters, **text)


def scales(index, **features):
    return [(e["id"], e["scale"]) for e in index.request(features)["lora"]]


def test_a_request_to_llama_cpp(tmp_path):
    index = write(tmp_path, "gguf", ADAPTERS)
    assert isinstance(index, AdapterIndex) and index.server == "llama.cpp"
    assert index.request({"task": "parse", "language": "en"}) == {
        "lora": [{"id": 1, "scale": 1.0}, {"id": 2, "scale": 1.0}],
        "cache_prompt": False,
    }
    assert scales(index, task=None, language="sw") == [(3, 1.0)]
    blend = {"sw": 0.75, "en": -0.5}
    assert scales(index, task="qa", language=blend) == [(0, 1.0), (2, -0.5), (3, 0.75)]
    # An empty list would be read as none.
    assert scales(index, task=None, language=None) == [(0, 0.0)]
    assert json.loads(json.dumps(index.request({"task": None, "language": blend})))


def test_what_is_always_active_is_in_every_request(tmp_path):
    index = write(tmp_path, "gguf", [*ADAPTERS, ALWAYS])
    assert scales(index, task="qa", language=None) == [(0, 1.0), (4, 1.0)]
    assert scales(index, task=None, language=None) == [(4, 1.0)]


def test_several_values_and_integers(tmp_path):
    features = {"topic": ["a", "b", "c"], "year": [1999, 2000]}
    adapters = [
        {"feature": feature, "value": value, "always": False}
        for feature, values in features.items()
        for value in values
    ]
    index = write(tmp_path, "gguf", adapters, features)
    assert scales(index, topic=["c", "a"], year=2000) == [(0, 1.0), (2, 1.0), (4, 1.0)]
    assert scales(index, topic=[], year=None) == [(0, 0.0)]
    assert scales(index, topic={"b": 0.5}, year=1999) == [(1, 0.5), (3, 1.0)]


def test_a_request_to_peft(tmp_path):
    index = write(tmp_path, "peft", ADAPTERS)
    assert index.request({"task": "qa", "language": {"sw": 0.25}}) == {
        "adapters": ["0.peft", "3.peft"],
        "weights": [1.0, 0.25],
        "combination_type": "cat",
    }
    with pytest.raises(ValueError, match="PEFT directories of values, which no server"):
        index.server_arguments()


def test_a_request_to_vllm(tmp_path):
    combinations = [
        {"task": "qa", "language": "sw"},
        {"task": None, "language": "sw"},
        {"task": "qa", "language": {"en": 0.5, "sw": 0.25}},
    ]
    index = write_loras(tmp_path, combinations)
    assert index.server == "vllm"
    for i, combination in enumerate(combinations):
        assert index.request(combination) == {"model": f"lora{i}"}
    blend = {"sw": 0.25, "en": 0.5}
    assert index.request({"task": {"qa": 1.0}, "language": blend})["model"] == "lora2"
    with pytest.raises(ValueError) as error:
        index.request({"task": "parse", "language": "sw"})
    text = str(error.value)
    assert text.startswith("vLLM serves the combinations that were exported: {'task'")
    assert "Received: {'task': 'parse', 'language': 'sw'}. List it in" in text


def test_how_servers_are_started(tmp_path):
    index = write(tmp_path, "gguf", ADAPTERS)
    files = ",".join(f"{tmp_path}/{i}.gguf:0" for i in range(4))
    arguments = ["--lora-scaled", files, "--cache-ram", "0"]
    assert index.server_arguments() == arguments
    every = [dict(zip(FEATURES, c)) for c in itertools.product(*FEATURES.values())]
    index = write_loras(tmp_path, every)
    assert index.server_arguments() == [
        *("--enable-lora", "--max-lora-rank", "8", "--lora-modules"),
        *(f"lora{i}={tmp_path}/lora{i}" for i in range(4)),
    ]
    text = json.loads((tmp_path / "index.json").read_text())
    text["not_for_vllm"] = "it has no LoRAs for a GPT2CausalLM"
    (tmp_path / "index.json").write_text(json.dumps(text))
    index = read_index(tmp_path)
    # PEFT loads them by the same names.
    assert index.request(every[1]) == {"model": "lora1"}
    with pytest.raises(ValueError, match="has no LoRAs for a GPT2CausalLM. Load the"):
        index.server_arguments()
    (tmp_path / "a,b").mkdir()
    index = write(tmp_path / "a,b", "gguf", ADAPTERS)
    with pytest.raises(
        ValueError, match="paths without ',' and ':'. Received: '.*a,b'"
    ):
        index.server_arguments()


@pytest.mark.parametrize("files", ["gguf", "peft"])
@pytest.mark.parametrize(
    "features, text",
    [
        (
            {"task": "qa", "language": "sv"},
            "Received: language='sv'. Known values: 'en', 'sw'",
        ),
        ({"task": "qa"}, "Every feature must have an entry.*no entry 'language'"),
        ({"task": "qa", "language": "sw", "tone": "kind"}, "Received: 'tone'"),
        ({"task": ["qa", "parse"], "language": "sw"}, "task"),
        ("qa", "must be a dict from the name of a feature"),
    ],
)
def test_what_the_model_does_not_know_reaches_no_server(
    tmp_path, files, features, text
):
    index = write(tmp_path, files, ADAPTERS)
    with pytest.raises(ValueError, match=text):
        index.request(features)


def test_of_what_is_always_on_alone(tmp_path):
    more = {"file": "shared", "feature": "shared"}
    index = write(tmp_path, "peft", [{**ALWAYS, **more}], features={})
    assert index.request({}) == {
        "adapters": ["shared"],
        "weights": [1.0],
        "combination_type": "cat",
    }


def test_what_is_no_index(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="must hold 'index.json'.*Write it with"
    ):
        read_index(tmp_path)
    path = tmp_path / "index.json"
    for text in ("", "[]", "{}", '{"format": "keras_flix.values", "version": 1}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="must be what `export_values` or"):
            read_index(path)
    with pytest.raises(ValueError, match="version 1. Received: .* of version 2"):
        write(tmp_path, "gguf", ADAPTERS, version=2)
    with pytest.raises(ValueError, match="must be what `export_values`.*KeyError"):
        write(tmp_path, "gguf", [{**ADAPTERS[0], "file": "../other.gguf"}])
    incomplete = [{k: v for k, v in ADAPTERS[0].items() if k != "always"}]
    with pytest.raises(ValueError, match="must be what `export_values`.*'always'"):
        write(tmp_path, "gguf", incomplete)
