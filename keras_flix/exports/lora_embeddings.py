"""The adapted embedding of a model as modules of transformers."""

from __future__ import annotations

from typing import Any

import keras
import keras_hub

from keras_flix.exports.lora_names import PeftNames
from keras_flix.layers.low_rank_embedding import LowRankEmbedding
from keras_flix.models.adapted.adaptation import adaptation_of


def embedding_modules(model: keras.Model, names: PeftNames) -> dict[str, str]:
    """The path of the adapted embedding, by its module, and by that of a tied head.

    Transformers has a module for a head that shares the weights, and PEFT adapts each
    module apart: so the update is written for both, as the adapted model has it.

    Args:
        model: An adapted model.
        names: What its layers are called in transformers.

    Raises:
        ValueError: If an embedding is adapted that transformers has no module for, or
            one that is shared by more modules than these.
    """
    backbone: Any = getattr(model, "backbone", model)
    found: dict[str, str] = {}
    for path, layer in adaptation_of(model).layers.items():
        if not isinstance(layer, LowRankEmbedding):
            continue
        if (
            names.embedding is None
            or isinstance(model, keras_hub.models.MaskedLM)
            or layer is not getattr(backbone, "token_embedding", None)
        ):
            raise ValueError(
                "An adapted embedding can be written as a LoRA if it is that of the "
                "tokens, and one module of transformers has it, or two with a tied "
                f"`lm_head`. Received: layer {path!r} of a {type(model).__name__}. "
                "Use `merge_features`, or `export_merged`."
            )
        found[names.embedding] = path
        # Without a head, no logits are computed.
        if getattr(layer, "tie_weights", False) and names.logits is not None:
            found[names.logits] = path
    return found
