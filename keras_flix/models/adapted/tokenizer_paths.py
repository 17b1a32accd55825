"""Whether a tokenizer does in a `tf.data` pipeline what it does everywhere else.

KerasHub tokenizes with TensorFlow's operations there, and with other libraries in
`generate`. There, byte-pair tokenizers let letters stand for special tokens for a
while: those of the 11th begin like those of the second, and become that.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import keras
import keras_hub
import numpy as np

from keras_flix import _compat
from keras_flix.features.host_values import host_value
from keras_flix.models.adapted import prompts
from keras_flix.models.adapted.text_lengths import Column

_garbled: weakref.WeakKeyDictionary[Any, dict[str, str]] = weakref.WeakKeyDictionary()
_finding = threading.Lock()

REMEDY = (
    "Pass lists, a generator, a `PyDataset` or a grain dataset, whose texts are "
    "tokenized as in `generate`."
)


def garbled_tokens(preprocessor: Any) -> dict[str, str]:
    """Special tokens that a `tf.data` pipeline spells otherwise, with both spellings.

    Each tokenizer is asked once.
    """
    tokenizer = preprocessor.tokenizer
    with _finding:
        if tokenizer not in _garbled:
            _garbled[tokenizer] = _find_garbled(tokenizer)
        return _garbled[tokenizer]


def _find_garbled(tokenizer: Any) -> dict[str, str]:
    # Byte-pair tokenizers have these, and take them out of texts before all else.
    tokens = sorted(set(getattr(tokenizer, "unsplittable_tokens", None) or []))
    if not tokens:
        return {}
    there, here = _compat.tokenized_both_ways(tokenizer, tokens)
    if there is None:
        return {}
    found = {}
    for token, one, other in zip(tokens, _lists(there), _lists(here)):
        if one != other:
            found[token] = f"{one} there and {other} elsewhere"
    return found


def _lists(tokens: Any) -> list[Any]:
    if hasattr(tokens, "to_list"):
        return tokens.to_list()
    if isinstance(tokens, (list, tuple)):
        return [_lists(t) if isinstance(t, (list, tuple)) else t for t in tokens]
    return np.asarray(host_value(tokens)).tolist()


def batch_check(
    preprocessor: Any, columns: list[Column]
) -> Callable[[Mapping[str, Any], Any], None]:
    """A function that raises for a batch which `tf.data` tokenizes otherwise.

    Args:
        preprocessor: A KerasHub preprocessor.
        columns: Its texts.

    Returns:
        A function of the texts by kind, and of the token ids that TensorFlow's
        operations made of them, or `None`. Compares those of its first batch with what
        is made of it outside of the pipeline, and looks for garbled special tokens in
        all.
    """
    garbled = garbled_tokens(preprocessor)
    compared: list[bool] = []

    def check(texts: Mapping[str, Any], ids: Any) -> None:
        for token, spelled in garbled.items():
            if any(token in text for text in _flat(list(texts.values()))):
                raise ValueError(_differs(f"the special token {token!r} is {spelled}"))
        if compared or ids is None:
            return
        compared.append(True)
        expected = _token_ids(preprocessor, columns, texts)
        if expected is None or np.array_equal(ids, expected):
            return
        row = int(np.flatnonzero((ids != expected).any(axis=-1))[0])
        raise ValueError(
            _differs(
                f"example {row} is {ids[row].tolist()} there and "
                f"{expected[row].tolist()} elsewhere"
            )
        )

    return check


def _differs(how: str) -> str:
    return (
        "A tokenizer must do in `tf.data` what it does in `generate`. Received: texts "
        f"in a `tf.data` dataset, of which {how}. {REMEDY}"
    )


def _flat(texts: Any) -> list[str]:
    if isinstance(texts, str):
        return [texts]
    return [text for part in texts for text in _flat(part)]


def _token_ids(preprocessor: Any, columns: list[Column], texts: Any) -> Any:
    """What is made of texts outside of the pipeline; `None` where that is random."""
    if isinstance(preprocessor, keras_hub.models.MaskedLMPreprocessor):
        return None
    if columns[0].key is None:
        own = texts[columns[0].kind]
    else:
        own = {column.key: texts[column.kind] for column in columns}
    if isinstance(own, Mapping) and prompts.takes_plain_strings(preprocessor):
        outputs = prompts.preprocess_prompts(preprocessor, own)
    else:
        outputs = preprocessor(own, y=None, sample_weight=None)
    x, _, _ = keras.utils.unpack_x_y_sample_weight(outputs)
    return np.asarray(
        host_value(x[columns[0].mask.replace("padding_mask", "token_ids")])
    )
