"""Options and fixtures of all tests."""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
BACKEND = os.environ.setdefault("KERAS_BACKEND", "jax")
# Tests compile often and compute little.
XLA_FLAGS = (
    "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)
if "PYTEST_XDIST_WORKER" in os.environ:
    # A core each.
    for name in ("OMP_NUM", "TF_NUM_INTRAOP", "TF_NUM_INTEROP"):
        os.environ.setdefault(f"{name}_THREADS", "1")
if BACKEND == "jax" and importlib.metadata.version("jaxlib").startswith("0.10."):
    # A third less to compile. XLA ends the process over a flag it does not know.
    XLA_FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", XLA_FLAGS)

# Not Keras, which takes seconds: a process that hands out tests to others needs none.
import pytest
from helpers.places import TESTS
from tools import short_form
from tools.support import SupportReport
from tools.versions import under_test


def pytest_addoption(parser):
    parser.addoption(
        "--full",
        action="store_true",
        help="the whole matrix of backends, families and options on every backend",
    )
    parser.addoption("--support-report", help="where to write what is supported")
    parser.addoption("--load", type=int, default=1, help="how many times the cases")
    parser.addoption("--fault-report", help="where to write what faults were survived")


def pytest_report_header():
    return f"under test: {under_test()}"


def pytest_configure(config):
    path = config.getoption("--support-report")
    config.support = SupportReport(path, BACKEND) if path else None
    config.faults = {}
    if BACKEND == "jax" and not config.getoption("--full"):
        _keep_what_is_compiled(config)


def _keep_what_is_compiled(config):
    """For this run and the processes that it starts: many tests compile the same."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = tempfile.TemporaryDirectory(prefix="compiled")
    config.add_cleanup(folder.cleanup)
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": folder.name,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """All cores for whole folders; a named file is run without starting others."""
    return 0 if short_form.names_files(config.args) else None


def pytest_collection_modifyitems(config, items):
    if config.getoption("--full") or short_form.names_files(config.args):
        return
    left_out = short_form.left_out(items, BACKEND, TESTS)
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if item.config.support is not None:
        item.config.support.add(item, report)
    return report


def pytest_sessionfinish(session):
    config = session.config
    if hasattr(config, "workeroutput"):
        # One of several processes: the one that started it writes.
        config.workeroutput["faults"] = json.dumps(config.faults)
        if config.support is not None:
            config.workeroutput["support"] = json.dumps(config.support.results)
        return
    if config.support is not None:
        config.support.write()
    path = config.getoption("--fault-report")
    if path:
        Path(path).write_text(json.dumps(config.faults, indent=2) + "\n")


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Takes what a process has found, unless it died."""
    found = getattr(node, "workeroutput", {})
    node.config.faults |= json.loads(found.get("faults", "{}"))
    if node.config.support is not None:
        node.config.support.results += json.loads(found.get("support", "[]"))


@pytest.fixture(scope="session")
def spm_proto() -> bytes:
    from helpers.gemma import train_tokenizer

    return train_tokenizer()


@pytest.fixture(scope="module", autouse=True)
def _old_objects_stay():
    """Nobody need look for garbage again among what other modules have left.

    Keras does for every kernel that it quantizes, which takes half a second where all
    tests and three backends are in memory.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed():
    import keras

    keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True)
def _eager(request):
    """Tests marked `eager` trace nothing on TensorFlow, where that takes longest."""
    full = request.config.getoption("--full")
    marker = request.node.get_closest_marker("eager")
    wanted = marker is not None and marker.args != (False,)
    if BACKEND != "tensorflow" or full or not wanted:
        yield
        return
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


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


@pytest.fixture(scope="session")
def make_gemma(spm_proto):
    """Builds a small random `GemmaCausalLM`; every call gives the same weights."""
    import keras
    import keras_hub
    from helpers.gemma import make_backbone

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
