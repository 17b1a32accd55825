"""Trainings that are killed: processes that begin at once, and what they run.

Importing Keras takes longer than the training, so one process imports it and forks a
child for each run, before any backend has begun to compute in it.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import keras
import numpy as np

import keras_flix
from keras_flix.callbacks import BackupAndRestore

TASKS, LANGUAGES, DOMAINS = 12, 9, 5
EPOCHS, BATCHES = 16, 10
STEP_SECONDS = 0.002

NURSERY = """
import sys
sys.path.insert(0, sys.argv[1])
from killed_training import fork_children
fork_children(sys.argv[2])
"""


def long_model(seed=0):
    """Adapted by a plain, a dropped and a multi-valued axis, and trained by Adam."""
    keras.utils.set_random_seed(seed)
    x = keras.Input((6,), name="x")
    hidden = keras.layers.Dense(12, activation="relu", name="hidden")(x)
    model = keras.Model({"x": x}, keras.layers.Dense(3, name="head")(hidden))
    features = [
        keras_flix.Feature("task", [f"t{i}" for i in range(TASKS)]),
        keras_flix.Feature("language", [f"l{i}" for i in range(LANGUAGES)], dropout=0),
        keras_flix.Feature("domain", [f"d{i}" for i in range(DOMAINS)], multiple=True),
    ]
    keras_flix.enable_flix(
        model, features, targets="all-linear", rank=2, dropout=0.3, seed=seed
    )
    generator = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(generator.normal(size=variable.shape) * 0.3)
    model.compile(keras.optimizers.Adam(0.003), loss="mse", metrics=["mae"])
    return model


def random_batch(seed, size=4):
    """Combinations of values, weights among them, and absent ones."""
    generator = np.random.default_rng(seed)
    weights = generator.random((size, DOMAINS)).astype("float32")
    weights[generator.random(weights.shape) < 0.5] = 0.0
    # The example with the most values decides on the shape, and each compiles once.
    weights[0] = 0.5 + weights[0]
    return {
        "x": generator.normal(size=(size, 6)).astype("float32"),
        "task": generator.integers(-1, TASKS, size).astype("int32"),
        "language": [
            None if i < 0 else f"l{i}" for i in generator.integers(-1, LANGUAGES, size)
        ],
        "domain": weights,
    }


class Steps(keras.utils.PyDataset):
    """The batches of an epoch, each known by its number; the last is a remainder."""

    def __init__(self, batches=BATCHES):
        super().__init__()
        self.batches = batches
        self.epoch = 0

    def __len__(self):
        return self.batches

    def __getitem__(self, index):
        size = 3 if index == self.batches - 1 else 4
        batch = random_batch(self.epoch * self.batches + index, size)
        return batch, batch["x"][:, :3] ** 2


class SetEpoch(keras.callbacks.Callback):
    """The data of an epoch go by its number, which a backup gives back."""

    def __init__(self, data):
        super().__init__()
        self.data = data

    def on_epoch_begin(self, epoch, logs=None):
        self.data.epoch = epoch


class Say(keras.callbacks.Callback):
    """Tells the process that kills where training begins, and takes its time."""

    def on_epoch_begin(self, epoch, logs=None):
        print("epoch", epoch, flush=True)

    def on_train_batch_end(self, batch, logs=None):
        time.sleep(STEP_SECONDS)


def train(*callbacks):
    model, data = long_model(), Steps()
    model.fit(
        data,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[SetEpoch(data), *callbacks],
    )
    return model


def fork_children(folder):
    """Forks a child for each line of the input, which trains; tells how it ended."""
    for _ in sys.stdin:
        child = os.fork()
        if not child:
            model = train(Say(), BackupAndRestore(Path(folder, "backup")))
            model.save_weights(Path(folder, "result.weights.h5"))
            os._exit(0)
        print("child", child, flush=True)
        print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


class Nursery:
    """The process that forks; a context manager."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def __enter__(self):
        arguments = [str(Path(__file__).parent), str(self.folder)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(60)

    def run(self, epoch=None, seconds=0.0):
        """Runs the training, and kills it if it is to be.

        Args:
            epoch: Of the epochs that this process begins, which is its last, from 0;
                `None` to let it end.
            seconds: How long after that.

        Returns:
            The epochs it began, and whether it was killed.
        """
        self.process.stdin.write("train\n")
        self.process.stdin.flush()
        child, epochs, self.begun = 0, [], []
        for line in self.process.stdout:
            word, number = line.split()
            if word == "child":
                child = int(number)
            elif word == "epoch":
                self.begun.append(time.monotonic())
                if len(epochs) == epoch:
                    # From outside, so at no particular place of the program.
                    threading.Timer(seconds, _kill, [child]).start()
                epochs.append(int(number))
            else:
                assert word == "ended" and int(number) in (0, -signal.SIGKILL), line
                return epochs, int(number) != 0
        raise AssertionError("The process that forks has ended.")


def _kill(child):
    try:
        os.kill(child, signal.SIGKILL)
    except ProcessLookupError:
        pass  # It had ended before.
