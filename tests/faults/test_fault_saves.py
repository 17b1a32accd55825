"""Saves are atomic: stopped anywhere, they leave the old file whole."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import keras
import keras_hub
import numpy as np
import pytest
from helpers.gemma import FEATURES, randomize, to_numpy
from helpers.models import make_mlp

import keras_flix
from keras_flix._utils.atomic_files import whole_file, write_whole

LEAN = """
import importlib, json, os, resource, signal, sys, types
from pathlib import Path

# The modules that write, without the library: forks of a small process are quick.
root = Path(sys.argv[1])
for name in ("keras_flix", "keras_flix._utils"):
    package = sys.modules[name] = types.ModuleType(name)
    package.__path__ = [str(root.joinpath(*name.split(".")))]
directories = importlib.import_module("keras_flix._utils.atomic_directories")
whole_files = importlib.import_module("keras_flix._utils.atomic_files")
folder, step = Path(sys.argv[2]), int(sys.argv[3])
OLD, NEW = b"old" * 300, bytes(range(256)) * 8
EVENTS = ("open", "os.", "shutil.")
path, made = folder / "file", folder / "made"


def bad():
    path.write_bytes(NEW)


def file():
    whole_files.write_whole(path, NEW)


def directory():
    with directories.new_directory(made) as temporary:
        (temporary / "a").write_bytes(NEW)
        (temporary / "sub").mkdir()
        (temporary / "sub" / "b").write_bytes(NEW * 2)


def contents():
    if not made.exists():
        return None
    return {p.name: p.read_bytes() for p in made.rglob("*") if p.is_file()}


def killed(save, arrange):
    pid = os.fork()
    if pid == 0:
        arrange()
        save()
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def at_byte(n):
    def arrange():
        # The kernel writes up to there, and then ends the process.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n, n))

    return arrange


def at_step(n):
    def arrange():
        seen = [0]

        def hook(event, _):
            if event.startswith(EVENTS):
                seen[0] += 1
                if seen[0] == n + 1:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)

    return arrange


counts = {"bytes": 0, "steps": 0, "lost_by_a_plain_write": 0}
WHOLE = {"a": NEW, "b": NEW * 2}
# Every byte of the ends, and of what is between every `step`th.
places = sorted({*range(0, len(NEW), step), *range(9), *range(len(NEW) - 9, len(NEW))})
for n in places:
    path.write_bytes(OLD)
    assert killed(file, at_byte(n)) == signal.SIGXFSZ
    assert path.read_bytes() == OLD
    assert killed(directory, at_byte(n)) == signal.SIGXFSZ and contents() is None
    assert killed(bad, at_byte(n)) == signal.SIGXFSZ
    counts["lost_by_a_plain_write"] += path.read_bytes() != OLD
    counts["bytes"] += 2
for save in (file, directory):
    path.write_bytes(OLD)
    for n in range(1000):
        done = not killed(save, at_step(n))
        assert path.read_bytes() in (OLD, NEW) and contents() in (None, WHOLE)
        if done:
            break
        counts["steps"] += 1
        # Those that were killed after the last step have made theirs.
        for place in made.rglob("*"):
            place.is_file() and place.unlink()
        for place in (made / "sub", made):
            place.exists() and place.rmdir()
    assert done and n >= 3
    assert (path.read_bytes() if save is file else contents()) in (NEW, WHOLE)
