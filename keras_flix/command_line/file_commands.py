"""`inspect` and `diff`: adapter files, without a model."""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np

from keras_flix._utils.displayed import count as counted
from keras_flix._utils.text_tables import number
from keras_flix.analysis.updates import update_norms
from keras_flix.command_line.output import Answer, Table
from keras_flix.files.adapter_file import Adapters, read_adapters
from keras_flix.layers.factors import Factors, side_by_side

SHOWN = 12
"""So many layers are listed, unless all are asked for."""


def inspect(arguments: argparse.Namespace) -> Answer:
    """What is in an adapter file."""
    adapters = read_adapters(arguments.file)
    sizes = {layer: _size(adapters, layer) for layer in adapters.layers}
    norms = update_norms(adapters).total
    parameters = {
        f.name: sum(
            t.size for layer in adapters.layers for t in adapters.pair(layer, f.name)
        )
        for f in adapters.schema
    }
    base = adapters.base
    data = {
        "file": str(arguments.file),
        "bytes": sum(table.nbytes for table in adapters.tables.values()),
        "base": None if base is None else base.digest,
        "trained": {name: list(t.shape) for name, t in adapters.trained.items()},
        "tokens": {path: list(ids) for path, ids in adapters.tokens.items()},
        "alpha": adapters.alpha,
        "scale": adapters.scale,
        "features": adapters.schema.get_config()["features"],
        "parameters": parameters,
        "layers": {layer: list(size) for layer, size in sizes.items()},
        "places": {name: list(paths) for name, paths in adapters.places.items()},
        "ranks": {name: dict(by_path) for name, by_path in adapters.ranks.items()},
        "experts": dict(adapters.experts),
        "norms": {
            f.name: [[v, _finite(n)] for v, n in zip(f.values, norms[f.name])]
            for f in adapters.schema
        },
    }
    fingerprint = "none" if base is None else f"{base.digest} "
    if base is not None:
        fingerprint += f"({len(base.variables)} variables)"
    lines = [
        f"{arguments.file}: {data['bytes'] / 1e6:,.1f} MB of adapter weights",
        f"base: {fingerprint}",
        f"alpha: {adapters.alpha}",
        f"layers: {len(sizes)}",
    ]
    if adapters.trained:
        lines.insert(2, f"trained besides: {', '.join(_some(list(adapters.trained)))}")
    if adapters.experts:
        count = len(adapters.experts)
        lines.append(f"experts: each has adapters of its own, in {count} kernels")
    shown = list(sizes.items())[: None if arguments.all_layers else SHOWN]
    lines += [f"  {layer} {size}" for layer, size in shown]
    if len(shown) < len(sizes):
        lines.append(f"  ... (--all-layers lists {len(sizes) - len(shown)} more)")
    tables = []
    for feature in adapters.schema:
        kind = "always active" if feature.always else "one per example"
        kind = "several per example" if feature.multiple else kind
        own = "" if feature.alpha is None else f", scale {feature.scaling}"
        own += _own_ranks(adapters, feature.name)
        count = len(adapters.layers_of(feature.name))
        own += f", in {count} of {len(sizes)} layers" if count < len(sizes) else ""
        title = (
            f"{feature.name}: {kind}, dropout {feature.dropout}{own}, "
            f"{parameters[feature.name]:,} parameters"
        )
        rows = [
            [str(value), str(rank), number(norm)]
            for value, rank, norm in zip(
                feature.values, feature.ranks, norms[feature.name]
            )
        ]
        tables.append(Table(title, [["value", "rank", "norm"], *rows]))
    return Answer(data, ["\n".join(lines), *tables])


def diff(arguments: argparse.Namespace) -> Answer:
    """What differs between two adapter files; exit code 1 if anything does."""
    a, b = (read_adapters(place) for place in (arguments.a, arguments.b))
    notes = [*_schema_notes(a, b), *_layer_notes(a, b)]
    if a.base is not None and b.base is not None:
        changed = a.base.differences(b.base)
        if changed:
            notes.append(f"base: other weights at {', '.join(_some(changed))}")
        settings = a.base.other_settings(b.base)
        if settings:
            notes.append(f"base: other settings: {'; '.join(_some(settings))}")
    trained = [
        name
        for name in sorted(a.trained.keys() | b.trained.keys())
        if not (name in a.trained and name in b.trained)
        or not np.array_equal(a.trained[name], b.trained[name])
    ]
    if trained:
        notes.append(f"trained besides: another {', '.join(_some(trained))}")
    if a.tokens != b.tokens:
        notes.append(f"tokens that train: {dict(a.tokens)} -> {dict(b.tokens)}")
    layers = [layer for layer in a.layers if layer in b.layers]
    layers = [
        layer
        for layer in layers
        if _size(a, layer) == _size(b, layer) and _kind(a, layer) == _kind(b, layer)
    ]
    values: dict[str, list[list[Any]]] = {}
    rows = []
    for feature in a.schema:
        if feature.name not in b.schema:
            continue
        known = b.schema[feature.name]
        shared = [value for value in feature.values if value in known]
        found = _relative_differences(a, b, feature.name, shared, layers)
        kept = [
            pair for pair in zip(shared, found) if not pair[1] <= arguments.tolerance
        ]
        values[feature.name] = [[value, _finite(x)] for value, x in kept]
        rows += [[f"{feature.name}={value}", number(x)] for value, x in kept]
    differ = bool(notes or rows)
    data = {"different": differ, "notes": notes, "values": values}
    blocks: list[str | Table] = ["\n".join(notes)] if notes else []
    if rows:
        title = "relative differences of the updates, over the layers of both"
        blocks.append(Table(title, [["value", "difference"], *rows]))
    return Answer(data, blocks, int(differ))


