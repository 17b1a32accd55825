"""Which tokens' embeddings train whole, beside the adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_flix import _compat
from keras_flix.layers.token_rows import EMBEDDINGS
from keras_flix.models.targets import Placed

Tokens = Sequence[int | str] | None
"""As `enable_flix` takes them: ids, or what the model's tokenizer calls them."""


def find_tokens(
    model: Any, tokens: Tokens, walk: Sequence[Placed]
) -> dict[Any, list[int]]:
    """The embedding with the ids of the tokens that train; empty if none do.

    Args:
        model: The model, not adapted yet.
        tokens: See `enable_flix`.
        walk: All layers of the model.
    """
    if tokens is None or (isinstance(tokens, (list, tuple)) and not tokens):
        return {}
    if isinstance(tokens, str) or not isinstance(tokens, (list, tuple, set, range)):
        raise ValueError(
            "`trainable_tokens` must be a list of token ids, or of tokens as the "
            f"model's tokenizer has them. Received: trainable_tokens={tokens!r}. Pass "
            "a list."
        )
    layer = token_embedding(model, walk)
    tokenizer = getattr(getattr(model, "preprocessor", None), "tokenizer", None)
    ids = [_id_of(token, layer.input_dim, tokenizer) for token in tokens]
    return {layer: sorted(set(ids))}


def token_embedding(model: Any, walk: Sequence[Placed]) -> Any:
    """The embedding of a model's tokens; raises if there is none whose rows can train.

    Of a KerasHub model, it is what its backbone calls `token_embedding`.
    """
    backbone = getattr(model, "backbone", model)
    layer: Any = getattr(backbone, "token_embedding", None)
    if layer is None:
        found = [x for x, _ in walk if isinstance(x, keras.layers.Embedding)]
        layer = found[0] if len(found) == 1 else None
    if type(layer) not in EMBEDDINGS or not layer.built:
        kind = "none" if layer is None else f"a {type(layer).__name__}"
        raise ValueError(
            "`trainable_tokens` needs a built, stock Embedding or ReversibleEmbedding: "
            "the backbone's `token_embedding`, or the only one of the model. Received: "
            f"{kind}. Name a layer in `train` to train all of it."
        )
    if layer.quantization_mode is not None or layer.lora_rank:
        what = layer.quantization_mode or "a LoRA of Keras' own"
        raise ValueError(
            "Rows of an embedding that train must have floating-point weights beside "
            f"them. Received: layer {layer.path!r} with {what}. Quantize the model "
            "without it: `filters=lambda layer: not isinstance(layer, "
            "keras.layers.Embedding)`."
        )
    return layer


def _id_of(token: Any, size: int, tokenizer: Any) -> int:
    if isinstance(token, str):
        if tokenizer is None:
            raise ValueError(
                "Tokens are named by a tokenizer. Received: trainable_tokens with "
                f"{token!r}, and a model without a preprocessor. Pass ids."
            )
        try:
            found = tokenizer.token_to_id(token)
        except (KeyError, ValueError):
            found = None
        # Some give the id of what is unknown.
        if found is None or tokenizer.id_to_token(int(found)) != token:
            raise ValueError(
                "A token that trains must be one of the tokenizer's. Received: "
                f"{token!r}, which is not. Name one that it keeps unused, such as "
                "Gemma's '<unused0>', and put that into your texts."
            )
        token = int(found)
    if isinstance(token, bool) or not hasattr(token, "__index__"):
        raise ValueError(
            f"A token is an id or a string. Received: {token!r} in trainable_tokens. "
            "Correct it."
        )
    token = token.__index__()
    if not 0 <= token < size:
        raise ValueError(
            f"A token's id must be from 0 to {size - 1}, as the embedding has {size} "
            f"rows. Received: {token}. Correct it."
        )
    return int(token)


def placed_tokens(
    model: Any, tokens: Mapping[str, Sequence[int]], source: str
) -> dict[Any, list[int]]:
    """`find_tokens` of what was saved: ids by the path of their embedding.

    Args:
        model: A plain model.
        tokens: As saved.
        source: Where that is from, for messages.
    """
    found = {}
    for path, ids in tokens.items():
        layer = token_embedding(model, _compat.layers_with_parents(model))
        rising = ids and min(ids) >= 0 and list(ids) == sorted(set(ids))
        if layer.path != path or not rising or max(ids) >= layer.input_dim:
            raise ValueError(
                "Tokens that train must be rows of the model's embedding, in rising "
                f"order. Expected: {layer.path!r} with {layer.input_dim} rows. "
                f"Received: {list(ids)[:8]} of {path!r} in {source}. Use the base "
                "model that they were trained on."
            )
        found[layer] = list(ids)
    return found
