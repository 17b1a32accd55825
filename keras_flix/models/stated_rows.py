"""Which orders the rows of targets are in, as far as that is known or stated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import keras_hub

from keras_flix.features.schema import FeatureSchema
from keras_flix.layers.row_orders import KERAS_HUB, Orders, as_orders
from keras_flix.layers.token_rows import EMBEDDINGS
from keras_flix.models.family_names import UNKNOWN_ROWS
from keras_flix.models.targets import Placed, paths_matching

Rows = Mapping[str, "str | Sequence[str] | None"] | None
"""The order of rows by target, as `enable_flix` takes it."""


def stated_orders(rows: Rows, layers: Mapping[str, Any]) -> dict[str, Orders]:
    """What `rows` of `enable_flix` says of the targets, by their paths."""
    stated: dict[str, Orders] = {}
    for target, orders in (rows or {}).items():
        found = paths_matching(
            target,
            layers,
            "`rows` must name targets, by name or by a regex of the whole path. "
            f"Received: {target!r}, which matches none.",
        )
        one = [orders] if isinstance(orders, str) else orders or ()
        stated |= dict.fromkeys(found, as_orders(one))
    return stated


def orders_of_family(model: Any, walk: Sequence[Placed]) -> Orders | None:
    """The orders that all layers of a model may have, if it is known for its family.

    `None` for a model that is not KerasHub's own, down to its layers.
    """
    if not isinstance(model, (keras_hub.models.Task, keras_hub.models.Backbone)):
        return None
    if UNKNOWN_ROWS.fullmatch(type(model).__name__):
        return None
    for layer, parents in [(model, ()), *walk]:
        if any(isinstance(x, keras_hub.models.Preprocessor) for x in (layer, *parents)):
            continue
        room = type(layer).__module__.partition(".")[0]
        if room not in ("keras", "keras_hub") or isinstance(layer, keras.layers.Lambda):
            return None
    return KERAS_HUB


def orders_by_path(
    layers: Mapping[str, Any], known: Orders | None, schema: FeatureSchema
) -> dict[str, Orders | None]:
    """The orders of the rows of targets, where those of all of a model are known.

    Of embeddings, that is those of tokens: others are looked up by positions, too.
    """
    return {
        path: None
        if isinstance(layer, EMBEDDINGS)
        and layer.name != "token_embedding"
        and schema.routed
        else known
        for path, layer in layers.items()
    }
