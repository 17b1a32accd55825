"""Small real models that the tests share."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "jax")
# Tests compile often and compute little.
XLA_FLAGS = (
    "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)
on_jax = os.environ["KERAS_BACKEND"] == "jax"
if on_jax and importlib.metadata.version("jaxlib").startswith("0.10."):
    # A third less to compile. XLA ends the process over a flag it does not know.
    XLA_FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", XLA_FLAGS)

import keras
import keras_hub
import numpy as np
import pytest
import sentencepiece
from support import SupportReport

FEATURES = {"task": ["qa", "parse", "list"], "language": ["en", "sw", "yo"]}


def pytest_addoption(parser):
    parser.addoption("--support-report", help="where to write what is supported")
    parser.addoption("--load", type=int, default=1, help="how many times the cases")
    parser.addoption("--fault-report", help="where to write what faults were survived")


def pytest_configure(config):
    path = config.getoption("--support-report")
    config.support = SupportReport(path, keras.config.backend()) if path else None
    config.faults = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if item.config.support is not None:
        item.config.support.add(item, report)
    return report


def pytest_sessionfinish(session):
    if session.config.support is not None:
        session.config.support.write()
    path = session.config.getoption("--fault-report")
    if path:
        Path(path).write_text(json.dumps(session.config.faults, indent=2) + "\n")


def train_tokenizer() -> bytes:
    """A SentencePiece model of a few words, with Gemma's special tokens."""
    proto = io.BytesIO()
    words = ["the quick brown fox", "jumps over", "the lazy dog", "qa en sw yo"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 20),
        model_writer=proto,
        vocab_size=300,
        model_type="unigram",
        byte_fallback=True,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        minloglevel=2,
    )
    return proto.getvalue()


@pytest.fixture(scope="session")
def spm_proto() -> bytes:
    return train_tokenizer()


@pytest.fixture(autouse=True)
def _seed():
    keras.utils.set_random_seed(0)


@pytest.fixture
def load(request) -> int:
    """By how much a test multiplies its cases; 1 in the daily run and in CI."""
    return request.config.getoption("--load")


@pytest.fixture
def record_fault(request):
    """Keeps what a test of faults has counted, for `python -m benchmarks.faults`."""

    def record(name, **facts):
        request.config.faults[name] = {"test": request.node.nodeid, **facts}

    return record


@pytest.fixture
def make_gemma(spm_proto):
    """Builds a small random `GemmaCausalLM`; every call gives the same weights."""

    def make(preprocessor=True, dtype="float32", seed=0, **kwargs):
        keras.utils.set_random_seed(seed)
        tokenizer = keras_hub.models.GemmaTokenizer(proto=spm_proto)
        backbone = make_backbone(tokenizer.vocabulary_size(), dtype, **kwargs)
        return keras_hub.models.GemmaCausalLM(
            backbone=backbone,
            preprocessor=keras_hub.models.GemmaCausalLMPreprocessor(
                tokenizer, sequence_length=24
            )
            if preprocessor
            else None,
        )

    return make


def make_backbone(vocabulary_size=40, dtype="float32", **kwargs):
    """A Gemma with grouped attention whose heads * head_dim is not hidden_dim."""
    options = {
        "num_layers": 2,
        "num_query_heads": 4,
        "num_key_value_heads": 2,
        "hidden_dim": 16,
        "intermediate_dim": 32,
        "head_dim": 6,
        **kwargs,
    }
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=vocabulary_size, dtype=dtype, **options
    )
    # The stock initial embeddings are large next to an adapter's effect.
    return backbone


def randomize(model, scale=0.3, seed=0):
    """Gives every adapter table random numbers, which tells values apart."""
    generator = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(generator.normal(size=variable.shape) * scale)
    return model


def to_numpy(x):
    return keras.ops.convert_to_numpy(x)
