"""The batches that a model is tried on, see `row_probe`."""

from __future__ import annotations

import itertools
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops, tree


class Probe(NamedTuple):
    """How a model is tried.

    Attributes:
        call: Runs the model on inputs; takes `training`.
        inputs: A structure of `keras.KerasTensor`, which stand for the tensors, and of
            what else the model takes.
        length: The batch's; leading axes of this length are the batch's.
        sure: Whether the dtypes, and that length, are known to be the model's.
        trains: Whether training may be something else, see `heeds_training`.
        readers: The layers that multiply by kernels themselves, by path of the latter.
    """

    call: Callable[..., Any]
    inputs: Any
    length: int
    sure: bool
    trains: bool
    readers: Mapping[str, Any] = types.MappingProxyType({})


def change_codes(length: int) -> list[tuple[int, ...]]:
    """In which runs each example is changed: equally many, so none holds another."""
    runs = next(m for m in itertools.count(1) if math.comb(m, max(m // 2, 1)) >= length)
    return list(itertools.combinations(range(runs), max(runs // 2, 1)))[:length]


def changed_batch(probe: Probe, changed: Sequence[int], filling: Any) -> Any:
    """Random inputs, those of some examples changed."""

    def values(x: Any) -> Any:
        if not isinstance(x, keras.KerasTensor):
            return x
        if x.dtype == "string":
            texts = np.full(x.shape, "", object)
            if len(x.shape) and x.shape[0] == probe.length:
                texts[list(changed)] = "changed"
            return ops.convert_to_tensor(texts.astype(str))
        whole = filling == "int32"
        # Where dtypes are the model's own, whole numbers of a float dtype.
        dtype = "int32" if whole and not probe.sure else x.dtype
        draw = np.random.default_rng([len(x.shape), math.prod(x.shape)])
        is_float = "float" in dtype and not whole
        value = draw.normal(size=x.shape) if is_float else draw.integers(0, 2, x.shape)
        if not is_float and len(x.shape):
            # Ids of any vocabulary, and not in the order of their size.
            value.reshape(len(value), -1)[:, :1] = (
                np.arange(len(value))[:, None] % 2 == 0
            )
        if len(x.shape) and x.shape[0] == probe.length:
            for i in changed:
                if not is_float:
                    value[i] = 1 - value[i]
                elif filling is None:
                    value[i] = draw.normal(size=x.shape[1:])
                else:
                    value[i] = filling
        return ops.convert_to_tensor(value, dtype)

    return tree.map_structure(values, probe.inputs)


def shorter(probe: Probe) -> Probe:
    """The probe of a batch with an example less."""
    less = probe.length - 1

    def resized(x: Any) -> Any:
        if not isinstance(x, keras.KerasTensor) or x.shape[:1] != (probe.length,):
            return x
        return keras.KerasTensor((less, *x.shape[1:]), dtype=x.dtype)

    inputs = tree.map_structure(resized, probe.inputs)
    return Probe(probe.call, inputs, less, probe.sure, probe.trains, probe.readers)
