"""What the layers of KerasHub's families are called in Hugging Face transformers.

KerasHub loads these families from transformers' checkpoints by transposing and
reshaping kernels, never by reordering them. So the flattened kernel of an adapted
layer, `(d_in, d_out)`, is the transpose of transformers' weight, and `A` and `B` need
no change of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


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
        embedding: The name of the embeddings of tokens; `None` where several
            modules share them, of which PEFT would train one.
        others: More linear modules that transformers' models have.
        fan_in_fan_out: Whether transformers keeps weights as `(d_in, d_out)`.
        kinds: By the first part of a path in the block, the kind of block that has
            it, where a backbone's `layer_types` tells kinds.
        decoder: The blocks of a decoder, besides those of an encoder.
        experts: By path of a kernel of experts in the block, the name of the parameter
            in transformers. Kernels that share one make its outputs, side by side.
        refused: By path in the block, why PEFT would take a module for something else.
    """

    base: str
    block: str
    layer: str
    modules: Mapping[str, str]
    outside: Mapping[str, str] = dataclasses.field(default_factory=dict)
    head: Mapping[str, str] = dataclasses.field(default_factory=dict)
    embedding: str | None = "embed_tokens"
    others: tuple[str, ...] = ()
    fan_in_fan_out: bool = False
    kinds: Mapping[str, str] = dataclasses.field(default_factory=dict)
    decoder: PeftFamily | None = None
    experts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)


MLP = "{mlp}/"
"""What begins the paths of a block's `mlp` where KerasHub gives it no name."""

GATE_UP, DOWN = "experts.gate_up_proj", "experts.down_proj"
"""The parameters of all experts of a layer, from version 5 of transformers on."""

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
    experts={
        "moe_expert_bank/gate_proj": GATE_UP,
        "moe_expert_bank/up_proj": GATE_UP,
        "moe_expert_bank/down_proj": DOWN,
    },
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

SMOLLM3 = PeftFamily(
    base="model",
    block="transformer_layer_{}",
    layer="layers.{}",
    # KerasHub has transformers' own names here.
    modules={
        module.replace(".", "/"): module
        for module in (
            *ATTENTION.values(),
            *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
        )
    },
)

LINEAR_ATTENTION = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj")

QWEN3_5 = dataclasses.replace(
    LLAMA,
    modules={
        **LLAMA.modules,
        **{f"linear_attn/{name}": f"linear_attn.{name}" for name in LINEAR_ATTENTION},
    },
    kinds={"self_attention": "full_attention", "linear_attn": "linear_attention"},
)

SHARED_EXPERT = {
    "feedforward_gate_dense": "mlp.shared_expert.gate_proj",
    "feedforward_intermediate_dense": "mlp.shared_expert.up_proj",
    "feedforward_output_dense": "mlp.shared_expert.down_proj",
}


def _experts(place: str, gates: tuple[str, ...], output: str) -> dict[str, str]:
    """Kernels of experts by path, those of the gate and the inputs in `gates`."""
    named = {f"{place}/{gate}": f"mlp.{GATE_UP}" for gate in gates}
    return named | {f"{place}/{output}": f"mlp.{DOWN}"}


ONLY_ATTENTION = {f"self_attention/{path}": name for path, name in ATTENTION.items()}

MIXTRAL = dataclasses.replace(
    LLAMA,
    modules=ONLY_ATTENTION,
    experts=_experts(
        "mixtral_sparse_moe_block/experts",
        ("expert_feedforward_gate_dense", "expert_feedforward_intermediate_dense"),
        "expert_feedforward_output_dense",
    ),
)

QWEN_EXPERTS = (("expert_feedforward_gate_dense",), "expert_feedforward_output_dense")

QWEN_MOE = dataclasses.replace(
    LLAMA,
    modules={
        **ONLY_ATTENTION,
        **{f"{MLP}shared_expert_dense/{k}": name for k, name in SHARED_EXPERT.items()},
    },
    experts=_experts("qwen_sparse_moe_block/experts", *QWEN_EXPERTS),
)

QWEN3_MOE = dataclasses.replace(
    LLAMA,
    modules=ONLY_ATTENTION,
    experts=_experts("qwen3_sparse_moe_block/experts", *QWEN_EXPERTS),
    refused={
        f"{MLP}{path}": "PEFT takes the names gate_proj, up_proj and down_proj for "
        "those of experts in this family"
        for path in SHARED_EXPERT
    },
)