counts["left_behind"] = sum(p.name.startswith(".") for p in folder.iterdir())
print(json.dumps(counts))
"""


def test_files_and_directories_survive_kills_at_every_byte_and_step(
    tmp_path, load, record_fault
):
    root = Path(keras_flix.__file__).parents[1]
    arguments = [str(root), str(tmp_path), str(max(1, 64 // load))]
    output = subprocess.run(
        [sys.executable, "-c", LEAN, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    counts = json.loads(output)
    # The trap: a file that is opened and written to is lost at each of them.
    assert counts["lost_by_a_plain_write"] == counts["bytes"] // 2 > 0
    # What killed processes leave has other names, and was in nobody's way.
    assert counts["left_behind"] > 0
    record_fault("saves: killed at a byte or a step", **counts, files_lost=0)


# The savers themselves, on a model. -------------------------------------------


def adapted(seed=0):
    model = make_mlp()
    keras_flix.enable_flix(model, FEATURES, rank=2, targets="all-linear")
    return randomize(model, seed=seed)


def values(model):
    return [to_numpy(v).tobytes() for v in model.variables]


def load_adapters(path):
    return keras_flix.load_adapters(adapted(seed=9), path)


def load_weights(path):
    model = adapted(seed=9)
    model.load_weights(path)
    return model


SAVERS = {
    "one.flix.safetensors": (keras_flix.save_adapters, load_adapters),
    "one.weights.h5": (lambda model, path: model.save_weights(path), load_weights),
    "one.keras": (lambda model, path: model.save(path), keras.models.load_model),
}


@pytest.fixture(params=SAVERS)
def saver(request, tmp_path):
    return tmp_path / request.param, *SAVERS[request.param]


class FullDisk:
    """In the block, the disk is full after so many bytes of a file."""

    def __init__(self, size):
        self.size = size

    def __enter__(self):
        self.limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        # Python ignores the signal, so that writing raises.
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.limits[1]))

    def __exit__(self, *args):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limits)


def places(size, count, seed=0):
    """Sizes at which to stop: the ends, and others at random."""
    some = np.random.default_rng(seed).integers(size, size=count)
    return sorted({0, 1, 8, size - 1, *map(int, some)})


def test_a_full_disk_leaves_the_old_file(saver, load, record_fault):
    path, save, read = saver
    old, new = adapted(seed=1), adapted(seed=2)
    save(old, path)
    before = path.read_bytes()
    sizes = places(len(before), 4 * load)
    for size in sizes:
        with pytest.raises((OSError, RuntimeError)), FullDisk(size):
            save(new, path)
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == [path.name]
    assert values(read(path)) == values(old)
    save(new, path)
    assert values(read(path)) == values(new)
    record_fault(f"saves: full disk, {path.name}", full_disks=len(sizes), files_lost=0)


def test_a_killed_save_leaves_the_old_file(saver, load, record_fault):
    path, save, read = saver
    old, new = adapted(seed=1), adapted(seed=2)
    save(old, path)
    before = path.read_bytes()
    sizes = places(len(before), 4 * load, seed=1) if load > 1 else [len(before) // 2]
    for size in sizes:
        pid = os.fork()
        if pid == 0:
            # Ends it if the copy of the process hangs.
            signal.alarm(60)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            try:
                save(new, path)
            finally:
                os._exit(1)
        status = os.waitpid(pid, 0)[1]
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXFSZ, status
        assert path.read_bytes() == before
    assert values(read(path)) == values(old)
    save(new, path)
    assert values(read(path)) == values(new)
    record_fault(f"saves: killed, {path.name}", kills=len(sizes), files_lost=0)


def test_saves_of_several_threads_are_whole(tmp_path):
    path = tmp_path / "shared"
    contents = [bytes([i]) * 200_000 for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda data: write_whole(path, data), contents * 4))
    assert path.read_bytes() in contents
    assert os.listdir(tmp_path) == ["shared"]


def test_a_link_stays_and_what_it_leads_to_is_replaced(saver):
    path, save, read = saver
    folder = path.parent / "elsewhere"
    folder.mkdir()
    target = folder / path.name
    path.symlink_to(target)
    for seed in (1, 2):
        save(adapted(seed=seed), path)
        assert path.is_symlink() and not target.is_symlink()
        assert values(read(target)) == values(adapted(seed=seed))
    assert os.listdir(folder) == [path.name]


def test_a_block_that_raises_leaves_nothing(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as temporary:
        temporary.write_text("new")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["one.weights.h5", "one.keras"])
@pytest.mark.parametrize(("answer", "seed"), [("n", 1), ("y", 2)])
def test_keras_asks_before_it_replaces_a_file(
    tmp_path, monkeypatch, name, answer, seed
):
    path, (save, read) = tmp_path / name, SAVERS[name]
    save(adapted(seed=1), path)
    monkeypatch.setattr("builtins.input", lambda _: answer)
    model = adapted(seed=2)
    method = model.save if path.suffix == ".keras" else model.save_weights
    method(path, overwrite=False)
    assert values(read(path)) == values(adapted(seed=seed))


@pytest.mark.parametrize("name", ["a.h5", "a.txt", "none/a.weights.h5"])
def test_keras_refuses_other_places_by_their_own_names(tmp_path, name):
    with pytest.raises((ValueError, OSError), match=name):
        adapted().save_weights(tmp_path / name)
    assert os.listdir(tmp_path) == []


def test_weights_in_several_files_are_as_keras_writes_them(tmp_path):
    path = tmp_path / "model.weights.json"
    model = adapted(seed=1)
    model.save_weights(path, max_shard_size=1)
    assert values(load_weights(path)) == values(model)
    names = [path.name, "model_00000.weights.h5"]
    assert sorted(os.listdir(tmp_path)) == sorted(names)


def test_a_weights_file_with_its_digest_is_hdf5_and_loads_without(tmp_path):
    path = tmp_path / "model.weights.h5"
    model = adapted(seed=1)
    model.save_weights(path)
    data = path.read_bytes()
    digest = len(b"keras_flix digest ") + 32
    assert data[-digest:].startswith(b"keras_flix digest ")
    with h5py.File(path) as file:
        assert "layers" in file
    # As Keras writes it.
    path.write_bytes(data[:-digest])
    assert values(load_weights(path)) == values(model)


def test_exports_of_loras_are_there_as_a_whole(tmp_path, load, record_fault):
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=30,
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=24,
        max_sequence_length=8,
    )
    model = keras_flix.enable_flix(backbone, FEATURES, rank=2)
    combinations = [{"task": "qa", "language": x} for x in FEATURES["language"]]
    good, path = tmp_path / "good", tmp_path / "loras"
    keras_flix.export_loras(model, combinations, good)
    written = {p.relative_to(good): p.read_bytes() for p in good.rglob("*.*")}
    sizes = places(max(map(len, written.values())), 4 * load)
    for size in sizes:
        with pytest.raises(Exception) as error, FullDisk(size):
            keras_flix.export_loras(model, combinations, path)
        assert str(errno.EFBIG) in str(error.value) or "large" in str(error.value)
        assert os.listdir(tmp_path) == ["good"]
    keras_flix.export_loras(model, combinations, path)
    assert {p.relative_to(path): p.read_bytes() for p in path.rglob("*.*")} == written
    record_fault("saves: full disk, export_loras", full_disks=len(sizes))
