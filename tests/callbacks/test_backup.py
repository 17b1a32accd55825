"""Training that is killed goes on to the weights of an uninterrupted run."""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers.gemma import to_numpy
from helpers.places import TESTS
from helpers.training import DATA, Y, small_model, state_of

from keras_flix.callbacks import BackupAndRestore

pytestmark = pytest.mark.eager

EPOCHS, BATCHES = 4, 4

SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
from callbacks import test_backup
test_backup.call(*json.loads(sys.argv[2]))
"""


class Numbered(keras.utils.PyDataset):
    """The batches of an epoch in order, from one on."""

    def __init__(self, first=0):
        super().__init__()
        self.first = first

    def __len__(self):
        return BATCHES - self.first

    def __getitem__(self, index):
        rows = slice(3 * (self.first + index), 3 * (self.first + index) + 3)
        return {name: value[rows] for name, value in DATA.items()}, Y[rows]


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


class Interrupt(keras.callbacks.Callback):
    """Ends the process as a loss of power would, or raises, at one training step."""

    def __init__(self, step, interrupt=kill):
        super().__init__()
        self.step = step
        self.interrupt = interrupt

    def on_train_batch_begin(self, batch, logs=None):
        self.step -= 1
        if self.step < 0:
            self.interrupt()


def run_until_killed(folder, save_freq, step):
    backup = keras.callbacks.BackupAndRestore(folder, save_freq=save_freq)
    small_model().fit(
        Numbered(),
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[backup, Interrupt(step)],
    )


def uninterrupted():
    model = small_model()
    model.fit(Numbered(), epochs=EPOCHS, shuffle=False, verbose=0)
    return model


def call(name, *arguments):
    globals()[name](*arguments)


def fork_children():
    """For each line of the input, processes side by side; prints how they ended."""
    for line in sys.stdin:
        children = []
        for name, *arguments in json.loads(line):
            children.append(os.fork())
            if not children[-1]:
                try:
                    call(name, *arguments)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
        statuses = [os.waitpid(child, 0)[1] for child in children]
        print(json.dumps([*map(os.waitstatus_to_exitcode, statuses)]), flush=True)


@pytest.fixture(scope="module")
def run_apart():
    """Calls functions of this module, each in a process of its own; exit codes."""
    python = [sys.executable, "-c", SCRIPT, str(TESTS)]
    if keras.config.backend() != "torch" or not hasattr(os, "fork"):

        def start(*calls):
            processes = [subprocess.Popen([*python, json.dumps(one)]) for one in calls]
            return [process.wait() for process in processes]

        yield start
        return
    # One that imports everything, and computes nothing before it is forked.
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([*python, '["fork_children"]'], **pipes) as nursery:

        def fork(*calls):
            nursery.stdin.write(f"{json.dumps(calls)}\n")
            nursery.stdin.flush()
            return json.loads(nursery.stdout.readline())

        yield fork
        nursery.stdin.close()


def kill_training(run_apart, folder, save_freq, step):
    """Runs training in a process of its own, up to one step."""
    (code,) = run_apart(["run_until_killed", str(folder), save_freq, step])
    assert code == -signal.SIGKILL


def assert_same_weights(found, expected):
    for one, other in zip(state_of(found), state_of(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def resume(folder):
    """Another process's part: a fresh model, and the epochs that are left."""
    model = small_model()
    # Whatever the model was, the backup is what counts.
    for variable in model.trainable_variables:
        variable.assign(variable.value * 0.5)
    epochs = []
    count = keras.callbacks.LambdaCallback(on_epoch_begin=lambda n, _: epochs.append(n))
    backup = keras.callbacks.BackupAndRestore(folder)
    model.fit(
        Numbered(),
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[backup, count],
    )
    assert epochs == [2, 3]
    return model


@pytest.mark.support("State", "`BackupAndRestore` after an exception")
def test_interrupted_in_an_epoch_and_resumed_from_the_last_one(tmp_path):
    def interrupt():
        raise KeyboardInterrupt

    callbacks = [
        keras.callbacks.BackupAndRestore(tmp_path / "backup"),
        Interrupt(2 * BATCHES + 2, interrupt),
    ]
    with pytest.raises(KeyboardInterrupt):
        small_model().fit(
            Numbered(), epochs=EPOCHS, shuffle=False, verbose=0, callbacks=callbacks
        )
    assert_same_weights(resume(tmp_path / "backup"), uninterrupted())