def _size(adapters: Adapters, layer: str) -> tuple[int, int]:
    a, b = adapters.pair(layer, adapters.schema.names[0])
    return int(a.shape[1]), int(b.shape[2])


def _own_ranks(adapters: Adapters, feature: str) -> str:
    """The ranks of a feature in layers with one of their own, for a title."""
    ranks = adapters.ranks.get(feature, {})
    numbers = sorted(set(ranks.values()))
    shown = ", ".join(map(str, numbers))
    return f", of rank {shown} in {counted(len(ranks), 'layer')}" if ranks else ""


def _finite(x: float) -> float | None:
    return float(x) if math.isfinite(x) else None


def _some(names: list[str]) -> list[str]:
    return names[:3] + [f"{len(names) - 3} more"] * (len(names) > 3)


def _schema_notes(a: Adapters, b: Adapters) -> list[str]:
    notes = []
    for one, other, mark in ((a, b, "-"), (b, a, "+")):
        for feature in one.schema:
            if feature.name not in other.schema:
                notes.append(f"{mark} feature {feature.name}")
                continue
            known = other.schema[feature.name]
            new = [value for value in feature.values if value not in known]
            notes += [f"{mark} {feature.name}={value}" for value in new]
    for feature in a.schema:
        if feature.name not in b.schema:
            continue
        other_feature = b.schema[feature.name]
        both = set(feature.values) & set(other_feature.values)
        orders = [[v for v in f.values if v in both] for f in (feature, other_feature)]
        if orders[0] != orders[1]:
            notes.append(f"{feature.name}: the values are in another order")
        ranks = [dict(zip(f.values, f.ranks)) for f in (feature, other_feature)]
        for value in orders[0]:
            if ranks[0][value] != ranks[1][value]:
                change = f"{ranks[0][value]} -> {ranks[1][value]}"
                notes.append(f"{feature.name}={value}: rank {change}")
        for name in ("dropout", "multiple", "always", "alpha"):
            pair = [getattr(f, name) for f in (feature, other_feature)]
            if pair[0] != pair[1]:
                notes.append(f"{feature.name}: {name} {pair[0]} -> {pair[1]}")
        by = [f.scaling.by for f in (feature, other_feature)]
        if by[0] != by[1]:
            notes.append(f"{feature.name}: scale {by[0]} -> {by[1]}")
    return notes


def _layer_notes(a: Adapters, b: Adapters) -> list[str]:
    notes = [f"- layer {layer}" for layer in a.layers if layer not in b.layers]
    notes += [f"+ layer {layer}" for layer in b.layers if layer not in a.layers]
    for layer in a.layers:
        if layer in b.layers and _size(a, layer) != _size(b, layer):
            notes.append(f"layer {layer}: {_size(a, layer)} -> {_size(b, layer)}")
        elif layer in b.layers and _kind(a, layer) != _kind(b, layer):
            notes.append(f"layer {layer}: {_kind(a, layer)} -> {_kind(b, layer)}")
    for name in a.schema.names:
        if name in b.schema:
            notes += _rank_notes(a, b, name)
            own, other = (
                {layer for layer in x.layers_of(name) if layer in y.layers}
                for x, y in ((a, b), (b, a))
            )
            notes += [f"{name}: - layer {layer}" for layer in sorted(own - other)]
            notes += [f"{name}: + layer {layer}" for layer in sorted(other - own)]
    return notes


def _rank_notes(a: Adapters, b: Adapters, name: str) -> list[str]:
    """Layers in which a feature has another rank than its own in one of two files."""
    notes = []
    for layer in a.layers:
        ranks = [x.ranks.get(name, {}).get(layer) for x in (a, b)]
        if layer in b.layers and ranks[0] != ranks[1]:
            own, other = ("as in others" if r is None else r for r in ranks)
            notes.append(f"{name}: rank {own} -> {other} in layer {layer}")
    return notes


def _kind(adapters: Adapters, layer: str) -> str:
    count = adapters.experts.get(layer, 1)
    return f"adapters of {count} experts" if count > 1 else "one adapter"


def _relative_differences(
    a: Adapters, b: Adapters, feature: str, values: list[Any], layers: list[str]
) -> list[float]:
    """`|update of a - update of b| / |update of a|` of each value, over all layers."""
    rows = [[x.schema[feature].id_of(value) for value in values] for x in (a, b)]
    squares = np.zeros((2, len(values)))
    same = np.ones(len(values), bool)
    for layer in layers if values else ():
        scales = [
            np.asarray(x.feature_in(layer, feature).scales)[ids]
            for x, ids in zip((a, b), rows)
        ]
        same &= scales[0] == scales[1]
        pairs = [
            [table[ids] for table in x.pair(layer, feature)]
            for x, ids in zip((a, b), rows)
        ]
        for one, other in zip(*pairs):
            same &= _equal_rows(one, other)
        factors = [
            (pair[0] * scale[:, None, None], pair[1])
            for pair, scale in zip(pairs, scales)
        ]
        own, (left, right) = factors
        difference = side_by_side([own, (-left, right)])
        for i, (x, y) in enumerate([difference, own]):
            experts = a.experts.get(layer, 1)
            squares[i] += Factors.of(x, y, [1.0] * len(x), experts).norms ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        # The same bits are no difference, whatever their sums round to.
        return np.where(same, 0.0, np.sqrt(squares[0] / squares[1])).tolist()


def _equal_rows(one: np.ndarray, other: np.ndarray) -> Any:
    if one.shape != other.shape:
        return False
    return np.array([np.array_equal(x, y, equal_nan=True) for x, y in zip(one, other)])
