"""What trains whole, as modules that a PEFT directory holds beside its LoRA."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_flix import _compat
from keras_flix.exports.lora_names import PeftNames
from keras_flix.layers.checks import layer_equation
from keras_flix.layers.einsum_split import flatten_kernel
from keras_flix.layers.token_rows import COLUMNS, ROWS
from keras_flix.models.adapted.adaptation import adaptation_of
from keras_flix.models.adapted.trained_base import base_variables, trained_base
from keras_flix.models.targets import keyed_layers


@dataclasses.dataclass(frozen=True)
class WholeModule:
    """A linear module of transformers as a whole.

    Attributes:
        kernels: By path of the layers that make its outputs, side by side in this
            order, float32 matrices `(d_in, d_out)`.
        biases: By path, `(d_out,)`; empty if the layers have none.
        fan_in_fan_out: See `PeftFamily`.
    """

    kernels: Mapping[str, np.ndarray]
    biases: Mapping[str, np.ndarray]
    fan_in_fan_out: bool

    def tensors(
        self, name: str, updates: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """What the directory holds of it, with the updates `(d_in, d_out)` by path."""
        merged = [k + updates.get(path, 0) for path, k in self.kernels.items()]
        weight = np.concatenate(merged, axis=1)
        found = {f"{name}.weight": weight if self.fan_in_fan_out else weight.T}
        if self.biases:
            found[f"{name}.bias"] = np.concatenate(list(self.biases.values()))
        return found


def whole_modules(model: keras.Model, names: PeftNames) -> dict[str, WholeModule]:
    """The modules that hold what trains besides the adapters, or has trained.

    Args:
        model: An adapted model.
        names: What its layers are called in transformers.

    Raises:
        ValueError: If something else trained than linear layers that transformers'
            model has.
    """
    layers = dict(keyed_layers(model)) | adaptation_of(model).layers
    paths = {id(layer): path for path, layer in layers.items()}
    trained = trained_base(model)
    modules: dict[str, WholeModule] = {}
    for name, layer, _ in base_variables(model):
        if name not in trained:
            continue
        module = names.modules.get(paths.get(id(layer), ""))
        if module is None or layer.quantization_mode is not None:
            raise ValueError(
                "Beside a LoRA, a PEFT directory may hold linear layers that have a "
                f"counterpart in Hugging Face transformers. Received: {name!r}, which "
                "trained besides and is of no such layer. Use `merge_features`, or "
                "`export_merged`, which keep it."
            )
        if module not in modules:
            parts = {path: layers[path] for path in names.parts_of(module)}
            modules[module] = WholeModule(
                {path: kernel_matrix(part) for path, part in parts.items()},
                {
                    path: as_float32(part.bias).ravel()
                    for path, part in parts.items()
                    if part.bias is not None
                },
                names.fan_in_fan_out,
            )
    return modules


@dataclasses.dataclass(frozen=True)
class TokenRowsOfModules:
    """Rows of tokens that train, as PEFT's `trainable_token_indices`.

    Attributes:
        rows: By module, float32 `(tokens, width)`.
        ids: The tokens.
    """

    rows: Mapping[str, np.ndarray]
    ids: list[int]

    @property
    def indices(self) -> dict[str, list[int]] | None:
        """What the configuration says of it; `None` if there are no such rows."""
        return dict.fromkeys(self.rows, self.ids) or None

    def tensors(self) -> dict[str, np.ndarray]:
        """What the directory holds of it."""
        return {
            f"base_model.model.{name}.token_adapter.trainable_tokens_delta": rows
            for name, rows in self.rows.items()
        }


def token_rows(model: keras.Model, names: PeftNames) -> TokenRowsOfModules:
    """The rows of tokens that train in an adapted model, in transformers' words."""
    rows: dict[str, np.ndarray] = {}
    ids: list[int] = []
    for layer in adaptation_of(model).token_rows:
        if names.embedding is None:
            raise ValueError(
                "Rows of tokens can be written where one module has them. Received: a "
                "model whose encoder and decoder share them in transformers, of which "
                "PEFT would train one. Use `merge_features`."
            )
        ids = layer.token_ids.tolist()
        tables = layer.adapter_variables()
        rows[names.embedding] = as_float32(tables[ROWS])
        # Without a head, no logits are computed.
        if COLUMNS in tables and names.logits is not None:
            rows[names.logits] = as_float32(tables[COLUMNS])
    return TokenRowsOfModules(rows, ids)


def kernel_matrix(layer: Any) -> np.ndarray:
    """A layer's kernel, flattened to `(d_in, d_out)`."""
    kernel = as_float32(layer.kernel)
    flat = flatten_kernel(*layer_equation(layer), kernel.shape)
    return kernel.transpose(flat.split.kernel_axes).reshape(flat.d_in, flat.d_out)


def as_float32(variable: keras.Variable) -> np.ndarray:
    """A variable, on the host."""
    # Numpy knows no bfloat16 of its own.
    return np.asarray(_compat.to_host(variable)).astype("float32")