@pytest.mark.parametrize("damage", ["shorter", "flipped"])
def test_a_damaged_backup_gives_way_to_the_one_before(tmp_path, damage):
    folder, begun = tmp_path / "backup", []

    def interrupt():
        raise KeyboardInterrupt

    def backup():
        return keras.callbacks.BackupAndRestore(folder, double_checkpoint=True)

    with pytest.raises(KeyboardInterrupt):
        small_model().fit(
            Numbered(),
            epochs=EPOCHS,
            shuffle=False,
            verbose=0,
            callbacks=[backup(), Interrupt(3 * BATCHES + 1, interrupt)],
        )
    weights = folder / "latest.weights.h5"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content if damage == "flipped" else content[:-100])
    model = small_model()
    note = keras.callbacks.LambdaCallback(on_epoch_begin=lambda n, _: begun.append(n))
    callbacks = [backup(), note]
    model.fit(Numbered(), epochs=EPOCHS, shuffle=False, verbose=0, callbacks=callbacks)
    assert begun == [2, 3]
    assert_same_weights(model, uninterrupted())


@pytest.mark.short("torch")
@pytest.mark.slow
@pytest.mark.support("State", "`BackupAndRestore` after SIGKILL")
def test_killed_in_an_epoch_and_resumed_from_the_last_one(run_apart, tmp_path):
    kill_training(run_apart, tmp_path / "backup", "epoch", 2 * BATCHES + 2)
    assert_same_weights(resume(tmp_path / "backup"), uninterrupted())


@pytest.mark.short("torch")
@pytest.mark.slow
@pytest.mark.support("State", "`BackupAndRestore(save_freq=...)` after SIGKILL")
def test_killed_and_resumed_in_the_middle_of_an_epoch(
    run_apart, tmp_path, record_property
):
    note = "Keras starts the epoch again: the data must go on from the saved batch"
    record_property("support_note", note)
    # Killed in epoch 1 after its third step; backed up after every second one.
    kill_training(run_apart, tmp_path / "backup", 2, BATCHES + 3)
    folder = tmp_path / "backup"
    metadata = json.loads((folder / "training_metadata.json").read_text())
    assert metadata == {"epoch": 1, "batch": 1}
    model = small_model(seed=3)
    model.optimizer.build(model.trainable_variables)
    model.load_weights(folder / "latest.weights.h5")
    steps = BATCHES + 2
    assert int(to_numpy(model.optimizer.iterations)) == steps
    # Keras goes on with an epoch's first batch, so its rest is fed by hand.
    rest = Numbered(first=steps % BATCHES)
    model.fit(rest, epochs=1, shuffle=False, verbose=0)
    model.fit(Numbered(), epochs=EPOCHS - 2, shuffle=False, verbose=0)
    assert_same_weights(model, uninterrupted())


# One directory of several processes. -----------------------------------------

SHARED_EPOCHS = 40


