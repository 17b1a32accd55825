"""One LoRA per value, put together by the servers that people run."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
from helpers.gemma import FEATURES, randomize, to_numpy
from helpers.llama_cpp import (
    OPTIONS,
    PROMPT,
    Server,
    assert_same,
    log_probabilities,
    make_task,
    prompt_tokens,
)

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
    ("Gemma", "Gemma2", "Gemma3", "GPT2"), 5e-3
)


def zero_beyond_ranks(model):
    """As training leaves the tables of values of a lower rank than others."""
    for table in model._adaptation.tables():
        feature = model._adaptation.schema[table.feature]
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
        files = [folder / "values" / adapter["file"] for adapter in index.adapters]
        return task, index, Server(folder / "base.gguf", files)

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
    assert differences[~np.eye(len(ours), dtype=bool)].min() > 20 * TOLERANCE[family]
    for i in (2, 7):
        merged = merge_features(task, COMBINATIONS[i])
        plain = log_probabilities(merged, [prompt_tokens(task)])[0, -1]
        np.testing.assert_allclose(plain, ours[i], atol=1e-4)


@pytest.mark.parametrize("family", OPTIONS)
def test_the_server_reads_prompts_as_the_model_does(family, served):
    task, _, server = served(family)
    found = server.post("tokenize", content=PROMPT, add_special=True)["tokens"]
    assert found == prompt_tokens(task)
