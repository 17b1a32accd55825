"""Kernels that KerasHub's layers multiply by themselves: of sublayers, and of experts.

See `keras_flix._compat.kernel_products` for how updates get into such products.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras

from keras_flix import _compat
from keras_flix.layers.expert_kernel import ExpertKernel
from keras_flix.models.family_names import EXPERTS

if TYPE_CHECKING:
    from keras_flix.models.targets import Placed

SHARED, EACH = "shared", "each"
"""One adapter for all experts of a layer, or one for each of them."""


def expert_kernels(walk: Sequence[Placed]) -> list[tuple[str, ExpertKernel]]:
    """The kernels of all experts in a model, each with what names it in files.

    A name has no number that Keras counted up: KerasHub gives the layers around most
    experts no name of their own.
    """
    found = []
    for layer, parents in walk:
        if EXPERTS.fullmatch(type(layer).__name__):
            inner = [x for x in (*parents[1:], layer) if not isinstance(x, keras.Model)]
            place = "/".join(map(_compat.name_without_count, inner))
            for name, variable in vars(layer).items():
                if isinstance(variable, keras.Variable) and len(variable.shape) == 3:
                    path = f"{place}/{variable.name}"
                    found.append((path, ExpertKernel(layer, name, path)))
    return found


def chosen_experts(
    experts: str | None, walk: Sequence[Placed]
) -> dict[str, ExpertKernel]:
    """What `experts` of `enable_flix` adds to the targets, by path."""
    if experts is None:
        return {}
    if experts not in (SHARED, EACH):
        raise ValueError(
            f"`experts` must be {SHARED!r} (one adapter for all experts of a layer), "
            f"{EACH!r} (one for each of them) or None. Received: experts={experts!r}. "
            "Pass one of these."
        )
    found = expert_kernels(walk)
    if not found:
        raise ValueError(
            "With `experts`, the model must have experts whose kernels are known: "
            "those of KerasHub's Gemma 4, GPT-OSS, Mixtral, Qwen, Qwen3 and Qwen3.5 "
            f"mixtures. Received: experts={experts!r} for a model without any. Leave "
            "it out."
        )
    for path, kernel in found:
        layer = kernel.holder()
        if not (
            _compat.multiplies_itself(layer)
            and (kernel.attribute,) in _compat.attributes_read(layer)
        ):
            raise _compat.UnknownUse(
                _compat.unknown_use(
                    f"experts of type {type(layer).__name__} that do otherwise with "
                    f"{path!r}"
                )
            )
        kernel.each = experts == EACH
    return dict(found)


def readers_of(layers: Mapping[str, Any], walk: Sequence[Placed]) -> dict[str, Any]:
    """The layers that multiply by targets' kernels themselves, by the target's path.

    Raises:
        ValueError: If such a kernel is quantized, which these layers do not heed.
    """
    around = {id(layer): parents[-1] for layer, parents in walk}
    readers: dict[str, Any] = {}
    for path, layer in layers.items():
        if isinstance(layer, ExpertKernel):
            readers[path] = layer.holder()
            continue
        reader = around[id(layer)]
        if not _compat.multiplies_itself(reader):
            continue
        attribute = _compat.attribute_of(reader, layer)
        if (attribute, "kernel") in _compat.attributes_read(reader):
            readers[path] = reader
    names = sorted({layers[p].name for p in readers if _is_quantized(layers[p])})
    for path, reader in readers.items():
        if _is_quantized(layers[path]):
            raise ValueError(
                "A target whose kernel another layer multiplies by must not be "
                f"quantized: that layer, a {type(reader).__name__}, does not undo it, "
                f"so that its own outputs are wrong, too. Received: layer {path!r} "
                f"with quantization_mode={layers[path].quantization_mode!r}. Quantize "
                "the model without these layers: `model.quantize(mode, filters=lambda "
                f"layer: layer.name not in {names})`."
            )
    return readers


def _is_quantized(layer: Any) -> bool:
    return layer.quantization_mode is not None


def multiply_adapted(layers: Mapping[str, Any], readers: Mapping[str, Any]) -> None:
    """Gives readers of adapted layers the class that adds their updates."""
    for path, reader in readers.items():
        if not isinstance(layers[path], ExpertKernel):
            _compat.mark_kernel(layers[path].kernel, layers[path])
            cls: Any = type(reader)
            _compat.change_class(reader, _compat.multiplying_class(cls))
