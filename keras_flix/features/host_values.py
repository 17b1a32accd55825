"""What a tensor of any backend is worth on the host, if that is known."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np

from keras_flix import _compat


def host_value(x: Any) -> Any:
    """`x` as numpy or Python data; `None` for a traced or symbolic tensor.

    Backends are only looked up, never imported, so any mix of them may be
    installed.
    """
    package = type(x).__module__.partition(".")[0]
    if isinstance(x, keras.KerasTensor):
        return None
    if package in ("jax", "jaxlib"):
        import jax

        return None if isinstance(x, jax.core.Tracer) else np.asarray(x)
    if package == "tensorflow":
        if hasattr(x, "to_list"):  # a RaggedTensor
            return x.to_list() if hasattr(x.flat_values, "numpy") else None
        return x.numpy() if hasattr(x, "numpy") else None
    if package == "torch":
        import torch

        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return None
        if x.is_meta or type(x) is not torch.Tensor:
            return None
        return _compat.torch_value(x)
    if hasattr(x, "__array__") and not isinstance(x, (np.ndarray, np.generic)):
        return np.asarray(x)
    return x


def is_tracing() -> bool:
    """Whether what runs now is being compiled, so that values of now would stay in it.

    Also where none of the values at hand is traced itself.
    """
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        return isinstance(jax.numpy.zeros(()), jax.core.Tracer)
    if backend == "tensorflow":
        import tensorflow as tf

        return bool(tf.inside_function())
    import torch

    return bool(torch.compiler.is_compiling() or torch.jit.is_tracing())


def is_tf_symbolic(x: Any) -> bool:
    """Whether `x` is a TensorFlow tensor without a value, on any backend."""
    return any_tf_symbolic([x])


def any_tf_symbolic(xs: Iterable[Any]) -> bool:
    """Whether any is a TensorFlow tensor without a value, on any backend."""
    for x in xs:
        if type(x).__module__.partition(".")[0] == "tensorflow":
            if host_value(x) is None:
                return True
    return False


def tell_value(x: Any, receive: Callable[[Any], None]) -> bool:
    """Passes a tensor's value to `receive`, on JAX also from inside of a trace.

    Returns:
        Whether that can be done.
    """
    value = host_value(x)
    if value is not None:
        receive(value)
        return True
    if type(x).__module__.partition(".")[0] not in ("jax", "jaxlib"):
        return False
    import jax

    jax.debug.callback(receive, x)
    return True


@contextlib.contextmanager
def values_at_hand() -> Iterator[None]:
    """Within the block, as much as the backend can runs with known values."""
    if keras.config.backend() != "jax":
        yield
        return
    import jax

    # Otherwise `scan` traces its step. NaN is what the block may look for.
    with jax.disable_jit(), jax.debug_nans(False):
        yield
    jax.effects_barrier()
