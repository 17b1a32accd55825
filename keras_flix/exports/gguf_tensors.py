"""The weights of KerasHub's models as llama.cpp's tensors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_flix import _compat
from keras_flix.exports.gguf_families import (
    MODULES,
    GgufFamily,
    head_sizes,
    in_their_order,
)
from keras_flix.exports.lora_names import peft_names
from keras_flix.layers.checks import layer_equation
from keras_flix.layers.einsum_split import split_equation


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a file.

    Attributes:
        name: As llama.cpp has it.
        shape: Its shape; `(d_out, d_in)` for linear layers.
        read: Brings it to the host.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def base_tensors(
    model: keras.Model, backbone: Any, family: GgufFamily, length: int
) -> Iterator[Tensor]:
    """All weights of a model but its adapters, each to be read when its turn comes.

    Args:
        model: A `CausalLM`, adapted or not.
        backbone: Its backbone.
        family: What it is in llama.cpp.
        length: How many positions it has there.

    Raises:
        ValueError: If a layer is quantized.
    """
    layers = {layer.path: layer for layer in _compat.flatten_layers(backbone)}
    for path, layer in layers.items():
        mode = getattr(layer, "quantization_mode", None)
        if mode is not None:
            raise ValueError(
                "`export_base` writes floating-point weights, which `llama-quantize` "
                f"quantizes. Received: layer {path!r} with quantization_mode="
                f"{mode!r}. Load the base without quantization and export that."
            )
    embedding = layers["token_embedding"]
    yield _tensor("token_embd.weight", embedding.embeddings)
    if not embedding.tie_weights:
        yield _tensor("output.weight", embedding.reverse_embeddings, np.transpose)
    if "position_embedding" in layers:
        positions = layers["position_embedding"].position_embeddings
        # llama.cpp reads a file only if these are as many as it says.
        yield _tensor("position_embd.weight", positions, lambda x: x[:length])
    yield from _norm("output_norm", layers[family.last_norm], family)
    names = peft_names(model)
    block = next(iter(names.modules)).partition("_0/")[0]
    for index in range(backbone.num_layers):
        for path, name in family.norms.items():
            layer = layers[f"{block}_{index}/{path}"]
            yield from _norm(f"blk.{index}.{name}", layer, family)
    for module, (index, short) in names.in_blocks.items():
        parts = [layers[path] for path in names.parts_of(module)]
        yield from _linear(f"blk.{index}", MODULES[short], parts, family, backbone)
    if getattr(backbone, "rope_frequency_adjustment_factor", None) is not None:
        factors = slowed_down(backbone)
        yield Tensor("rope_freqs.weight", factors.shape, lambda: factors)


def _tensor(
    name: str,
    variable: Any,
    change: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> Tensor:
    shape = change(np.broadcast_to(np.float32(0), tuple(variable.shape))).shape
    return Tensor(name, shape, lambda: change(_compat.to_host(variable)))


def _norm(name: str, layer: Any, family: GgufFamily) -> Iterator[Tensor]:
    scale, *offset = _compat.own_variables(layer)
    yield _tensor(
        f"{name}.weight", scale, lambda x: x.astype("float32") + family.norm_offset
    )
    if offset:
        yield _tensor(f"{name}.bias", offset[0])


def _linear(
    block: str, name: str, parts: list[Any], family: GgufFamily, backbone: Any
) -> Iterator[Tensor]:
    """The weight, and the bias if there is one, of layers side by side."""
    shapes = [_flattened(layer)[0] for layer in parts]
    shape = (sum(d_out for _, d_out in shapes), shapes[0][0])

    def weight() -> np.ndarray:
        rows = [
            in_their_order(family, backbone, name, _flattened(layer)[1]().T)
            for layer in parts
        ]
        return np.concatenate(rows)

    def bias() -> np.ndarray:
        rows = [_compat.to_host(layer.bias).ravel() for layer in parts]
        return in_their_order(family, backbone, name, np.concatenate(rows))

    yield Tensor(f"{block}.{name}.weight", shape, weight)
    if parts[0].bias is not None:
        yield Tensor(f"{block}.{name}.bias", shape[:1], bias)


def _flattened(layer: Any) -> tuple[tuple[int, int], Callable[[], np.ndarray]]:
    """The shape of a kernel as a matrix, `(d_in, d_out)`, and how to read it."""
    split = split_equation(*layer_equation(layer))
    shape = split.matrix_shape(tuple(layer.kernel.shape))
    return (
        shape,
        lambda: (
            _compat.to_host(layer.kernel).transpose(split.kernel_axes).reshape(shape)
        ),
    )


def slowed_down(backbone: Any) -> np.ndarray:
    """What Llama 3.1 divides the frequencies of rotary embeddings by, `(size / 2,)`.

    1 where the wave is short for the length of the pretraining, the whole factor where
    it is long, and between them what makes the frequency go linearly from one to the
    other, by how many waves that length has.
    """
    size = head_sizes(backbone)[2]
    factor = backbone.rope_frequency_adjustment_factor
    low, high = backbone.rope_low_freq_factor, backbone.rope_high_freq_factor
    frequency = backbone.rope_max_wavelength ** (-np.arange(0, size, 2) / size)
    waves = backbone.rope_pretraining_sequence_length * frequency / (2 * math.pi)
    kept = np.clip((waves - low) / (high - low), 0.0, 1.0)
    return (1 / (kept + (1 - kept) / factor)).astype("float32")
