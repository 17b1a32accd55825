"""Threads and tasks that share models: each gets its own features' results."""

import asyncio
import contextlib
import multiprocessing
import sys
import threading
import time
import warnings

import keras
import numpy as np
import pytest
from helpers.gemma import FEATURES, randomize, to_numpy
from helpers.models import make_mlp
from keras.src.trainers.data_adapters import py_dataset_adapter

import keras_flix
from keras_flix.models.adapted import thread_lock
from keras_flix.models.adapted.plain_view import plain_view

THREADS = 4
TASKS, LANGUAGES = FEATURES["task"], FEATURES["language"]


@pytest.fixture(autouse=True)
def _switch_often():
    """Threads are switched after a microsecond, not after five milliseconds."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(*works):
    """Runs functions at once, each in a thread; raises what they raised."""
    barrier = threading.Barrier(len(works))
    errors, results = [], [None] * len(works)

    def run(index, work):
        try:
            barrier.wait(60)
            results[index] = work()
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=run, args=pair, daemon=True)
        for pair in enumerate(works)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert not any(thread.is_alive() for thread in threads), "threads wait forever"
    if errors:
        raise errors[0]
    return results


@pytest.fixture(scope="module")
def model():
    """Its functions are traced once for all tests that need no fresh ones."""
    return adapted_mlp()


def adapted_mlp(seed=0):
    model = make_mlp(seed)
    keras_flix.enable_flix(model, FEATURES, targets="all-linear", rank=2, seed=seed)
    randomize(model, scale=1.0, seed=seed)
    model.compile(keras.optimizers.SGD(0.0), loss="mse", metrics=["mae"])
    return model


def batch_of(thread, size=4):
    """The same rows for every thread, so that features alone tell them apart."""
    x = np.random.default_rng(0).normal(size=(size, 8)).astype("float32")
    task = [[*TASKS, None][(thread + i) % 4] for i in range(size)]
    language = [[*LANGUAGES, None][(thread // 4 + 2 * i) % 4] for i in range(size)]
    return {"x": x, "task": task, "language": language}


CALLS = {
    "__call__": lambda model, batch: to_numpy(model(batch)),
    "predict_on_batch": lambda model, batch: model.predict_on_batch(batch),
    "predict": lambda model, batch: model.predict(batch, batch_size=2, verbose=0),
}


def mixed(found, expected):
    """Whether a result is not the one of its own features."""
    assert found.shape == expected.shape
    return not np.allclose(found, expected, rtol=0, atol=1e-5)


def assert_told_apart(expected):
    for i, one in enumerate(expected):
        for other in expected[i + 1 :]:
            assert np.abs(one - other).max() > 0.1


@pytest.mark.pairs
@pytest.mark.parametrize("models", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CALLS)
def test_threads_get_their_own_results(name, models, load, record_fault):
    """From the first call on, when all threads trace at once."""
    call, batches = CALLS[name], [batch_of(i) for i in range(THREADS)]
    twins = [adapted_mlp(seed) for seed in range(models)]
    expected = [call(twins[i % models], b) for i, b in enumerate(batches)]
    assert_told_apart(expected)
    shared, rounds, per_round = None, load, 4
    wrong = 0
    for fresh in range(rounds):
        if fresh % 10 == 0:  # A model is made, and traced, anew every ten rounds.
            shared = [adapted_mlp(seed) for seed in range(models)]

        def work(i, shared=shared):
            model = shared[i % models]
            return [call(model, batches[i]) for _ in range(per_round)]

        results = in_threads(*(lambda i=i: work(i) for i in range(THREADS)))
        wrong += sum(mixed(y, expected[i]) for i, ys in enumerate(results) for y in ys)
    assert wrong == 0
    record_fault(
        f"threads: {name} on {models} model{'s' * (models > 1)}",
        threads=THREADS,
        calls=rounds * per_round * THREADS,
        mixed_ids=wrong,
    )


class During(keras.callbacks.Callback):
    """Runs a function after the first batch of `predict`, `fit` or `evaluate`."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def _run(self):
        function, self.function = self.function, lambda: None
        function()

    def on_predict_batch_end(self, batch, logs=None):
        self._run()

    def on_train_batch_end(self, batch, logs=None):
        self._run()


@pytest.mark.pairs
@pytest.mark.parametrize("loop", ["predict", "fit"])
@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_comes_in_the_middle_of_a_loop(name, loop, model):
    """There, Keras' JAX trainer has taken the values out of the variables."""
    inner = []
    mine, other = batch_of(0), batch_of(1)
    expected = CALLS["predict"](model, mine), CALLS[name](model, other)

    def beside():
        inner.append(CALLS[name](model, other))

    thread = threading.Thread(target=beside)

    def start():
        thread.start()
        thread.join(0.2)

    callbacks = [During(start)]
    if loop == "predict":
        found = model.predict(mine, batch_size=2, verbose=0, callbacks=callbacks)
        assert not mixed(found, expected[0])
    else:
        encoded = {**mine, **model._adaptation.schema.encode(_entries(mine))}
        y = np.zeros((4, 4), "float32")
        model.fit(encoded, y, batch_size=2, verbose=0, callbacks=callbacks)
    thread.join(60)
    assert not mixed(inner[0], expected[1])
    assert not mixed(CALLS["predict"](model, mine), expected[0])


