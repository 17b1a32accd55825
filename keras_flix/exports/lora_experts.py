"""Adapted kernels of experts as LoRAs of parameters, PEFT's `target_parameters`.

Transformers (from version 5) keeps the kernels of all experts of a layer in two
parameters: `gate_up_proj`, whose outputs are those of two kernels side by side, and
`down_proj`. PEFT gives each expert a LoRA of its own there. So what experts share is
written for each of them; and where KerasHub has two kernels for `gate_up_proj`, their
ranks add up, each making its own outputs of its own columns. Both are exact.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import keras
import numpy as np

from keras_flix.exports.lora_names import PeftNames
from keras_flix.layers.expert_kernel import ExpertKernel
from keras_flix.layers.factors import of_each_expert
from keras_flix.models.adapted.adaptation import adaptation_of

Pair = tuple[np.ndarray, np.ndarray]
"""`A (d_in, rank)` and `B (rank, d_out)`."""


@dataclasses.dataclass(frozen=True)
class ExpertParameters:
    """The parameters of experts that are adapted.

    Attributes:
        paths: By parameter, the paths of its adapted kernels.
        parts: By parameter of the model, adapted or not, those of all of its kernels,
            side by side in this order.
        kernels: The adapted kernels by path.
    """

    paths: Mapping[str, list[str]]
    parts: Mapping[str, list[str]]
    kernels: Mapping[str, ExpertKernel]

    @classmethod
    def of(cls, model: keras.Model, names: PeftNames) -> ExpertParameters:
        """Those of an adapted model, as far as its family has names for them."""
        kernels = {
            path: layer
            for path, layer in adaptation_of(model).layers.items()
            if isinstance(layer, ExpertKernel) and path in names.experts
        }
        parts: dict[str, list[str]] = {}
        for path, parameter in names.experts.items():
            parts.setdefault(parameter, []).append(path)
        adapted = {
            parameter: [path for path in paths if path in kernels]
            for parameter, paths in parts.items()
        }
        paths = {parameter: own for parameter, own in adapted.items() if own}
        return cls(paths, parts, kernels)

    @property
    def targets(self) -> list[str]:
        """What PEFT is told to adapt: all layers with experts have these."""
        return sorted({".".join(name.split(".")[-2:]) for name in self.paths})

    def tensors_of(self, parameter: str) -> str:
        """What the tensors of a parameter begin with.

        PEFT wraps a module once per adapted parameter, in their order: the first one is
        inside of the second one.
        """
        module = _module(parameter)
        later = list(self.paths)[list(self.paths).index(parameter) + 1 :]
        inside = [name for name in later if _module(name) == module]
        return ".".join([module, *["base_layer"] * len(inside)])

    def factors(
        self, parameter: str, pairs: Mapping[str, Pair], rank: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """A parameter's LoRA as PEFT has it.

        Args:
            parameter: Its name.
            pairs: The factors of each of its adapted kernels by path. Where each expert
                has its own, those of a rank stand side by side.
            rank: That of each expert, with zeros beyond their own.

        Returns:
            `(experts * rank, d_in)`, all ranks of an expert together, and `(d_out,
            rank * experts)`, all experts of a rank together.
        """
        kernels = [self.kernels[path] for path in pairs]
        experts = kernels[0].whole_shape[0]
        own = [_of_experts(k, pair) for k, pair in zip(kernels, pairs.values())]
        parts = self.parts[parameter]
        d_in, width = kernels[0].adapted_shape
        a = np.zeros((experts, rank, d_in), "float32")
        b = np.zeros((width * len(parts), rank, experts), "float32")
        row = 0
        for path, (one_a, one_b) in zip(pairs, own):
            rows = slice(row, row + one_b.shape[1])
            first = parts.index(path) * width
            a[:, rows] = one_a.transpose(0, 2, 1)
            b[first : first + width, rows] = one_b.transpose(2, 1, 0)
            row = rows.stop
        return a.reshape(-1, d_in), b.reshape(len(b), -1)


def _of_experts(kernel: ExpertKernel, pair: Pair) -> Pair:
    """`(experts, d_in, rank)` and `(experts, rank, d_out)`."""
    a, b = pair
    if kernel.each:
        return of_each_expert(a[None], b[None], kernel.own_experts)
    experts = kernel.whole_shape[0]
    return (
        np.broadcast_to(a, (experts, *a.shape)),
        np.broadcast_to(b, (experts, *b.shape)),
    )


def _module(parameter: str) -> str:
    return parameter.rpartition(".")[0]
