"""`score` of a causal LM with features."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from keras_flix import _compat
from keras_flix.features.input_entries import split_entries
from keras_flix.layers.active_scope import routing_scope
from keras_flix.models.adapted.default_features import default_entries
from keras_flix.models.adapted.thread_lock import take_turns


@take_turns
class RoutedScore(_compat.Mixin):
    """The part of an adapted causal LM that scores token ids."""

    def score(self, token_ids: Any, *args: Any, **kwargs: Any) -> Any:
        """As the model's own `score`, with feature entries in a dict.

        Args:
            token_ids: A dict of `token_ids`, int `(batch, length)`, and if need be
                of further arguments such as `padding_mask`, with one entry per
                feature as for `generate`. Only token ids, where features need not be
                stated: within `adapters_disabled` or `use_features`, for one.
            *args: As for the model's own `score`.
            **kwargs: As for the model's own `score`.

        Example:

        ```python
        ids = keras.ops.array([[2, 5, 6], [2, 7, 8]])
        features = {"task": "qa", "language": ["en", "sw"]}
        logits = gemma.score({"token_ids": ids, **features})
        ```
        """
        own, entries = split_entries(token_ids, self._adaptation.schema)
        signature = inspect.signature(super().score)
        if isinstance(own, Mapping):
            names = list(signature.parameters)
            if args or not {"token_ids"} <= set(own) <= set(names) - set(kwargs):
                raise ValueError(
                    f"A dict for `score` must hold 'token_ids', others of {names} "
                    "that are not given besides, and the features "
                    f"{self._adaptation.schema.names}; what is beside the dict, is "
                    f"given by name. Received: entries {sorted(own)}, {len(args)} "
                    f"arguments by position, and {sorted(kwargs)} by name. State "
                    "each once."
                )
            kwargs = {**own, **kwargs}
        else:
            kwargs = signature.bind(own, *args, **kwargs).arguments
        entries |= default_entries(self._adaptation, kwargs["token_ids"], entries)
        _, routing = self._routed({**entries, "token_ids": kwargs["token_ids"]}, None)
        with routing_scope(routing):
            return super().score(**kwargs)
