"""Models that are split across processes, of each of which a process holds a part.

Only JAX's are: each process of `jax.distributed` has devices of its own, and where a
layout cuts a variable along them, no process can read all of it alone. What is done
here for such a model, all processes must do together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
from keras import ops


def to_host(x: Any) -> np.ndarray:
    """A tensor or variable as a numpy array, also if its parts are with others.

    All processes must call it then, in the same order.
    """
    value = x.value if isinstance(x, keras.Variable) else x
    if not _is_split(value):
        return ops.convert_to_numpy(value)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(value, tiled=True))


def is_split(variables: Iterable[keras.Variable]) -> bool:
    """Whether a process holds only parts of some of these variables."""
    return any(_is_split(variable.value) for variable in variables)


def _is_split(value: Any) -> bool:
    # A replicated one can be read anywhere, though parts are with others.
    return not (
        getattr(value, "is_fully_addressable", True)
        or getattr(value, "is_fully_replicated", True)
    )


def written_once(write: Callable[[], None], split: bool) -> None:
    """Writes files of a model: for one that is split, in the first process alone.

    The others wait until they are complete, and raise if they could not be written.

    Args:
        write: Writes them. It must not ask other processes for anything.
        split: Whether the model is split, so that all processes call this.
    """
    if not split:
        write()
        return
    import jax
    from jax.experimental import multihost_utils

    error: BaseException | None = None
    if jax.process_index() == 0:
        try:
            write()
        except BaseException as raised:
            error = raised
    failed = multihost_utils.broadcast_one_to_all(np.asarray(error is not None))
    if error is not None:
        raise error
    if failed:
        raise RuntimeError(
            "The first process must be able to write the files of a model that is "
            "split across processes. Received: an error there. Look at what it raised."
        )
