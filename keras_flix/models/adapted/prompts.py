"""Prompts with responses for causal LMs whose preprocessor takes plain strings.

KerasHub's newer preprocessors take `{"prompts", "responses"}` themselves and
train on the response only. Gemma's and others' take whole strings; for those,
the two segments are packed here, with the preprocessor's own tokenizer, special
tokens and length.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import keras_hub
from keras import tree

_one_at_a_time = threading.Lock()

PLAIN_KEYS = ("text", "inputs")
"""Keys under which a preprocessor's single input may be given."""


def takes_plain_strings(preprocessor: Any) -> bool:
    """Whether a causal LM's preprocessor takes whole strings, not prompts."""
    base = keras_hub.models.CausalLMPreprocessor
    return isinstance(preprocessor, base) and type(preprocessor).call is base.call


def plain_input(inputs: Any, keys: Sequence[str] = PLAIN_KEYS) -> Any:
    """The one input of a dict that names it, such as `{"text": [...]}`."""
    if isinstance(inputs, Mapping) and len(inputs) == 1:
        ((key, value),) = inputs.items()
        if key in keys:
            return value
    return inputs


def preprocess_prompts(preprocessor: Any, inputs: Mapping[str, Any]) -> Any:
    """Packs prompts with their responses; the loss is on the response only.

    Args:
        preprocessor: A KerasHub causal LM preprocessor for plain strings.
        inputs: Dict with `"prompts"` and `"responses"`.

    Returns:
        A tuple `(x, y, sample_weight)`: `x` has `token_ids` and
        `padding_mask`, `y` the next tokens, and `sample_weight` is true where
        the next token belongs to the response or ends it.
    """
    unknown = sorted(set(inputs) - {"prompts", "responses"})
    if unknown or "responses" not in inputs:
        raise ValueError(
            "Training a causal LM takes 'prompts' and 'responses', or 'text', "
            f"next to the features. Received: entries {sorted(inputs)}. Add the "
            "missing entry, or remove what is none of these and no feature."
        )
    # grain calls this from several threads, and Keras layers build themselves on
    # their first call: one thread at a time.
    with _one_at_a_time:
        return _pack_prompts(preprocessor, inputs)


def _pack_prompts(preprocessor: Any, inputs: Mapping[str, Any]) -> Any:
    tokenizer = preprocessor.tokenizer
    segments = tuple(tokenizer(inputs[key]) for key in ("prompts", "responses"))
    options = {
        "sequence_length": preprocessor.sequence_length + 1,
        "sep_value": [],
    }
    token_ids, segment_ids = _pack(
        preprocessor,
        segments,
        start_value=tokenizer.start_token_id,
        end_value=tokenizer.end_token_id,
        pad_value=tokenizer.pad_token_id,
        **options,
    )
    # Packed in the same way, ones mark what is not padding, also where a real
    # token has the id of the padding.
    ones = tuple(_ones_like(segment) for segment in segments)
    mask, _ = _pack(
        preprocessor, ones, start_value=1, end_value=1, pad_value=0, **options
    )
    x = {"token_ids": token_ids[..., :-1], "padding_mask": mask[..., :-1] == 1}
    return keras.utils.pack_x_y_sample_weight(
        x, token_ids[..., 1:], segment_ids[..., 1:] == 1
    )


def _pack(preprocessor: Any, segments: tuple[Any, ...], **options: Any) -> Any:
    packer = keras_hub.layers.MultiSegmentPacker(**options)
    return packer(
        segments,
        add_start_value=preprocessor.add_start_token,
        add_end_value=preprocessor.add_end_token,
    )


def _ones_like(segment: Any) -> Any:
    if isinstance(segment, (list, tuple)):
        return tree.map_structure(lambda _: 1, segment)
    return segment * 0 + 1
