"""One combination of values in one adapted layer, as the factors of a LoRA."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from keras import ops

from keras_flix import _compat
from keras_flix.features.encoding import ABSENT
from keras_flix.features.feature import Feature
from keras_flix.layers.factors import side_by_side
from keras_flix.layers.low_rank_layer import LowRankLayer
from keras_flix.layers.low_rank_update import ActiveValues, FeatureTables

Ids = Mapping[str, np.ndarray]
"""Ids of one example by feature, as `FeatureSchema.encode_one` gives them."""


def ids_of(feature: Feature, ids: Ids) -> np.ndarray:
    """The ids of a feature, which need no entry if it is always active."""
    if feature.always and feature.name not in ids:
        return np.zeros((1,), "int32")
    return ids[feature.name]


def own_columns(feature: Feature, ids: np.ndarray, experts: int = 1) -> list[int]:
    """Which of the columns `FeatureTables.gather` gives are of a value's own rank.

    Those of `experts` adapters stand side by side along the rank.
    """
    rows = ids[0, :, 0] if ids.ndim == 3 else ids.ravel()
    width = max(feature.ranks) * experts
    return [
        slot * width + column
        for slot, row in enumerate(rows)
        if row != ABSENT
        for column in range(feature.ranks[row] * experts)
    ]


def host_tables(layer: LowRankLayer, split: bool) -> list[FeatureTables]:
    """The tables of a layer: on the host, if processes hold parts of them."""
    # Their scales are taken from the layer's own features.
    tables = [
        dataclasses.replace(table, relative=1.0) for table in layer._tables.by_feature()
    ]
    if not split:
        return tables
    # Read here, where all processes come by: only the first one writes.
    return [
        dataclasses.replace(
            table, a=_compat.to_host(table.a), b=_compat.to_host(table.b)
        )
        for table in tables
    ]


def combined_factors(
    path: str,
    features: Mapping[str, Feature],
    tables: Sequence[FeatureTables],
    ids: Ids,
    scaled: bool = True,
    experts: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """`A (d_in, rank)` and `B (rank, d_out)` of one combination: ranks side by side."""
    pairs = []
    for table in tables:
        feature = features[table.name]
        own = ids_of(feature, ids)
        active = ActiveValues.from_ids(
            ops.convert_to_tensor(own, "int32"),
            len(feature.values),
            scale=feature.common_scale if scaled else 1.0,
        )
        a, b = (ops.convert_to_numpy(part)[0] for part in table.gather(active))
        columns = own_columns(feature, own, experts)
        beyond = np.delete(np.any(a, axis=0) & np.any(b, axis=1), columns)
        if np.any(beyond) or not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise ValueError(
                "The adapter weights of a combination must be finite, and zero beyond "
                f"its values' ranks {list(feature.ranks)}. Received: other numbers in "
                f"feature {feature.name!r} of layer {path!r}. Train again, or load "
                "the file that `save_adapters` wrote."
            )
        pairs.append((a[:, columns], b[columns]))
    return side_by_side(pairs)