@pytest.mark.parametrize("own", [True, False])
def test_a_fit_after_one_that_went_on_trains_its_epochs(own, tmp_path):
    """Keras never forgets where a backup made it begin."""
    kind = BackupAndRestore if own else keras.callbacks.BackupAndRestore

    class Stopped(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        callbacks = [kind(tmp_path / "backup"), Stopped()]
        small_model().fit(Numbered(), epochs=4, verbose=0, callbacks=callbacks)
    model = small_model()
    callbacks = [kind(tmp_path / "backup")]
    went_on = model.fit(Numbered(), epochs=4, verbose=0, callbacks=callbacks)
    assert went_on.epoch == [3]
    before = state_of(model)
    assert model.fit(Numbered(), epochs=2, verbose=0).epoch == [0, 1]
    assert any((a != b).any() for a, b in zip(before, state_of(model)))


def test_a_folder_that_is_a_file_is_refused_before_an_epoch(tmp_path):
    (tmp_path / "backup").touch()
    model = small_model()
    before = state_of(model)
    with pytest.raises(FileExistsError):
        model.fit(
            Numbered(), verbose=0, callbacks=[BackupAndRestore(tmp_path / "backup")]
        )
    for a, b in zip(before, state_of(model)):
        np.testing.assert_array_equal(a, b)


def train_together(folder, rank, count):
    """One of `count` processes that begin at once and back up in one directory."""
    model = small_model()
    Path(folder, f"{rank}.ready").touch()
    while len(list(Path(folder).glob("*.ready"))) < count:
        time.sleep(0.001)
    fit_with_backup(model, Path(folder, "backup"))
    np.savez(Path(folder, f"{rank}.npz"), *state_of(model))


def fit_with_backup(model, folder, epochs=SHARED_EPOCHS, **options):
    backup = BackupAndRestore(folder, **options)
    x, y = {name: value[:3] for name, value in DATA.items()}, Y[:3]
    model.fit(x, y, epochs=epochs, shuffle=False, verbose=0, callbacks=[backup])
    return model


@pytest.mark.short("torch")
@pytest.mark.slow
def test_processes_share_a_directory(run_apart, tmp_path):
    calls = [["train_together", str(tmp_path), rank, 2] for rank in range(2)]
    assert run_apart(*calls) == [0, 0]
    assert not (tmp_path / "backup").exists()
    expected = state_of(fit_with_backup(small_model(), tmp_path / "alone"))
    for rank in range(2):
        found = np.load(tmp_path / f"{rank}.npz")
        for one, other in zip(found.values(), expected, strict=True):
            np.testing.assert_array_equal(one, other)


class Other(keras.callbacks.Callback):
    """Does to a shared directory what another process does, at the end of an epoch."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def on_epoch_end(self, epoch, logs=None):
        self.act()


@pytest.mark.short("torch")
def test_what_another_process_writes_stays(tmp_path):
    folder = tmp_path / "backup"
    folder.mkdir()
    left_behind = folder / ".0a1b2c3d.tmp.epoch-7.weights.h5"
    left_behind.touch()
    written = folder / ".4e5f6a7b.tmp.epoch-1.weights.h5"
    model = small_model()
    model.fit(
        DATA,
        Y,
        epochs=2,
        verbose=0,
        callbacks=[Other(written.touch), BackupAndRestore(folder)],
    )
    assert [path.name for path in folder.iterdir()] == [written.name]


@pytest.mark.short("torch")
@pytest.mark.parametrize("error", [None, OSError("can't retrieve stat info for file")])
def test_a_backup_is_written_again_where_its_folder_was_removed(
    tmp_path, monkeypatch, error
):
    folder, model = tmp_path / "backup", small_model()
    save, tries = model.save_weights, []

    def save_weights(path):
        save(path)
        tries.append(path)
        if len(tries) < 3:
            path.unlink()
            folder.rmdir()
            # HDF5's, where the file is removed while it is being opened.
            if error:
                raise error

    monkeypatch.setattr(model, "save_weights", save_weights)
    fit_with_backup(model, folder, epochs=1, delete_checkpoint=False)
    assert [path.name for path in folder.iterdir()] == ["epoch-1.weights.h5"]
    assert len(tries) == 3
    resumed = small_model(seed=3)
    fit_with_backup(resumed, folder, epochs=1)
    assert_same_weights(resumed, model)
    assert not folder.exists()


@pytest.mark.short("torch")
def test_a_folder_is_removed_while_it_is_made(tmp_path, monkeypatch):
    folder, model = tmp_path / "backup", small_model()
    mkdir, tries = Path.mkdir, []

    def removed(path, *arguments, **options):
        tries.append(path)
        if len(tries) == 1:
            # As `mkdir(exist_ok=True)` does where the folder was there, and is not.
            raise FileExistsError(path)
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", removed)
    fit_with_backup(model, folder, epochs=1, delete_checkpoint=False)
    assert [path.name for path in folder.iterdir()] == ["epoch-1.weights.h5"]
    assert tries == [folder, folder]


@pytest.mark.short("torch")
def test_an_error_that_stays_is_raised(tmp_path, monkeypatch):
    model = small_model()

    def save_weights(path):
        raise OSError("No space left on device")

    monkeypatch.setattr(model, "save_weights", save_weights)
    with pytest.raises(OSError, match="No space left"):
        fit_with_backup(model, tmp_path / "backup", epochs=1)


@pytest.mark.short("torch")
def test_a_newer_backup_of_another_process_stays(tmp_path):
    folder = tmp_path / "backup"
    fit_with_backup(small_model(), folder, epochs=3, delete_checkpoint=False)
    newest = (folder / "epoch-3.weights.h5").read_bytes()
    BackupAndRestore(folder)._write(2)
    (path,) = folder.iterdir()
    assert (path.name, path.read_bytes()) == ("epoch-3.weights.h5", newest)
