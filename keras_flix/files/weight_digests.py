"""`base_fingerprint`: short digests of samples of a model's base weights."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator

import keras
import numpy as np
from keras import ops

from keras_flix import _compat
from keras_flix.files.fingerprint import BaseFingerprint
from keras_flix.layers.low_rank_layer import LowRankLayer

SAMPLES = 4096
"""At most so many elements of a variable are looked at."""
SMALL = 65536
"""Variables of up to so many elements go to the host as a whole."""
SMALLEST_NORMAL = np.finfo("float32").tiny


def base_fingerprint(model: keras.Model) -> BaseFingerprint:
    """A fingerprint of a model's base weights.

    Each variable is judged by its shape and by up to 4096 of its elements, on a
    grid, rounded to bfloat16: float32 and bfloat16 copies of one base agree, on
    every backend. Large variables stay on their device; only the samples leave
    it. So changes of a few elements go unnoticed, those of training do not.

    A model that is split across processes of JAX has its fingerprint if all of them
    ask for it.

    Adapters are not part of it. Of quantized layers, only the biases are; and
    float16 variables are compared with float16 ones only.

    Args:
        model: Any built model, adapted or not.

    Returns:
        A `BaseFingerprint`, with the `digest` of the whole and those of the
        `variables`.

    Example:

    >>> inputs = keras.Input((8,), name="x")
    >>> hidden = keras.layers.Dense(4, name="hidden", kernel_initializer="ones")
    >>> model = keras.Model(inputs, hidden(inputs))
    >>> base_fingerprint(model).variables
    {'hidden/kernel': '52c31f1e', 'hidden/bias': 'cb1a5f72'}
    """
    return BaseFingerprint({k: _digest(v) for k, v in _base_variables(model)})


def _base_variables(model: keras.Model) -> Iterator[tuple[str, keras.Variable]]:
    """The variables to compare, each with a name of its own."""
    counts: Counter[str] = Counter()
    seen: set[int] = set()
    for layer in [model, *_compat.flatten_layers(model)]:
        if isinstance(layer, LowRankLayer):
            seen |= {id(v) for v in layer._tables.named_variables.values()}
        quantized = getattr(layer, "quantization_mode", None) is not None
        for variable in _compat.own_variables(layer):
            if id(variable) in seen:
                continue
            seen.add(id(variable))
            # Two layers may have the same path. Those that are not compared count
            # too: in a quantized copy, the others keep their names.
            path = variable.path
            counts[path] += 1
            name = path if counts[path] == 1 else f"{path}:{counts[path]}"
            dtype = keras.backend.standardize_dtype(variable.dtype)
            # Scales of quantization are computed, not always to the same last bit.
            if quantized and variable.name != "bias":
                continue
            if dtype == "float16":
                # Rounded twice, it would often differ from a rounded float32.
                yield f"{name} (float16)", variable
            elif dtype in ("float32", "float64", "bfloat16"):
                yield name, variable


def _digest(variable: keras.Variable) -> str:
    values = _samples(variable)
    # Backends flush subnormal numbers to zero, or do not.
    values = np.where(np.abs(values) < SMALLEST_NORMAL, np.float32(0), values)
    bits = values.view("uint32")
    # To bfloat16 and the nearest even, as all backends do.
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    rounded = np.where(np.isnan(values), np.uint16(0x7FC0), rounded)
    found = hashlib.blake2b(repr(tuple(variable.shape)).encode(), digest_size=4)
    found.update(np.ascontiguousarray(rounded, "<u2").tobytes())
    return found.hexdigest()


def _samples(variable: keras.Variable) -> np.ndarray:
    """Up to `SAMPLES` elements of a variable, evenly spaced along each axis."""
    shape = tuple(variable.shape)
    counts = list(shape)
    while math.prod(counts) > SAMPLES:
        largest = counts.index(max(counts))
        counts[largest] = (counts[largest] + 1) // 2
    value = variable.value
    if math.prod(shape) <= SMALL:
        value = _compat.to_host(value)
    # The axis that loses most comes first, so what follows is small.
    for axis in sorted(range(len(shape)), key=lambda i: counts[i] / max(shape[i], 1)):
        if counts[axis] < shape[axis]:
            rows = np.arange(counts[axis], dtype="int64") * shape[axis] // counts[axis]
            take = np.take if isinstance(value, np.ndarray) else ops.take
            value = take(value, rows.astype("int32"), axis=axis)
    return np.ascontiguousarray(_compat.to_host(value)).astype("float32")
