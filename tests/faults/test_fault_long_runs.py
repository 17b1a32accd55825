"""Long runs: nothing grows, nothing is compiled again, nothing is lost by a kill."""

import gc
import os
import random
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from faults.killed_training import (
    EPOCHS,
    Nursery,
    SetEpoch,
    Steps,
    long_model,
    random_batch,
)
from helpers.gemma import FEATURES, randomize, to_numpy

import keras_flix
from keras_flix.callbacks import BackupAndRestore

BACKEND = keras.config.backend()
STEPS_PER_LOAD, PER_EPOCH = 400, 100
SELDOM = "compiles in each of its processes: only with --load 2 or more, or on torch"
compiles = pytest.mark.skipif(BACKEND == "torch", reason="torch compiles nothing")


class Traces:
    """Counts how often Python runs a layer's `call`: once a trace when compiled."""

    def __init__(self, layer):
        self.count = 0
        call = layer.call

        def counted(*args, **kwargs):
            self.count += 1
            return call(*args, **kwargs)

        object.__setattr__(layer, "call", counted)


def memory():
    """What a leak would add to: objects, blocks, buffers, resident bytes."""
    gc.collect()
    objects = gc.get_objects()
    facts = {"objects": len(objects), "blocks": sys.getallocatedblocks()}
    if BACKEND == "jax":
        import jax

        facts["buffers"] = len(jax.live_arrays())
    if BACKEND == "torch":
        import torch

        facts["buffers"] = sum(issubclass(type(x), torch.Tensor) for x in objects)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {**facts, "resident bytes": pages * os.sysconf("SC_PAGE_SIZE")}


class Measure(keras.callbacks.Callback):
    """Memory and traces at the end of each epoch."""

    def __init__(self, traces):
        super().__init__()
        self.traces = traces
        self.rows = []

    def on_epoch_end(self, epoch, logs=None):
        assert np.isfinite(logs["loss"])
        self.rows.append({**memory(), "traces": self.traces.count})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # pytest keeps what is warned of.
