"""Threads that share a model take turns; who would wait for ever gets an error."""

import concurrent.futures
import contextlib
import contextvars
import threading
import time

import pytest
from helpers.training import DATA, Y, small_model

from keras_flix.models.adapted.thread_lock import USES, Turns, Use

READ, LOOP, ALONE = Use


class Occupied(Exception):
    """A thread would have to wait."""


class Impatient(Turns):
    """Turns for which no thread waits."""

    def _wait(self, free):
        if not free():
            raise Occupied


class Patient(Turns):
    """Turns for which all threads wait, but for the main one."""

    def _wait(self, free):
        if threading.current_thread() is not threading.main_thread():
            super()._wait(free)
        elif not free():
            raise Occupied


def in_thread(function, *args):
    """What a function returns, or raises, in another thread."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *args).result()


def enter(scope, *args):
    with scope(*args):
        return "entered"


def goes(expected):
    return contextlib.nullcontext() if expected else pytest.raises(Occupied)


@pytest.mark.parametrize(
    "inside, other, beside",
    [
        (READ, READ, True),
        (READ, LOOP, True),
        (LOOP, READ, True),
        (LOOP, LOOP, False),
        (READ, ALONE, False),
        (LOOP, ALONE, False),
        (ALONE, READ, False),
        (ALONE, LOOP, False),
        (ALONE, ALONE, False),
    ],
)
def test_who_may_be_inside_beside_whom(inside, other, beside):
    turns = Impatient()
    with turns.use(inside):
        with goes(beside):
            in_thread(enter, turns.use, other)
    assert in_thread(enter, turns.use, other) == "entered"


def test_a_thread_does_not_wait_for_itself():
    turns = Impatient()
    with turns.use(READ), turns.use(LOOP), turns.alone(), turns.alone():
        with pytest.raises(Occupied):
            in_thread(enter, turns.use, READ)
    assert in_thread(enter, turns.alone) == "entered"


def test_a_block_admits_its_own_tasks_only():
    turns, events = Impatient(), []
    began, ended = (lambda name=name: events.append(name) for name in ("begin", "end"))
    with turns.block(began, ended):
        assert events == ["begin"]
        with pytest.raises(Occupied):
            in_thread(enter, turns.use, READ)
        with pytest.raises(RuntimeError, match="must not be used by other tasks"):
            contextvars.Context().run(enter, turns.use, READ)
        # As `asyncio.to_thread` does.
        own = contextvars.copy_context()
        assert in_thread(own.run, enter, turns.use, READ) == "entered"
        assert enter(turns.use, LOOP) == "entered"
    assert events == ["begin", "end"]
    assert in_thread(enter, turns.use, READ) == "entered"


@contextlib.contextmanager
def waiting(turns, *scopes):
    """A thread that has entered all of these scopes but the last, and waits there."""

    def wait():
        with contextlib.ExitStack() as stack:
            for scope, *args in scopes:
                stack.enter_context(scope(*args))

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    while not turns._queue:
        time.sleep(0.001)
    yield
    thread.join(60)
    assert not thread.is_alive()


def test_of_two_threads_inside_one_may_wait_to_be_alone():
    turns = Patient()
    with contextlib.ExitStack() as waits:
        with turns.use(READ):
            waits.enter_context(waiting(turns, (turns.use, READ), (turns.alone,)))
            with pytest.raises(RuntimeError, match="Only one of the threads that run"):
                enter(turns.alone)


def test_who_is_inside_goes_before_those_who_wait():
    turns = Patient()
    with contextlib.ExitStack() as waits:
        with turns.use(LOOP):
            waits.enter_context(waiting(turns, (turns.use, LOOP)))
            assert enter(turns.alone) == "entered"


def test_every_entry_point_of_a_model_waits(monkeypatch):
    model = small_model()
    monkeypatch.setattr(Turns, "_wait", Impatient._wait)
    calls = {
        "__call__": (DATA,),
        "generate": (DATA,),
        "predict": (DATA,),
        "predict_on_batch": (DATA,),
        "fit": (DATA, Y),
        "evaluate": (DATA, Y),
        "train_on_batch": (DATA, Y),
        "test_on_batch": (DATA, Y),
    }
    # Only causal LMs have a `score`.
    assert calls.keys() == USES.keys() - {"score"}
    with model._adaptation.turns.alone():
        for name, data in calls.items():
            with pytest.raises(Occupied):
                in_thread(getattr(model, name), *data)