def _entries(batch):
    return {name: value for name, value in batch.items() if name != "x"}


@pytest.mark.parametrize("name", CALLS)
def test_adapters_are_disabled_for_one_thread_only(name, model, load, record_fault):
    call = CALLS[name]
    batches = [batch_of(i) for i in range(THREADS)]
    expected = [call(model, batch) for batch in batches]
    with keras_flix.adapters_disabled(model):
        base = call(model, {"x": batches[0]["x"]})
    rounds, wrong = 2 * load, []

    def disable():
        for _ in range(rounds):
            with keras_flix.adapters_disabled(model):
                wrong.append(mixed(call(model, batches[0]), base))

    def use(i):
        for _ in range(2 * rounds):
            wrong.append(mixed(call(model, batches[i]), expected[i]))

    in_threads(disable, disable, *(lambda i=i: use(i) for i in range(1, THREADS)))
    assert sum(wrong) == 0
    assert not mixed(call(model, batches[0]), expected[0])
    record_fault(
        f"threads: adapters_disabled beside {name}",
        threads=THREADS + 1,
        calls=len(wrong),
        mixed_ids=sum(wrong),
    )


def test_evaluations_do_not_share_their_metrics(model, load, record_fault):
    batches = [batch_of(i, size=8) for i in range(THREADS)]
    targets = np.zeros((8, 4), "float32")

    def evaluate(i):
        return model.evaluate(batches[i], targets, batch_size=2, verbose=0)

    expected = [evaluate(i) for i in range(THREADS)]
    assert len({round(mae, 3) for _, mae in expected}) == THREADS
    rounds = 3 * load
    results = in_threads(
        *(lambda i=i: [evaluate(i) for _ in range(rounds)] for i in range(THREADS))
    )
    for found, alone in zip(results, expected):
        np.testing.assert_allclose(found, [alone] * rounds, rtol=1e-5)
    record_fault(
        "threads: evaluate on 1 model", threads=THREADS, calls=rounds * THREADS
    )


class Rows(keras.utils.PyDataset):
    """One example per batch, each with its own values, read by several threads."""

    def __init__(self, batch, workers=4):
        super().__init__(workers=workers, max_queue_size=4)
        self.batch = batch

    def __len__(self):
        return len(self.batch["x"])

    def __getitem__(self, index):
        return ({name: v[index : index + 1] for name, v in self.batch.items()},)


def test_data_that_threads_of_keras_load(model, load, record_fault):
    batches = [batch_of(i, size=8) for i in range(3)]
    expected = [CALLS["predict"](model, batch) for batch in batches]
    with keras_flix.adapters_disabled(model):
        base = CALLS["predict"](model, batches[0])
    rounds = 2 * load

    def predict(i, alone):
        for _ in range(rounds):
            assert not mixed(model.predict(Rows(batches[i]), verbose=0), alone)

    def disabled():
        with keras_flix.adapters_disabled(model):
            predict(0, base)

    works = [lambda i=i: predict(i, expected[i]) for i in range(3)]
    in_threads(*works, disabled)
    record_fault(
        "threads: predict with 4 data workers",
        threads=4,
        calls=4 * rounds,
        batches=4 * rounds * 8,
        mixed_ids=0,
    )


def test_threads_that_load_data_for_the_first_time(model, monkeypatch):
    """Keras numbers data sources, and threads could get the same first number."""

    def slow(*args):
        time.sleep(0.05)
        return value(*args)

    value = multiprocessing.Value
    monkeypatch.setattr(py_dataset_adapter, "_SEQUENCE_COUNTER", None)
    monkeypatch.setattr(py_dataset_adapter.multiprocessing, "Value", slow)
    batches = [batch_of(i, size=8) for i in range(THREADS)]
    expected = [CALLS["predict"](model, batch) for batch in batches]
    results = in_threads(
        *(lambda b=b: model.predict(Rows(b), verbose=0) for b in batches)
    )
    assert not any(map(mixed, results, expected))


@pytest.mark.parametrize("name", CALLS)
def test_a_model_is_not_plain_to_other_threads_while_one_saves_it(name, model):
    """Its config, for one, is made of the plain model, which ignores features."""
    ids = {"task": np.array([0, 1, 2, -1]), "language": np.array([0, -1, 1, 2])}
    batch = {"x": batch_of(0)["x"], **ids}
    expected = CALLS[name](model, batch)

    def call():
        with pytest.raises(RuntimeError, match="another thread saves"):
            CALLS[name](model, batch)

    with plain_view(model):
        in_threads(call, call)
    assert not mixed(CALLS[name](model, batch), expected)