def test_training_grows_nothing_and_compiles_nothing_again(load, record_fault):
    """Combinations change with every batch, and each epoch ends with a remainder."""
    model, data = long_model(), Steps(PER_EPOCH)
    measure = Measure(Traces(model.get_layer("head")))
    epochs = STEPS_PER_LOAD * load // PER_EPOCH
    model.fit(
        data,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=[SetEpoch(data), measure],
    )
    # The first tenth warms up: allocators, caches.
    start, end = measure.rows[max(epochs // 10, 1) - 1], measure.rows[-1]
    grown = {name: end[name] - start[name] for name in end}
    steps = epochs * PER_EPOCH
    if BACKEND == "torch":  # It traces nothing: `call` runs in every step.
        assert grown.pop("traces") == PER_EPOCH * (epochs - max(epochs // 10, 1))
    # Each epoch leaves its logs in the history: some numbers. The constants are for
    # what is made once, later than in the first tenth; 400 steps outgrow them with one
    # object each.
    assert grown.get("traces", 0) == 0
    assert grown["objects"] <= 200 + 4 * epochs, grown
    assert grown["blocks"] <= 1000 + 60 * epochs, grown
    assert grown.get("buffers", 0) <= 4, grown
    if steps >= 4000:  # Before, the allocators still grow.
        assert grown["resident bytes"] <= 16 * 2**20, grown
    facts = {f"{name.replace(' ', '_')}_grown": value for name, value in grown.items()}
    record_fault("long runs: training", steps=steps, **facts)


@compiles
def test_predictions_compile_nothing_again(load, record_fault):
    model = long_model()
    for size in (4, 3):
        model.predict_on_batch(random_batch(0, size))
    model.predict(random_batch(0, 7), batch_size=4, verbose=0)
    traces, calls = Traces(model.get_layer("head")), 40 * load
    for seed in range(calls):
        model.predict_on_batch(random_batch(seed, 4 - seed % 2))
        if seed % 10 == 0:
            model.predict(random_batch(seed, 7), batch_size=4, verbose=0)
    assert traces.count == 0
    record_fault("long runs: predict", calls=calls, traces_grown=traces.count)


@pytest.mark.slow
@compiles
def test_generations_compile_nothing_again(make_gemma, load, record_fault):
    model = make_gemma()
    keras_flix.enable_flix(model, FEATURES, rank=2)
    randomize(model)
    model.compile(sampler="greedy")
    values = {name: [*of, None] for name, of in FEATURES.items()}
    generator, calls, texts = random.Random(0), 16 * load, set()
    layer = model.backbone.token_embedding
    prompts = ["the quick", "fox jumps over", "dog"]
    traces = None
    for _ in range(calls):
        entries = {name: generator.choices(of, k=3) for name, of in values.items()}
        texts.update(model.generate({"prompts": prompts, **entries}, max_length=12))
        traces = traces or Traces(layer)
    assert traces.count == 0
    assert len(texts) > 5
    record_fault("long runs: generate", calls=calls, traces_grown=traces.count)


class Stop(BaseException):
    """Ends what runs, as a kill does, at a place that the test chooses."""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_stopped_while_the_backup_is_written(moment, tmp_path, load, monkeypatch):
    """Just before and just after a complete file takes its name, nothing is lost."""
    if load == 1 and BACKEND != "torch":
        pytest.skip(SELDOM)
    folder, stopped_at = tmp_path / "backup", 3
    replace, begun = os.replace, []

    def stop(source, target):
        if Path(target).name == f"epoch-{stopped_at}.weights.h5":
            if moment == "after":
                replace(source, target)
            raise Stop
        replace(source, target)

    data = Steps(2)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(os, "replace", stop)
        long_model().fit(
            data,
            epochs=5,
            shuffle=False,
            verbose=0,
            callbacks=[SetEpoch(data), BackupAndRestore(folder)],
        )
    (folder / ".0123abcd.tmp.epoch-3.weights.h5").write_bytes(b"left by a kill")
    note = keras.callbacks.LambdaCallback(on_epoch_begin=lambda n, _: begun.append(n))
    resumed, data = long_model(seed=3), Steps(2)
    resumed.fit(
        data,
        epochs=5,
        shuffle=False,
        verbose=0,
        callbacks=[SetEpoch(data), BackupAndRestore(folder), note],
    )
    assert begun == list(range(2 if moment == "before" else 3, 5))
    assert not folder.exists()
    expected, data = long_model(), Steps(2)
    expected.fit(data, epochs=5, shuffle=False, verbose=0, callbacks=[SetEpoch(data)])
    assert_alike(state_of(resumed), state_of(expected))


def state_of(model):
    return [to_numpy(v) for v in [*model.variables, *model.optimizer.variables]]


def assert_alike(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def saved_state(path):
    model = long_model(seed=3)
    model.optimizer.build(model.trainable_variables)
    model.load_weights(path)
    path.unlink()
    return state_of(model)


@pytest.mark.short("torch")
@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs `os.fork`")
def test_killed_at_random_moments_it_ends_with_the_same_weights(
    tmp_path, load, record_fault
):
    """By another process, at any place: also while a backup is being written."""
    if load == 1 and BACKEND != "torch":
        pytest.skip(SELDOM)
    wanted = 2 if load == 1 else 20
    result = tmp_path / "result.weights.h5"
    kills, trainings, resumed, mid_write = 0, 0, 0, 0
    with Nursery(tmp_path) as nursery:
        epochs, killed = nursery.run()
        assert not killed and epochs == list(range(EPOCHS))
        expected = saved_state(result)
        # A process compiles in its first epoch, which takes longer than all others.
        lengths = np.diff(nursery.begun)
        chance = random.Random(0)
        while kills < wanted or not trainings:
            last = chance.randrange(4) if kills < wanted else None
            longest = lengths[0] if last == 0 else lengths[1:].mean()
            epochs, killed = nursery.run(last, chance.uniform(0, longest))
            kills += killed
            resumed += epochs[0] > 0
            mid_write += any(tmp_path.glob("backup/.*.tmp.*"))
            if not killed:
                assert_alike(saved_state(result), expected)
                trainings += 1
        if (tmp_path / "backup").exists():
            assert nursery.run()[1] is False
            assert_alike(saved_state(result), expected)
            trainings += 1
    record_fault(
        "long runs: killed and resumed",
        kills=kills,
        in_the_middle_of_a_backup=mid_write,
        resumed_past_the_first_epoch=resumed,
        trainings_with_the_weights_of_an_uninterrupted_one=trainings,
    )
