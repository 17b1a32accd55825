"""Options and fixtures of all tests."""

from __future__ import annotations

import importlib.metadata
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
import pytest
from helpers.gemma import make_backbone, train_tokenizer
from tools.support import SupportReport


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
    """Keeps what a test of faults has counted, for `benchmarks.robustness.faults`."""

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
