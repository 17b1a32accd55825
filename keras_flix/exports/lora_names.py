"""What the layers of one model are called in Hugging Face transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import keras_hub

from keras_flix.exports.lora_families import (
    FAMILIES,
    GEMMA4,
    MLP,
    OTHER_TOWERS,
    QWEN3_5,
    QWEN3_5_MOE,
    REFUSED,
    VISION_TOWER,
    PeftFamily,
)
from keras_flix.models.adapted.adaptation import adaptation_of, is_adapted


@dataclasses.dataclass(frozen=True)
class PeftNames:
    """Names of one model in transformers.

    Attributes:
        modules: By path of a layer in Keras, the module's name.
        embedding: That of the embeddings of tokens; `None` where several modules
            share them.
        logits: That of an output head with weights of its own, where there is one.
        unused: Paths of layers that do not matter to what the model computes,
            and that transformers' model does not have.
        others: The names of further linear modules.
        task_type: As PEFT calls the model's task; `None` where it has no word
            for it.
        fan_in_fan_out: See `PeftFamily`.
        in_blocks: By a module's name, the index of its block, and what it is called
            there.
        experts: By path of a kernel of experts, the parameter's name.
        refused: By path of a layer that PEFT would take for something else, why.
    """

    modules: Mapping[str, str]
    embedding: str | None
    logits: str | None
    unused: frozenset[str]
    others: tuple[str, ...]
    task_type: str | None
    fan_in_fan_out: bool
    in_blocks: Mapping[str, tuple[int, str]]
    experts: Mapping[str, str]
    refused: Mapping[str, str]

    def of_layers(self, paths: Iterable[str]) -> dict[str, list[str]]:
        """The adapted layers' paths by module, in the order of its outputs.

        Raises:
            ValueError: If transformers' model has nothing like one of the layers.
        """
        adapted = set(paths) - self.unused
        unknown = sorted(adapted - set(self.modules))
        if unknown or not adapted:
            unknown = unknown or sorted(self.unused)
            reasons = [self.refused[path] for path in unknown if path in self.refused]
            raise ValueError(
                "Every adapted layer must have a counterpart in Hugging Face "
                f"transformers. Received: {unknown[:4]}, which have none"
                f"{f': {reasons[0]}' if reasons else ''}. Leave them out of `targets` "
                "or `experts`, or use `merge_features`."
            )
        by_module: dict[str, list[str]] = {}
        for path, module in self.modules.items():
            if path in adapted:
                by_module.setdefault(module, []).append(path)
        return by_module

    def parts_of(self, module: str) -> list[str]:
        """The paths of all layers that make a module's outputs, adapted or not."""
        return [path for path, name in self.modules.items() if name == module]

    def target_modules(self, adapted: Iterable[str]) -> list[str]:
        """What PEFT is told to adapt: a module's last name, where all have it."""
        adapted = set(adapted)
        known = adapted | set(self.modules.values()) | set(self.others)

        def last(name: str) -> str:
            return name.rpartition(".")[2]

        partly = {last(name) for name in known - adapted}
        return sorted({n if last(n) in partly else last(n) for n in adapted})


def family_of(model: Any) -> tuple[Any, str]:
    """A model's backbone, and the name of its class before `enable_flix`.

    Args:
        model: A KerasHub task or backbone, adapted or not.

    Returns:
        Both; the name is empty where the model is something else.
    """
    backbone = getattr(model, "backbone", model)
    base_class = type(backbone)
    if is_adapted(model):
        if backbone not in adaptation_of(model).parts:
            return backbone, ""
        base_class = adaptation_of(backbone).base_class
    is_hub = isinstance(backbone, keras_hub.models.Backbone)
    return backbone, base_class.__name__ if is_hub else ""


def class_name(model: Any) -> str:
    """What a model's class is called, or was before `enable_flix`."""
    cls = adaptation_of(model).base_class if is_adapted(model) else type(model)
    return cls.__name__


