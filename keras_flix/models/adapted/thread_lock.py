"""Who may use a model now, where several threads share it.

Keras' JAX trainer takes the values out of a model's variables while it predicts, and
donates their buffers to the compiled step: a second thread finds neither. Metrics are
the model's own on every backend, and `adapters_disabled` switches the whole model. So
threads take turns, in the order of their arrival.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import enum
import functools
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras

from keras_flix import _compat

PATIENCE = 30.0
"""Seconds after which a waiting thread says what it waits for."""


class Use(enum.IntEnum):
    """What a thread does with a model."""

    READ = 0
    """Beside others that read, and beside one that trains or evaluates."""
    LOOP = 1
    """One thread at a time, beside those that read: metrics are the model's."""
    ALONE = 2
    """While no other thread is inside."""


USES = {
    "__call__": Use.READ,
    "generate": Use.READ,
    "score": Use.READ,
    "predict": Use.READ,
    "predict_on_batch": Use.READ,
    "fit": Use.LOOP,
    "evaluate": Use.LOOP,
    "train_on_batch": Use.LOOP,
    "test_on_batch": Use.LOOP,
}


@dataclasses.dataclass(eq=False)
class Block:
    """A block of one thread or task in which a model is something else."""

    thread: int


@dataclasses.dataclass(eq=False)
class _Ticket:
    """A thread that waits, with the blocks that it is in."""

    thread: int
    use: Use
    blocks: tuple[Block, ...]


# In the context, not by thread: a task of the same thread is not in the block, and
# what `asyncio.to_thread` runs is.
_blocks: contextvars.ContextVar[tuple[Block, ...]] = contextvars.ContextVar(
    "keras_flix_blocks", default=()
)


class Turns:
    """The threads that use one model."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: dict[int, Use] = {}
        self._queue: list[_Ticket] = []
        self._block: Block | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of a model is used by nobody.
        return Turns, ()

    def use(self, use: Use) -> contextlib.AbstractContextManager[None]:
        """Waits for the model to be free for this use, unless already inside it."""
        me = threading.get_ident()
        if me in self._inside:
            return contextlib.nullcontext()
        return self._entered(_Ticket(me, use, _blocks.get()))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Waits until no other thread is inside, also from within one's own use."""
        me = threading.get_ident()
        if self._inside.get(me) is Use.ALONE:
            yield
            return
        with self._entered(_Ticket(me, Use.ALONE, _blocks.get())):
            yield

    @contextlib.contextmanager
    def block(
        self, begin: Callable[[], None], end: Callable[[], None]
    ) -> Iterator[None]:
        """The length of a block in which the model is something else.

        Threads and tasks outside of the block must not see that: threads wait, and a
        task of the same thread, which cannot, gets an error.

        Args:
            begin: Changes the model; runs alone.
            end: Changes it back; runs alone.
        """
        block = Block(threading.get_ident())
        with self.alone():
            outer, self._block = self._block, block
            begin()
        token = _blocks.set((*_blocks.get(), block))
        try:
            yield
        finally:
            with self.alone():
                end()
                self._block = outer
            _blocks.reset(token)

    @contextlib.contextmanager
    def _entered(self, ticket: _Ticket) -> Iterator[None]:
        me = ticket.thread
        with self._changed:
            before = self._inside.get(me)
            if before is None:
                self._queue.append(ticket)
            else:
                self._check_upgrade(me)
                self._queue.insert(0, ticket)
            try:
                self._check_task(ticket)
                self._wait(functools.partial(self._is_next, ticket))
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()
            self._inside[me] = ticket.use
        try:
            yield
        finally:
            with self._changed:
                if before is None:
                    del self._inside[me]
                else:
                    self._inside[me] = before
                self._changed.notify_all()

    def _is_next(self, ticket: _Ticket) -> bool:
        others = [use for me, use in self._inside.items() if me != ticket.thread]
        free = not others or max(others) + ticket.use < Use.ALONE
        earlier = self._queue[: self._queue.index(ticket)]
        return free and self._admits(ticket) and not any(map(self._admits, earlier))

    def _admits(self, ticket: _Ticket) -> bool:
        return self._block is None or self._block in ticket.blocks

    def _wait(self, free: Callable[[], bool]) -> None:
        if self._changed.wait_for(free, PATIENCE):
            return
        warnings.warn(
            f"A thread has waited for {PATIENCE:.0f} seconds to use an adapted model, "
            "which another thread trains or runs, or has switched by "
            "`adapters_disabled`. It goes on waiting: do not wait for this thread "
            "within `fit`, its data, or the block.",
            stacklevel=2,
        )
        self._changed.wait_for(free)

    def _check_task(self, ticket: _Ticket) -> None:
        """Raises where waiting would be for ever: for a task of the same thread."""
        if not self._admits(ticket) and self._block.thread == ticket.thread:  # type: ignore[union-attr]
            raise RuntimeError(
                "A model must not be used by other tasks of a thread while one of "
                "them is in a block of `adapters_disabled`. Received: a call from "
                "such a task. Do not await within the block, or pass the block's "
                "own work to `asyncio.to_thread`."
            )

    def _check_upgrade(self, me: int) -> None:
        """Raises where two threads inside would wait for each other to leave."""
        if any(t.thread in self._inside and t.thread != me for t in self._queue):
            raise RuntimeError(
                "Only one of the threads that run a model may wait to change it. "
                "Received: a call of `adapters_disabled`, or one that saves the "
                "model, from within `fit` or `predict`, while another thread does "
                "the same. Use one of them after the other."
            )


def take_turns(cls: Any) -> Any:
    """Class decorator: the entry points of an adapted model wait for their turn."""
    for name, use in USES.items():
        if any(name in vars(one) for one in cls.__mro__):
            setattr(cls, name, _in_turn(getattr(cls, name), use))
    return cls


def _in_turn(method: Callable[..., Any], use: Use) -> Callable[..., Any]:
    reads_variables = method.__name__ in ("__call__", "generate", "score")
    if keras.config.backend() == "jax" and not reads_variables:
        use = Use.ALONE
    # A strategy of TensorFlow's runs the replicas' threads within a turn.
    in_replicas = reads_variables and keras.config.backend() == "tensorflow"

    @functools.wraps(method)
    def in_turn(self: Any, *args: Any, **kwargs: Any) -> Any:
        if in_replicas and _compat.in_replica():
            return method(self, *args, **kwargs)
        # With an assistant, KerasHub exchanges the model's sampler meanwhile.
        drafts = kwargs.get("assistant_model") is not None
        with self._adaptation.turns.use(Use.ALONE if drafts else use):
            return method(self, *args, **kwargs)

    return in_turn