QWEN3_5_MOE = dataclasses.replace(
    QWEN3_5,
    modules={
        **{k: v for k, v in QWEN3_5.modules.items() if not v.startswith("mlp.")},
        **{
            f"sparse_moe_block/shared_expert/{path}": name
            for path, name in SHARED_EXPERT.items()
        },
    },
    experts=_experts("sparse_moe_block/experts", *QWEN_EXPERTS),
)

GPT_OSS = dataclasses.replace(
    LLAMA,
    modules=ONLY_ATTENTION,
    experts=_experts("sparse_moe_block/experts", ("gate_up_proj",), "down_proj"),
)

ROBERTA = dataclasses.replace(
    BERT,
    base="roberta",
    # Its classifiers have their own, and no other task reads it.
    outside={},
    head={"pooled_dense": "classifier.dense", "logits": "classifier.out_proj"},
    others=("pooler.dense", "lm_head.dense"),
)

DISTILBERT = PeftFamily(
    base="distilbert",
    block="transformer_layer_{}",
    layer="transformer.layer.{}",
    modules={
        "self_attention_layer/query": "attention.q_lin",
        "self_attention_layer/key": "attention.k_lin",
        "self_attention_layer/value": "attention.v_lin",
        "self_attention_layer/attention_output": "attention.out_lin",
        "feedforward_intermediate_dense": "ffn.lin1",
        "feedforward_output_dense": "ffn.lin2",
    },
    head={"pooled_dense": "pre_classifier", "logits": CLASSIFIER},
    embedding="embeddings.word_embeddings",
)


def _bart(keras: Mapping[str, str]) -> dict[str, str]:
    """By path, the modules of a block with these attentions, by transformers' name."""
    parts = {**ATTENTION, "attention_output": "self_attn.out_proj"}
    modules = {
        f"{path}/{part}": module.replace("self_attn", attention)
        for path, attention in keras.items()
        for part, module in parts.items()
    }
    dense = {"intermediate": "fc1", "output": "fc2"}
    return modules | {f"feedforward_{k}_dense": name for k, name in dense.items()}


BART = PeftFamily(
    base="model",
    block="transformer_encoder_layer_{}",
    layer="encoder.layers.{}",
    modules=_bart({"self_attention_layer": "self_attn"}),
    embedding=None,
    decoder=PeftFamily(
        base="model",
        block="transformer_decoder_layer_{}",
        layer="decoder.layers.{}",
        modules=_bart(
            {"self_attention": "self_attn", "cross_attention": "encoder_attn"}
        ),
    ),
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
    "Qwen3_5Backbone": QWEN3_5,
    "MixtralBackbone": MIXTRAL,
    "QwenMoeBackbone": QWEN_MOE,
    "Qwen3MoeBackbone": QWEN3_MOE,
    "Qwen3_5MoeBackbone": QWEN3_5_MOE,
    "GptOssBackbone": GPT_OSS,
    "SmolLM3Backbone": SMOLLM3,
    "GPT2Backbone": GPT2,
    "BertBackbone": BERT,
    "RobertaBackbone": ROBERTA,
    "XLMRobertaBackbone": ROBERTA,
    "DistilBertBackbone": DISTILBERT,
    "BartBackbone": BART,
}
"""By the class of KerasHub's backbone. Gemma 2 is a `GemmaBackbone`."""

VISION_TOWER = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
"""The last names of the linear modules of Gemma 3's image encoder."""

OTHER_TOWERS = (*VISION_TOWER, "o_proj", "gate_proj", "up_proj", "down_proj")
"""The same for Gemma 4's image and sound encoders, as far as its decoder has such."""

NOT_LOADED = (
    "KerasHub loads none of transformers' checkpoints of this family, so nothing could "
    "show that its layers are theirs"
)
"""Why a family that transformers has is refused."""

REFUSED: dict[str, str] = {
    "BloomBackbone": NOT_LOADED,
    "FalconBackbone": NOT_LOADED,
    "GPTNeoXBackbone": NOT_LOADED,
    "OPTBackbone": NOT_LOADED,
    "Phi3Backbone": NOT_LOADED,
    "T5Backbone": NOT_LOADED,
}
"""Families that transformers has and that are not exported, with the reason."""
