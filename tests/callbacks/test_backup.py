"""Training that is killed goes on to the weights of an uninterrupted run."""

import json
import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers.gemma import to_numpy
from helpers.places import TESTS
from helpers.training import DATA, Y, small_model, state_of

pytestmark = pytest.mark.eager

EPOCHS, BATCHES = 4, 4

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from callbacks.test_backup import run_until_killed
run_until_killed(sys.argv[2], sys.argv[3], int(sys.argv[4]))
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
    backup = keras.callbacks.BackupAndRestore(
        folder, save_freq=save_freq if save_freq == "epoch" else int(save_freq)
    )
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


def kill_training(folder, save_freq, step):
    """Runs training in a process of its own, up to one step."""
    arguments = [str(TESTS), str(folder), str(save_freq), str(step)]
    code = subprocess.run([sys.executable, "-c", SCRIPT, *arguments]).returncode
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


@pytest.mark.short("torch", "tensorflow")
@pytest.mark.slow
@pytest.mark.support("State", "`BackupAndRestore` after SIGKILL")
def test_killed_in_an_epoch_and_resumed_from_the_last_one(tmp_path):
    kill_training(tmp_path / "backup", "epoch", 2 * BATCHES + 2)
    assert_same_weights(resume(tmp_path / "backup"), uninterrupted())


@pytest.mark.short("torch", "jax")
@pytest.mark.slow
@pytest.mark.support("State", "`BackupAndRestore(save_freq=...)` after SIGKILL")
def test_killed_and_resumed_in_the_middle_of_an_epoch(tmp_path, record_property):
    note = "Keras starts the epoch again: the data must go on from the saved batch"
    record_property("support_note", note)
    # Killed in epoch 1 after its third step; backed up after every second one.
    kill_training(tmp_path / "backup", 2, BATCHES + 3)
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
