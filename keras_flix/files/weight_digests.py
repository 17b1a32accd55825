"""`base_fingerprint`: short digests of samples of a model's base weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Container, Iterator

import keras
import numpy as np
from keras import ops

from keras_flix import _compat
from keras_flix.files.base_configuration import base_configuration
from keras_flix.files.fingerprint import BaseFingerprint
from keras_flix.models.adapted.trained_base import base_variables

SAMPLES = 4096
"""At most so many elements of a variable are looked at."""
SMALL = 65536
"""Variables of up to so many elements go to the host as a whole."""
HALF = " (float16)"
"""What the names of such variables end in."""
SMALLEST_NORMAL = np.finfo("float32").tiny


def base_fingerprint(model: keras.Model) -> BaseFingerprint:
    """A fingerprint of a model's base: its weights, and what it does with them.

    Each variable is judged by its shape and by up to 4096 of its elements, on a
    grid, rounded to bfloat16: float32 and bfloat16 copies of one base agree, on
    every backend. Large variables stay on their device; only the samples leave
    it. So changes of a few elements go unnoticed, those of training do not.

    A model that is split across processes of JAX has its fingerprint if all of them
    ask for it.

    Adapters are not part of it. Of quantized layers, only the biases are; and
    float16 variables are compared with float16 ones only.

    Beside the weights stand those settings of the layers, by their configs, that
    change what they compute: epsilons of norms, rotary embeddings, soft caps,
    activations. Dropout, dtypes and initializers are none of them. Bases of the same
    weights have the same `digest`, whatever their settings.

    Args:
        model: Any built model, adapted or not.

    Returns:
        A `BaseFingerprint`, with the `digest` of all weights, those of the
        `variables`, and the `settings`.

    Example:

    >>> inputs = keras.Input((8,), name="x")
    >>> hidden = keras.layers.Dense(4, name="hidden", kernel_initializer="ones")
    >>> model = keras.Model(inputs, hidden(inputs))
    >>> base_fingerprint(model).variables
    {'hidden/kernel': '52c31f1e', 'hidden/bias': 'cb1a5f72'}
    """
    return fingerprint_without(model, ())


def fingerprint_without(model: keras.Model, names: Container[str]) -> BaseFingerprint:
    """`base_fingerprint` of a model without some variables, such as a trained head."""
    return BaseFingerprint(
        {name: _digest(v) for name, v in _compared(model, names)},
        base_configuration(model),
    )


def _compared(
    model: keras.Model, names: Container[str]
) -> Iterator[tuple[str, keras.Variable]]:
    """The variables to compare, each with a name of its own."""
    for name, layer, variable in base_variables(model):
        quantized = getattr(layer, "quantization_mode", None) is not None
        dtype = keras.backend.standardize_dtype(variable.dtype)
        # Scales of quantization are computed, not always to the same last bit.
        if name in names or (quantized and variable.name != "bias"):
            continue
        if dtype == "float16":
            # Rounded twice, it would often differ from a rounded float32.
            yield name + HALF, variable
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