def test_tasks_of_one_thread(model):
    batches = [batch_of(i) for i in range(THREADS)]
    call = CALLS["predict"]
    expected = [call(model, batch) for batch in batches]
    with keras_flix.adapters_disabled(model):
        base = call(model, batches[0])

    async def in_block(inside, done):
        with keras_flix.adapters_disabled(model):
            inside.set()
            # A worker of the block's own, which runs in its context.
            found = await asyncio.to_thread(call, model, batches[0])
            await done.wait()
        return found

    async def main():
        work = [asyncio.to_thread(call, model, batch) for batch in batches]
        for found, alone in zip(await asyncio.gather(*work), expected):
            assert not mixed(found, alone)
        inside, done = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(in_block(inside, done))
        await inside.wait()
        # Another task, which must neither get the base nor wait for ever.
        with pytest.raises(RuntimeError, match="other tasks of a thread"):
            call(model, batches[1])
        waiting = asyncio.create_task(asyncio.to_thread(call, model, batches[1]))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        done.set()
        assert not mixed(await task, base)
        assert not mixed(await waiting, expected[1])
        assert not mixed(call(model, batches[1]), expected[1])

    asyncio.run(main())


def test_a_thread_that_waits_long_says_so(model, monkeypatch):
    monkeypatch.setattr(thread_lock, "PATIENCE", 0.05)
    batch, found = batch_of(0), []
    expected = CALLS["predict"](model, batch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        thread = threading.Thread(
            target=lambda: found.append(CALLS["predict"](model, batch))
        )
        with keras_flix.adapters_disabled(model):
            thread.start()
            thread.join(0.5)
            assert thread.is_alive() and not found
        thread.join(60)
    assert any("has waited" in str(w.message) for w in caught)
    assert not mixed(found[0], expected)


def test_an_error_in_one_thread_lets_the_others_go_on(model):
    good, bad = batch_of(1), {**batch_of(0), "task": ["qa", "no such task", None, "qa"]}
    expected = CALLS["predict"](model, good)

    def fail():
        for name in ("predict", "predict_on_batch", "__call__"):
            with pytest.raises(ValueError, match="no such task"):
                CALLS[name](model, bad)
        with contextlib.suppress(KeyError), keras_flix.adapters_disabled(model):
            raise KeyError

    def use():
        for _ in range(4):
            assert not mixed(CALLS["predict"](model, good), expected)

    in_threads(fail, use, fail, use)


def test_two_threads_that_would_wait_for_each_other_are_told(model):
    errors = []
    both_inside = threading.Barrier(2)

    def disable():
        with contextlib.suppress(threading.BrokenBarrierError):
            both_inside.wait(1)  # On JAX only one is inside at a time.
        try:
            with keras_flix.adapters_disabled(model):
                pass
        except RuntimeError as error:
            errors.append(str(error))

    def predict():
        callbacks = [During(disable)]
        model.predict(batch_of(0), batch_size=2, verbose=0, callbacks=callbacks)

    in_threads(predict, predict)
    if keras.config.backend() == "jax":
        assert not errors
    else:
        assert len(errors) == 1 and "may wait to change it" in errors[0]


@pytest.fixture
def make_generator(make_gemma):
    def make():
        model = make_gemma()
        keras_flix.enable_flix(model, FEATURES, targets="all-linear", rank=2)
        randomize(model, scale=0.6)
        model.compile(sampler="greedy")
        return model

    return make


@pytest.mark.short("torch", "jax")
@pytest.mark.slow
def test_generations_get_their_own_features(make_generator, load, record_fault):
    count = 4
    prompts = [
        {
            "prompts": ["the quick"],
            "task": [TASKS[i % 3]],
            "language": [LANGUAGES[i // 2]],
        }
        for i in range(count)
    ]
    model = make_generator()
    # Threads trace at once: so what is right is found afterwards.
    rounds = 2 * load

    def generate(i):
        return [
            model.generate(prompts[i].copy(), max_length=12, stop_token_ids=None)
            for _ in range(rounds)
        ]

    results = in_threads(*(lambda i=i: generate(i) for i in range(count)))
    alone = [generate(i)[0] for i in range(count)]
    assert len({a[0] for a in alone}) == count
    wrong = sum(found != alone[i] for i, fs in enumerate(results) for found in fs)
    assert wrong == 0
    with keras_flix.adapters_disabled(model):
        base = generate(0)[0]

    def disabled():
        for _ in range(rounds):
            with keras_flix.adapters_disabled(model):
                assert generate(0)[0] == base

    again = in_threads(*(lambda i=i: generate(i) for i in range(count)), disabled)
    wrong += sum(found != alone[i] for i, fs in enumerate(again[:-1]) for found in fs)
    assert wrong == 0
    record_fault(
        "threads: generate on 1 model",
        threads=count,
        calls=2 * rounds * count,
        mixed_ids=wrong,
    )
