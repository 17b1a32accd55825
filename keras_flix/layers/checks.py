"""What a layer must fulfil to be adapted, and the dims that follow from it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras

from keras_flix import _compat
from keras_flix.features.feature import Feature
from keras_flix.layers.einsum_split import (
    FlatKernel,
    flatten_kernel,
    split_equation,
)

DENSE_EQUATION = "...d,df->...f"


def check_backend() -> None:
    """Raises on Keras' backend for OpenVINO, which lacks what adapters need."""
    backend = keras.config.backend()
    if backend == "openvino":
        raise ValueError(
            "Adapters need one of the backends 'jax', 'tensorflow' and 'torch'. "
            f"Received: KERAS_BACKEND={backend!r}. Set it to one of these. OpenVINO "
            "runs an adapted model as the ONNX file that "
            '`model.export(path, format="onnx")` writes there.'
        )


def no_features(layer: Any, names: list[str]) -> str:
    """The error for an adapted layer that is called past its model."""
    return (
        f"Layer {layer.path!r} must know the features {names} of each example. "
        "Received: none, since it runs outside of a call of the model that "
        "`enable_flix` adapted. Call that model; let another model over its layers "
        "take features by `share_features(model, other)`, once it is built within "
        "`adapters_disabled`; pass `features=` to the layer; or copy the model by "
        "`copy.deepcopy`, not `clone_model`."
    )


def check_runs_once(layer: Any, weight: Any) -> None:
    """Raises for a layer that is switched off where what runs is kept for later.

    What Keras compiles of a model that the block does not know would go on without
    adapters after it. `weight` is one of the layer's.
    """
    if _compat.is_compiled_by_keras(weight):
        raise ValueError(
            "Within `adapters_disabled`, another model over adapted layers must not "
            f"be compiled, as it would keep no adapters afterwards. Received: layer "
            f"{layer.path!r} in such a model. Use `share_features(model, other)` "
            "before, or call `other(inputs)`, which compiles nothing."
        )


def two_loras(layer: Any) -> str:
    """The error for a LoRA of Keras' own on an adapted layer."""
    return (
        "A layer with feature adapters must not have a LoRA of Keras' own. "
        f"Received: a LoRA rank for layer {layer.name!r}. Add a feature with "
        "always=True, which is a LoRA, to `features`."
    )


def check_ranks(layer: Any, features: Iterable[Feature]) -> None:
    """Raises if a value's rank is above the layer's dims."""
    d_in, d_out = matrix_shape(layer)
    for feature in features:
        if max(feature.ranks) > min(d_in, d_out):
            raise ValueError(
                f"The rank of feature {feature.name!r} must be at most "
                f"{min(d_in, d_out)}, the smaller dim of layer {layer.path!r} "
                f"({d_in} in, {d_out} out). Received: rank={max(feature.ranks)}. "
                "Lower the rank, or leave the layer out of the targets."
            )


def matrix_shape(layer: Any) -> tuple[int, int]:
    """`(d_in, d_out)` of a built layer's flattened kernel."""
    shape = getattr(layer, "adapted_shape", None) or _compat.kernel_shape(layer)
    flat = flatten_kernel(*layer_equation(layer), shape)
    return flat.d_in, flat.d_out


def check_same_split(flat: FlatKernel, equation: str, input_rank: int) -> None:
    """Raises if a product contracts other axes of a kernel than its layer does."""
    own = split_equation(equation, input_rank)
    used = flat.split
    same = (used.kernel_axes, used.num_contracted) == (
        own.kernel_axes,
        own.num_contracted,
    )
    if not same:
        raise _compat.UnknownUse(
            _compat.unknown_use(f"einsum {used.equation!r} by a kernel of {equation!r}")
        )


def check_product(layer: Any, equation: str, input_rank: int) -> None:
    """Raises if another layer's product with a kernel is not as the own one.

    Args:
        layer: What has the kernel, adapted or not.
        equation: What the other layer computes.
        input_rank: The number of axes of what it multiplies by the kernel.
    """
    try:
        flat = flatten_kernel(equation, input_rank, _compat.kernel_shape(layer))
    except ValueError as error:
        raise _compat.UnknownUse(_compat.unknown_use(f"einsum {equation!r}")) from error
    check_same_split(flat, *layer_equation(layer))


def layer_equation(layer: Any) -> tuple[str, int]:
    """The einsum equation of an `EinsumDense` or `Dense`, and its input rank."""
    equation = getattr(layer, "equation", DENSE_EQUATION)
    return equation, len(equation.split(",")[0].replace("...", "b"))