def peft_names(model: keras.Model) -> PeftNames:
    """What a model's layers are called in transformers.

    Args:
        model: A KerasHub task or backbone, adapted by `enable_flix` or not.

    Raises:
        ValueError: If it is not of one of `FAMILIES`, or an unknown kind of task.
    """
    backbone, name = family_of(model)
    if name not in FAMILIES:
        reason = f": {REFUSED[name]}" if name in REFUSED else ""
        raise ValueError(
            "The model must be a KerasHub task or backbone whose names in Hugging Face "
            f"transformers are known: {list(FAMILIES)}. Received: a "
            f"{name or class_name(model)}{reason}. Use `save_adapters`, or "
            "`merge_features` for a plain model."
        )
    family = FAMILIES[name]
    has_head, task_type = _task(model, class_name(model))
    prefix = f"{family.base}." if has_head else ""
    others = family.others
    encoders = ("vision_encoder", "audio_encoder")
    if any(getattr(backbone, encoder, None) is not None for encoder in encoders):
        others += tuple(f"vision_tower.{name}" for name in _tower(family))
        prefix += "language_model."
    modules = {}
    in_blocks = {}
    for stack in filter(None, (family, family.decoder)):
        for i, path, module in _in_blocks(stack, backbone, stack.modules):
            full = f"{prefix}{stack.layer.format(i)}.{module}"
            modules[path] = full
            in_blocks[full] = (i, module)
    experts = {
        path: f"{prefix}{family.layer.format(i)}.{parameter}"
        for i, path, parameter in _in_blocks(family, backbone, family.experts)
    }
    refused = {
        path: why for _, path, why in _in_blocks(family, backbone, family.refused)
    }
    outside = {path: f"{prefix}{module}" for path, module in family.outside.items()}
    is_masked_lm = isinstance(model, keras_hub.models.MaskedLM)
    if isinstance(model, keras_hub.models.TextClassifier):
        outside |= family.head
    return PeftNames(
        modules=modules if is_masked_lm else {**modules, **outside},
        embedding=family.embedding and f"{prefix}{family.embedding}",
        logits="lm_head" if isinstance(model, keras_hub.models.CausalLM) else None,
        unused=frozenset(outside if is_masked_lm else ()),
        others=others,
        task_type=task_type,
        fan_in_fan_out=family.fan_in_fan_out,
        in_blocks=in_blocks,
        experts=experts,
        refused=refused,
    )


def _tower(family: PeftFamily) -> tuple[str, ...]:
    """Last names of the linear modules of its encoders of images and sound."""
    if family in (QWEN3_5, QWEN3_5_MOE):
        return ("qkv", "proj", "linear_fc1", "linear_fc2")
    return OTHER_TOWERS if family is GEMMA4 else VISION_TOWER


def _in_blocks(
    stack: PeftFamily, backbone: Any, named: Mapping[str, str]
) -> Iterator[tuple[int, str, str]]:
    """The index of each block, with whole paths in it and what they are called."""
    kinds = getattr(backbone, "layer_types", None) or [None] * backbone.num_layers
    for i, kind in enumerate(kinds):
        block = stack.block.format(i)
        for path, name in named.items():
            needed = stack.kinds.get(path.partition("/")[0])
            if needed not in (None, kind):
                continue
            if path.startswith(MLP):
                # KerasHub gives it no name of its own, and Keras counts.
                mlp = backbone.get_layer(block).mlp.name
                path = f"{mlp}/{path.removeprefix(MLP)}"
            yield i, f"{block}/{path}", name


def _task(model: Any, name: str) -> tuple[bool, str | None]:
    """Whether transformers' model has a head, and PEFT's word for the task."""
    hub = keras_hub.models
    # Older releases of KerasHub have no embedders.
    if isinstance(model, (hub.Backbone, getattr(hub, "TextEmbedder", hub.Backbone))):
        return False, "FEATURE_EXTRACTION"
    if isinstance(model, hub.Seq2SeqLM):
        return True, "SEQ_2_SEQ_LM"
    if isinstance(model, hub.CausalLM):
        return True, "CAUSAL_LM"
    if isinstance(model, (hub.MaskedLM, hub.TextClassifier)):
        return True, None
    raise ValueError(
        "The model must be a backbone, or a task of the kind CausalLM, Seq2SeqLM, "
        f"MaskedLM, TextClassifier or TextEmbedder. Received: a {name}. Use "
        "`save_adapters`, or `merge_features` for a plain model."
    )
