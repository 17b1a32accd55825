"""What the layers of KerasHub's families are called in Hugging Face transformers.

KerasHub loads these families from transformers' checkpoints by transposing and
reshaping kernels, never by reordering them. So the flattened kernel of an adapted
layer, `(d_in, d_out)`, is the transpose of transformers' weight, and `A` and `B` need
no change of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import keras_hub

from keras_flix.models.adapted.adaptation import adaptation_of, is_adapted


@dataclasses.dataclass(frozen=True)
class PeftFamily:
    """Names in one family.

    Attributes:
        base: Where transformers' models with a head keep the one without.
        block: The path of a block in KerasHub, by its index.
        layer: The name of that block in transformers.
        modules: By path in the block, the module's name in transformers. Layers
            that share a module make its outputs, side by side in this order.
        outside: The same for layers that are in no block.
        head: The same for the head of a classifier.
        embedding: The name of the embeddings of tokens.
        others: More linear modules that transformers' models have.
        fan_in_fan_out: Whether transformers keeps weights as `(d_in, d_out)`.
    """

    base: str
    block: str
    layer: str
    modules: Mapping[str, str]
    outside: Mapping[str, str] = dataclasses.field(default_factory=dict)
    head: Mapping[str, str] = dataclasses.field(default_factory=dict)
    embedding: str = "embed_tokens"
    others: tuple[str, ...] = ()
    fan_in_fan_out: bool = False


CLASSIFIER = "classifier"
"""What transformers' encoders call the head of a classifier."""

ATTENTION = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "attention_output": "self_attn.o_proj",
}

GEMMA = PeftFamily(
    base="model",
    block="decoder_block_{}",
    layer="layers.{}",
    modules={
        **{f"attention/{path}": module for path, module in ATTENTION.items()},
        "ffw_gating": "mlp.gate_proj",
        "ffw_gating_2": "mlp.up_proj",
        "ffw_linear": "mlp.down_proj",
    },
)

GEMMA4 = dataclasses.replace(
    GEMMA,
    modules={
        **GEMMA.modules,
        "per_layer_input_gate": "per_layer_input_gate",
        "per_layer_up_proj": "per_layer_projection",
    },
    outside={"per_layer_model_projection": "per_layer_model_projection"},
)

LLAMA = PeftFamily(
    base="model",
    block="transformer_layer_{}",
    layer="layers.{}",
    modules={
        **{f"self_attention/{path}": module for path, module in ATTENTION.items()},
        "feedforward_gate_dense": "mlp.gate_proj",
        "feedforward_intermediate_dense": "mlp.up_proj",
        "feedforward_output_dense": "mlp.down_proj",
    },
)

GPT2 = PeftFamily(
    base="transformer",
    block="transformer_layer_{}",
    layer="h.{}",
    modules={
        "self_attention/query": "attn.c_attn",
        "self_attention/key": "attn.c_attn",
        "self_attention/value": "attn.c_attn",
        "self_attention/attention_output": "attn.c_proj",
        "feedforward_intermediate_dense": "mlp.c_fc",
        "feedforward_output_dense": "mlp.c_proj",
    },
    embedding="wte",
    fan_in_fan_out=True,
)

BERT = PeftFamily(
    base="bert",
    block="transformer_layer_{}",
    layer="encoder.layer.{}",
    modules={
        "self_attention_layer/query": "attention.self.query",
        "self_attention_layer/key": "attention.self.key",
        "self_attention_layer/value": "attention.self.value",
        "self_attention_layer/attention_output": "attention.output.dense",
        "feedforward_intermediate_dense": "intermediate.dense",
        "feedforward_output_dense": "output.dense",
    },
    outside={"pooled_dense": "pooler.dense"},
    head={"logits": CLASSIFIER},
    embedding="embeddings.word_embeddings",
    others=("cls.predictions.transform.dense",),
)

FAMILIES: dict[str, PeftFamily] = {
    "GemmaBackbone": GEMMA,
    "Gemma3Backbone": GEMMA,
    "Gemma4Backbone": GEMMA4,
    "LlamaBackbone": LLAMA,
    "Llama3Backbone": LLAMA,
    "MistralBackbone": LLAMA,
    "QwenBackbone": LLAMA,
    "Qwen3Backbone": LLAMA,
    "GPT2Backbone": GPT2,
    "BertBackbone": BERT,
}
"""By the class of KerasHub's backbone. Gemma 2 is a `GemmaBackbone`."""

