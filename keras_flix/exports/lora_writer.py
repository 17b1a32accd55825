"""One combination of values as the files of a Hugging Face PEFT LoRA."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import safetensors.numpy

from keras_flix import _compat
from keras_flix.exports.lora_embeddings import embedding_modules
from keras_flix.exports.lora_experts import ExpertParameters
from keras_flix.exports.lora_factors import (
    Ids,
    combined_factors,
    host_tables,
    ids_of,
    own_columns,
)
from keras_flix.exports.lora_families import CLASSIFIER
from keras_flix.exports.lora_names import PeftNames, peft_names
from keras_flix.exports.lora_whole import (
    TokenRowsOfModules,
    WholeModule,
    token_rows,
    whole_modules,
)
from keras_flix.exports.vllm_limits import RANKS
from keras_flix.features.encoding import ABSENT
from keras_flix.features.feature import Feature
from keras_flix.features.schema import FeatureSchema
from keras_flix.layers.low_rank_layer import LowRankLayer
from keras_flix.layers.low_rank_update import FeatureTables
from keras_flix.models.adapted.adaptation import adaptation_of


@dataclasses.dataclass(frozen=True)
class LoraWriter:
    """Writes combinations of values of one model as LoRAs.

    Attributes:
        schema: The model's features.
        layers: Its adapted layers by path.
        features: By layer, its features with the ranks that they have there.
        names: What these are called in transformers.
        modules: Paths of the adapted layers by module, without those of `whole`.
        embeddings: The path of the adapted embedding by module, its tied head's too.
        experts: The adapted parameters of experts, which are among `modules`.
        whole: The modules that are written as a whole, since they train so.
        tokens: Rows of tokens that train.
        base_model: See `export_lora`.
        tables: By layer, its tables by feature: on the host, if `split`.
        split: Whether processes hold parts of the model.
    """

    schema: FeatureSchema
    layers: Mapping[str, LowRankLayer]
    features: Mapping[str, Mapping[str, Feature]]
    names: PeftNames
    modules: Mapping[str, list[str]]
    embeddings: Mapping[str, str]
    experts: ExpertParameters
    whole: Mapping[str, WholeModule]
    tokens: TokenRowsOfModules
    base_model: str | None
    tables: Mapping[str, Sequence[FeatureTables]]
    split: bool

    @classmethod
    def of(cls, model: keras.Model, base_model: str | None) -> LoraWriter:
        adaptation = adaptation_of(model)
        names = peft_names(model)
        split = _compat.is_split(model.variables)
        whole = whole_modules(model, names)
        written = {path for module in whole.values() for path in module.kernels}
        low_rank = [path for path in adaptation.layers if path not in written]
        if not low_rank:
            raise ValueError(
                "A LoRA must have an adapted layer that does not train whole. "
                f"Received: a model in which {sorted(written)[:3]} do, and no other "
                "layer is adapted. Use `merge_features`, or `export_merged`, which "
                "keep them."
            )
        embeddings = embedding_modules(model, names)
        experts = ExpertParameters.of(model, names)
        others = {*embeddings.values(), *experts.kernels}
        linear = [path for path in low_rank if path not in others]
        modules = names.of_layers(linear) if linear else {}
        return cls(
            schema=adaptation.schema,
            layers=adaptation.layers,
            features={
                path: {
                    f: adaptation.feature_in(path, f) for f in layer._tables.variables
                }
                for path, layer in adaptation.layers.items()
            },
            names=names,
            modules={
                **modules,
                **{module: [path] for module, path in embeddings.items()},
                **experts.paths,
            },
            embeddings=embeddings,
            experts=experts,
            whole=whole,
            tokens=token_rows(model, names),
            base_model=base_model,
            tables={
                path: host_tables(layer, split)
                for path, layer in adaptation.layers.items()
            },
            split=split,
        )

    def allowed_rank(self, encoded: Sequence[Ids]) -> int:
        """The lowest rank of vLLM's that the LoRAs of all combinations fit in."""
        layers_per_module = self._layers_per_module
        needed = max(self.rank(ids) for ids in encoded)
        for rank in RANKS:
            if needed <= rank:
                return rank
        raise ValueError(
            f"The rank of a LoRA must be at most {RANKS[-1]}, which is what servers "
            f"take. Received: a combination whose values have {needed} together"
            + (
                f", in a module that stands for {layers_per_module} layers"
                if layers_per_module > 1
                else ""
            )
            + ". Use `merge_features`, which has no such limit."
        )

    @property
    def _layers_per_module(self) -> int:
        return max(map(len, self.modules.values()), default=1)

    def rank(self, ids: Ids) -> int:
        """The rank of a combination: of the module where it is highest, at least 1."""

        def columns(feature: Feature) -> int:
            return len(own_columns(feature, ids_of(feature, ids)))

        def in_layer(path: str) -> int:
            own = self.features[path]
            return sum(columns(own[table.name]) for table in self.tables[path])

        # Of nothing, or of a feature in layers alone that transformers does not have.
        return max([1, *(sum(map(in_layer, own)) for own in self.modules.values())])

    def write(
        self, ids: Ids, rank: int, directory: Path, as_rslora: bool = True
    ) -> None:
        """Writes one LoRA into an empty directory.

        Args:
            ids: Of one example.
            rank: That of all modules.
            directory: An empty one.
            as_rslora: Whether it may have the scale of an rsLoRA, where it is one.
        """
        tensors: dict[str, np.ndarray] = {}
        alpha = self._alpha_of_rslora(ids, rank) if as_rslora else None
        factors = self.factors(ids, rank, scaled=alpha is None)
        for module, (a, b) in factors.items():
            looks_up = module in self.embeddings and module != self.names.logits
            name = "lora_embedding_{}" if looks_up else "lora_{}.weight"
            if module in self.experts.paths:
                module = self.experts.tensors_of(module)
            tensors[f"base_model.model.{module}.{name.format('A')}"] = a
            tensors[f"base_model.model.{module}.{name.format('B')}"] = b
        for module, one in self.whole.items():
            adapted = [path for path in one.kernels if path in self.layers]
            updates = {path: np.matmul(*self._factors(path, ids)) for path in adapted}
            tensors |= one.tensors(f"base_model.model.{module}", updates)
        tensors |= self.tokens.tensors()
        safetensors.numpy.save_file(
            {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()},
            directory / "adapter_model.safetensors",
            {"format": "pt"},
        )
        write_json(directory / "adapter_config.json", self._config(rank, alpha))

    def factors(
        self, ids: Ids, rank: int, scaled: bool = True
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """By module, `A (rank, d_in)` and `B (d_out, rank)`, as others have them.

        Of experts, see `ExpertParameters.factors`.

        Args:
            ids: Of one example. A feature that is always active may have an entry.
            rank: That of all modules, with zeros beyond their own.
            scaled: Whether the scale of each value is in its `A`.
        """
        factors = {}
        for module, paths in self.modules.items():
            if module in self.experts.paths:
                pairs = {path: self._factors(path, ids, scaled) for path in paths}
                factors[module] = self.experts.factors(module, pairs, rank)
                continue
            a, b = self._factors_of_module(module, ids, scaled)
            padding = rank - a.shape[1]
            factors[module] = (
                np.pad(a.T, ((0, padding), (0, 0))),
                np.pad(b.T, ((0, 0), (0, padding))),
            )
        return factors

    def _alpha_of_rslora(self, ids: Ids, rank: int) -> float | None:
        """The alpha of a combination that is one rsLoRA as it is; else `None`.

        That is one value of the rank of the whole LoRA, which then needs no scale in
        its adapter weights.
        """
        active = [
            (feature, row)
            for feature in self.schema
            for row in ids_of(feature, ids).ravel()
            if row != ABSENT
        ]
        if (
            len(active) != 1
            or any(ids_of(feature, ids).ndim == 3 for feature in self.schema)
            or any(len(paths) > 1 for paths in self.modules.values())
        ):
            return None
        ((feature, row),) = active
        own = {
            f[feature.name].ranks[row]
            for f in self.features.values()
            if feature.name in f
        }
        if feature.scaling.by == "sqrt" and own == {rank}:
            return feature.alpha
        return None

    def _factors_of_module(
        self, module: str, ids: Ids, scaled: bool
    ) -> tuple[Any, Any]:
        """`A` and `B` of a module of transformers, which may stand for layers."""
        if module in self.embeddings:
            a, b = self._factors(self.embeddings[module], ids, scaled)
            return (b.T, a.T) if module == self.names.logits else (a, b)
        factors = {
            path: self._factors(path, ids, scaled) for path in self.modules[module]
        }
        a = np.concatenate([a for a, _ in factors.values()], axis=1)
        # Each layer makes its own outputs of its own columns.
        parts = self.names.parts_of(module)
        width = next(iter(factors.values()))[1].shape[1]
        b = np.zeros((a.shape[1], len(parts) * width), "float32")
        row = 0
        for path, (_, own) in factors.items():
            column = parts.index(path) * width
            b[row : row + len(own), column : column + width] = own
            row += len(own)
        return a, b

    def _factors(
        self, path: str, ids: Ids, scaled: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        return combined_factors(
            path,
            self.features[path],
            self.tables[path],
            ids,
            scaled,
            self.layers[path]._tables.experts,
        )

    def _config(self, rank: int, rslora_alpha: float | None) -> dict[str, Any]:
        tokens, targets = self.tokens.indices, self.experts.targets
        return {
            "peft_type": "LORA",
            # With it, PEFT looks for a trained head in the directory.
            "task_type": (
                "SEQ_CLS" if CLASSIFIER in self.whole else self.names.task_type
            ),
            "base_model_name_or_path": self.base_model,
            "inference_mode": True,
            "r": rank,
            # The scale is lora_alpha / r: 1, as each value's own is in `A`. That of
            # rsLoRA is lora_alpha / sqrt(r).
            "lora_alpha": rank if rslora_alpha is None else rslora_alpha,
            "use_rslora": rslora_alpha is not None,
            "use_dora": False,
            "lora_dropout": 0.0,
            "bias": "none",
            "modules_to_save": list(self.whole) or None,
            **({"trainable_token_indices": tokens} if tokens else {}),
            "fan_in_fan_out": self.names.fan_in_fan_out,
            "target_modules": self.names.target_modules(
                module for module in self.modules if module not in self.experts.paths
            ),
            **({"target_parameters": targets} if targets else {}),
        }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(f"{text}\n", encoding="utf-8")
