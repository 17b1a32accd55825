"""Models split across processes: what they write is what one process would write.

The two processes run once, in `on_devices/two_processes.py`; what they are compared
with runs here, on one device.
"""

import importlib
import json
import os
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers.places import ROOT, TESTS

import keras_flix
from keras_flix.files import read_adapters

ON_JAX = keras.config.backend() == "jax"
NEXT = hasattr(keras.Model, "_initialize_ddp")
"""Whether this is Keras 3.16, whose `fit` trains in several processes of torch."""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not ON_JAX and not (keras.config.backend() == "torch" and NEXT),
        reason="`fit` in several processes is JAX's, and from Keras 3.16 on torch's.",
    ),
]
splits_models = pytest.mark.skipif(
    not ON_JAX, reason="Only JAX splits a model across processes."
)
FOLDER = TESTS / "models/adapted/on_devices"
DEVICES = "--xla_force_host_platform_device_count=4"
SECONDS = 400
"""After which processes that wait for each other are ended."""


@pytest.fixture(scope="module")
def alone():
    """The script as a module, whose functions run here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        yield importlib.import_module("two_processes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the two processes wrote."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = str(unused.getsockname()[1])
    command = [sys.executable, str(FOLDER / "two_processes.py"), str(folder), port]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(TESTS)]),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}",
        "OMP_NUM_THREADS": "1",
    }
    logs = [open(folder / f"{rank}.log", "w+") for rank in range(2)]
    processes = [
        subprocess.Popen([*command, str(rank)], env=environment, stderr=log, stdout=log)
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [process.wait(SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for log in logs:
        log.seek(0)
        assert codes == [0, 0], log.read()[-4000:]
        log.close()
    return folder


@pytest.fixture(scope="module")
def found(folder):
    """What each process found."""
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def assert_same_file(path, model, exactly=True):
    """The file is the one that a model would be saved in."""
    model_path = path.with_name(f"expected-{path.name}")
    keras_flix.save_adapters(model, model_path)
    if exactly:
        assert path.read_bytes() == model_path.read_bytes()
    one, other = read_adapters(path), read_adapters(model_path)
    assert one.tables.keys() == other.tables.keys()
    for name, table in other.tables.items():
        np.testing.assert_allclose(one.tables[name], table, rtol=0, atol=1e-5)


def test_data_parallel_trains_as_one_process(folder, found, alone):
    losses, model = alone.train_and_grow()
    for rank, one in enumerate(found):
        np.testing.assert_allclose(one["data"]["losses"], losses, rtol=1e-5)
        # Saved by each process, without the other.
        assert_same_file(folder / f"data-{rank}.flix.safetensors", model, exactly=False)
    # Both backed up there, and both deleted it.
    assert not (folder / "backup").exists()


def test_data_parallel_trains_lazily_as_one_process(folder, found, alone):
    losses, model = alone.train_lazily()
    for one in found:
        np.testing.assert_allclose(one["data"]["lazy"], losses, rtol=1e-5)
    assert_same_file(folder / "lazy.flix.safetensors", model, exactly=False)


@pytest.mark.skipif(ON_JAX, reason="There, it is to be adapted in the same scope.")
def test_a_whole_model_trains_under_model_parallel_as_one_process(found, alone):
    losses = alone.train_dense(alone.make_dense(keras.optimizers.SGD(0.1)))
    for one in found:
        np.testing.assert_allclose(one["whole"], losses, rtol=1e-5)


@pytest.mark.skipif(ON_JAX, reason="JAX carries a `ModelParallel` out.")
def test_model_parallel_is_refused(found):
    message = (
        "ValueError: A distribution of `keras.distribution` must be one that adapters "
        "follow: JAX's, and from Keras 3.16 on PyTorch's `DataParallel` with one "
        "process per device. Received: ModelParallel over 2 devices on the 'torch' "
        "backend, in 2 process(es) that train together. Switch to JAX, or use "
        "`keras.distribution.set_distribution(None)` and the backend's own "
        "`torch.nn.parallel.DistributedDataParallel` or "
        "`tf.distribute.MirroredStrategy`."
    )
    assert [one["refused"] for one in found] == [message] * 2


@splits_models
def test_model_parallel_trains_as_one_process(folder, found, alone):
    model = alone.make_adapted()
    losses = alone.train_adapted(model)
    for one in found:
        np.testing.assert_allclose(one["model"]["losses"], losses, rtol=1e-5)
    assert_same_file(folder / "trained.flix.safetensors", model, exactly=False)


@splits_models
def test_split_models_are_saved_and_loaded_as_whole_ones(folder, found, alone):
    model = alone.make_adapted()
    digest = keras_flix.base_fingerprint(model).digest
    assert [one["model"]["fingerprint"] for one in found] == [digest] * 2
    for name in ("model", "adapted", "plain"):
        assert_same_file(folder / f"{name}.flix.safetensors", model)
    norms = keras_flix.analysis.update_norms(model).norms["task"]
    for one in found:
        np.testing.assert_allclose(one["model"]["norms"], norms, rtol=1e-6)


@splits_models
def test_split_models_are_exported_as_whole_ones(folder, alone, tmp_path):
    model = alone.make_adapted()
    keras_flix.export_lora(model, alone.COMBINATION, tmp_path / "lora")
    keras_flix.export_loras(model, None, tmp_path / "loras")
    paths = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(paths) == 2 + 2 * 6 + 1
    for path in paths:
        written = folder / path.relative_to(tmp_path)
        assert written.read_bytes() == path.read_bytes(), path.name
    # Nothing else, of the process that did not write.
    others = [p for p in (folder / "loras").rglob("*") if p.is_file()]
    assert len(others) == 2 * 6 + 1
    assert not list(folder.glob(".*"))


@splits_models
def test_split_models_grow_as_whole_ones(folder, found, alone):
    model = alone.make_adapted()
    alone.build_optimizer(model)
    alone.change(model)
    assert_same_file(folder / "changed.flix.safetensors", model, exactly=False)
    slots = [keras.ops.convert_to_numpy(v) for v in model.optimizer.variables]
    for one in found:
        for slot, expected in zip(one["model"]["slots"], slots, strict=True):
            np.testing.assert_array_equal(slot, expected)
    keras_flix.update_from(
        model, folder / "model.flix.safetensors", {"task": ["qa", "parse"]}
    )
    assert_same_file(folder / "updated.flix.safetensors", model, exactly=False)


@splits_models
def test_what_the_first_process_cannot_write_fails_in_all(folder, found):
    first, second = (one["model"] for one in found)
    assert first["no folder"].startswith(
        "MissingFileError: `path` must be in an existing folder. Received: path="
    )
    assert first["full"].startswith("ValueError: `directory` must be new or empty")
    unwritten = (
        "RuntimeError: The first process must be able to write the files of a model "
        "that is split across processes. Received: an error there. Look at what it "
        "raised."
    )
    assert [second["no folder"], second["full"]] == [unwritten] * 2
    pushed = (
        "ValueError: What is pushed to a hub must be in one process. Received: a model "
        "that is split across processes. `save_adapters` on all of them, and push the "
        "file from one."
    )
    assert [first["hub"], second["hub"]] == [pushed] * 2