VISION_TOWER = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
"""The last names of the linear modules of Gemma 3's image encoder."""

OTHER_TOWERS = (*VISION_TOWER, "o_proj", "gate_proj", "up_proj", "down_proj")
"""The same for Gemma 4's image and sound encoders, as far as its decoder has such."""


@dataclasses.dataclass(frozen=True)
class PeftNames:
    """Names of one model in transformers.

    Attributes:
        modules: By path of a layer in Keras, the module's name.
        embedding: That of the embeddings of tokens.
        logits: That of an output head with weights of its own, where there is one.
        unused: Paths of layers that do not matter to what the model computes,
            and that transformers' model does not have.
        others: The names of further linear modules.
        task_type: As PEFT calls the model's task; `None` where it has no word
            for it.
        fan_in_fan_out: See `PeftFamily`.
        in_blocks: By a module's name, the index of its block, and what it is called
            there.
    """

    modules: Mapping[str, str]
    embedding: str
    logits: str | None
    unused: frozenset[str]
    others: tuple[str, ...]
    task_type: str | None
    fan_in_fan_out: bool
    in_blocks: Mapping[str, tuple[int, str]]

    def of_layers(self, paths: Iterable[str]) -> dict[str, list[str]]:
        """The adapted layers' paths by module, in the order of its outputs.

        Raises:
            ValueError: If transformers' model has nothing like one of the layers.
        """
        adapted = set(paths) - self.unused
        unknown = sorted(adapted - set(self.modules))
        if unknown or not adapted:
            unknown = unknown or sorted(self.unused)
            raise ValueError(
                "Every adapted layer must have a counterpart in Hugging Face "
                f"transformers. Received: {unknown[:4]}, which have none. Leave them "
                "out of `targets`, or use `merge_features`."
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
        raise ValueError(
            "The model must be a KerasHub task or backbone whose names in Hugging Face "
            f"transformers are known: {list(FAMILIES)}. Received: a "
            f"{name or class_name(model)}. Use `save_adapters`, or "
            "`merge_features` for a plain model."
        )
    family = FAMILIES[name]
    has_head, task_type = _task(model, class_name(model))
    prefix = f"{family.base}." if has_head else ""
    others = family.others
    encoders = ("vision_encoder", "audio_encoder")
    if any(getattr(backbone, encoder, None) is not None for encoder in encoders):
        tower = OTHER_TOWERS if family is GEMMA4 else VISION_TOWER
        others += tuple(f"vision_tower.{name}" for name in tower)
        prefix += "language_model."
    modules = {}
    in_blocks = {}
    for i in range(backbone.num_layers):
        for path, module in family.modules.items():
            full = f"{prefix}{family.layer.format(i)}.{module}"
            modules[f"{family.block.format(i)}/{path}"] = full
            in_blocks[full] = (i, module)
    outside = {path: f"{prefix}{module}" for path, module in family.outside.items()}
    is_masked_lm = isinstance(model, keras_hub.models.MaskedLM)
    if isinstance(model, keras_hub.models.TextClassifier):
        outside |= family.head
    return PeftNames(
        modules=modules if is_masked_lm else {**modules, **outside},
        embedding=f"{prefix}{family.embedding}",
        logits="lm_head" if isinstance(model, keras_hub.models.CausalLM) else None,
        unused=frozenset(outside if is_masked_lm else ()),
        others=others,
        task_type=task_type,
        fan_in_fan_out=family.fan_in_fan_out,
        in_blocks=in_blocks,
    )


def _task(model: Any, name: str) -> tuple[bool, str | None]:
    """Whether transformers' model has a head, and PEFT's word for the task."""
    hub = keras_hub.models
    # Older releases of KerasHub have no embedders.
    if isinstance(model, (hub.Backbone, getattr(hub, "TextEmbedder", hub.Backbone))):
        return False, "FEATURE_EXTRACTION"
    if isinstance(model, hub.CausalLM):
        return True, "CAUSAL_LM"
    if isinstance(model, (hub.MaskedLM, hub.TextClassifier)):
        return True, None
    raise ValueError(
        "The model must be a backbone, or a task of the kind CausalLM, MaskedLM, "
        f"TextClassifier or TextEmbedder. Received: a {name}. Use `save_adapters`, "
        "or `merge_features` for a plain model."
    )
