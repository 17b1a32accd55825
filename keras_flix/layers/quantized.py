"""Adapters around quantized kernels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import keras
from keras import ops

from keras_flix import _compat
from keras_flix.features.tensor_ids import Tensor

QUANTIZATION_MODES = ("int8", "int4", "ternary", "gptq", "awq")
"""Those whose kernels are constants, past which gradients flow to the inputs.

Keras has `"ternary"`, of `Dense` alone, from 3.16 on."""


class QuantizedCall(_compat.Mixin):
    """Mixin for what Keras calls instead of `call` once a layer is quantized."""

    def quantized_call(
        self,
        inputs: Tensor,
        features: Mapping[str, Any] | None = None,
        training: bool | None = None,
    ) -> Tensor:
        """The quantized base's output plus the update, in floating point.

        As with QLoRA (Dettmers et al., arXiv 2305.14314), the quantized kernel is
        constant and the update never is quantized.
        """
        delta = self.low_rank_output(inputs, features, training)
        if delta is None:
            return super().quantized_call(inputs, training=training)
        x = _compat.quantized_output(self, self.plain_class, inputs, training)
        # Keras adds the bias before, but the activation comes after both.
        x = ops.add(x, delta)
        return x if self.activation is None else self.activation(x)


def check_quantized_layers(layers: Iterable[keras.layers.Layer]) -> None:
    """Raises for quantization that adapters cannot be trained with."""
    for layer in layers:
        mode = layer.quantization_mode
        if mode is not None and mode not in QUANTIZATION_MODES:
            raise ValueError(
                f"A quantized model must be quantized to one of {QUANTIZATION_MODES}. "
                f"Received: layer {layer.path!r} with quantization_mode={mode!r}, "
                "whose scales are trained along with its kernel, and the base is "
                "frozen. Load the model without it, or quantize it to 'int8' or "
                "'int4'."
            )
        # From Keras 3.16 on, it is the second attribute, of both modes.
        calibrated = getattr(layer, f"is_{mode}_calibrated", True)
        pending = getattr(layer, "calibration_pending", False)
        if mode in ("gptq", "awq") and (pending or not calibrated):
            raise ValueError(
                "A quantized model must be calibrated before it is adapted. "
                f"Received: layer {layer.path!r} with quantization_mode={mode!r} "
                "that has seen no calibration data. Call "
                f"`model.quantize({mode!r}, config=...)` with a dataset first."
            )


def rounded_logits(layers: Iterable[keras.layers.Layer]) -> str:
    """The error for training a model whose logits have no proper gradient.

    Keras rounds the inputs of a quantized projection to integers. Its Dense and
    EinsumDense define a gradient past that; `ReversibleEmbedding` does not, so
    all that gets through is the gradient of the rounding's scale.

    Returns:
        The text, empty if the model can be trained.
    """
    for layer in layers:
        if _compat.rounds_logits(layer):
            return (
                "To be trained, a model must compute its logits in floating point. "
                f"Received: layer {layer.path!r} with quantization_mode="
                f"{layer.quantization_mode!r}, which rounds its inputs and has no "
                "gradient past that. Quantize without the embeddings: `model.backbone."
                "quantize(mode, filters=lambda layer: not isinstance(layer, "
                "keras.layers.Embedding))`."
            )
    return ""
