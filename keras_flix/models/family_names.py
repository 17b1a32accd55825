"""How KerasHub's families call what is adapted, and what is not by default."""

from __future__ import annotations

import re

ATTENTION_PROJECTIONS = re.compile(
    r"(query|key|value|output)(_(dense|projector|proj|layer))?|receptance"
    r"|(attention_)?qkv|attention_(output|projection)|query_key_value"
    r"|[qkvo]_(proj|dense_layer)|out_proj|in_proj_(qkv|z)"
)
"""Names that KerasHub's families give to the projections of attention."""

ATTENTION = re.compile(r".*(attention|attn|mha|time_?mix|mixer).*", re.IGNORECASE)
"""Names, or classes, of the layers right around them."""

NEVER_BY_DEFAULT = re.compile(
    r"(?!per_layer_input_gate)(.*[/_])?(logits|gate|experts?|embeddings?)|.*router.*"
    r"|(.*expert|sparse_feedforward)_gate_dense|(prediction|correction)_coefs"
)
"""Routers, expert gates and embeddings, and the coefficients by which Gemma3n
mixes its streams: only when named."""

UNTRAINED = "diffusion_self_conditioning"
"""What DiffusionGemma reads its last guess by. A training step multiplies its outputs
by zero, so what is adapted inside of it would never train: only when named."""

EXPERTS = re.compile(r".*(Experts|MoEBlock)")
"""The classes of layers whose variables `(experts, d_in, d_out)` are kernels."""

SCALED_EMBEDDINGS = "Gemma3nTextScaledWordEmbedding"
"""The class around Gemma3n's embeddings, whose logits take the rows without a call, as
they were when the task was made."""

HEADS = re.compile(r"(.*_)?head")
"""Heads inside of KerasHub's backbones, such as RWKV7's."""

OTHER_MEDIA = (
    "vision_encoder",
    "vit_encoder",
    "audio_encoder",
    "qformer",
    "embed_vision",
    "embed_audio",
)
"""Where backbones of language models keep what reads images and sound."""

UNKNOWN_ROWS = re.compile("(BLIP2|Blip2|Flux|PARSeq|StableDiffusion3|SAM3).*")
"""Models of KerasHub of whose rows no test knows, or that double them to be guided."""
