"""Adapter files: what is in them, written and read without a model. No pickle."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from keras_flix._utils.atomic_files import (
    MissingFileError,
    check_folder,
    write_whole,
)
from keras_flix._utils.displayed import Displayed, Rows, count, cut, some
from keras_flix._utils.renamed import renamed_keyword
from keras_flix.features.feature import Feature
from keras_flix.features.scaling import check_scale
from keras_flix.features.schema import FeatureSchema
from keras_flix.files.file_errors import check_header_size, errors_name, shown
from keras_flix.files.fingerprint import BaseFingerprint
from keras_flix.files.hub_handles import adapter_file
from keras_flix.files.stand_ins import (
    check_tables,
    checked_experts,
    checked_places,
    checked_ranks,
    empty,
    pairs_of,
    stand_ins,
    table_names,
)
from keras_flix.layers.factors import Factors
from keras_flix.layers.row_orders import as_orders

SUFFIX = ".flix.safetensors"
FORMAT_VERSION = 1
WITH_TRAINED_BASE = 2
"""The format version of files that hold more than adapters: 0.1 would refuse them as
damaged."""
HEADER = "keras_flix"
"""What safetensors' metadata of a file holds: JSON."""
ENTRIES = {
    *("version", "schema", "alpha", "scale", "layers", "base", "rows", "trained"),
    *("places", "tokens", "ranks", "experts"),
}
DIGEST = re.compile(r', "digest": "([0-9a-f]{32})"\}$')
"""How that ends; files of earlier versions have no digest."""
WITH_PLACES = 3
"""That of files in which not every layer has every feature."""
WITH_RANKS = 4
"""That of files in which layers have ranks, or experts adapters, of their own."""
VERSIONS = (FORMAT_VERSION, WITH_TRAINED_BASE, WITH_PLACES, WITH_RANKS)
MAX_HEADER = 16 * 2**20
"""Bytes of a file that are not tables. Parsed, they take many times that much."""


@dataclasses.dataclass(frozen=True, repr=False)
class Adapters(Displayed):
    """The adapters of a model: what an adapter file holds.

    Attributes:
        source: Where they come from, for messages.
        schema: The features, with ranks, dropout rates and scales resolved.
        alpha: As given to `enable_flix`, for features that are added later.
        scale: Likewise.
        layers: The keys of the adapted layers.
        tables: The adapter weights, by `layer/flix_<feature>_<a or b>`: arrays of
            shape `(values, d_in, rank)` and `(values, rank, d_out)`.
        base: The fingerprint of the base; `None` in files that have none.
        rows: The orders of rows that `enable_flix` was told, by layer.
        trained: What trained besides the adapters, such as a head: float32 arrays by
            the path of the variable. The fingerprint is without them.
        places: By feature, the layers that it has adapter weights in; those that are in
            all are not named.
        tokens: The tokens whose rows are among these, by the path of an embedding.
        ranks: By feature, the rank of all values in layers with one of their own.
        experts: How many experts have adapters of their own, by path of their kernel:
            that many stand side by side along the rank.
    """

    source: str
    schema: FeatureSchema
    alpha: float | None
    layers: list[str]
    tables: Mapping[str, np.ndarray]
    base: BaseFingerprint | None = None
    rows: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    trained: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    scale: str = "rank"
    places: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    tokens: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)
    ranks: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    experts: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def _line(self) -> str:
        layers = count(len(self.layers), "layer")
        features = some(self.schema.names)
        return f"Adapters({cut(self.source)!r}, {layers}, features {features})"

    def _tables(self) -> Iterable[tuple[str, Rows]]:
        return self.schema._tables()

    @property
    def tensors(self) -> dict[str, np.ndarray]:
        """All arrays, by their names in the file."""
        return {**self.tables, **self.trained}

    def layers_of(self, feature: str) -> Sequence[str]:
        """The layers that a feature has adapter weights in."""
        return self.places.get(feature, self.layers)

    def feature_in(self, layer: str, feature: str) -> Feature:
        """A feature with the ranks that it has in a layer."""
        return self.schema[feature].with_rank(self.ranks.get(feature, {}).get(layer))

    @renamed_keyword("axis", "feature")
    def pair(self, layer: str, feature: str) -> tuple[np.ndarray, np.ndarray]:
        """A feature's adapter weights in a layer: `(values, d_in, rank)` and
        `(values, rank, d_out)`; of rank 0 in layers where it has none. Raises if they
        are not as the schema says."""
        own = self.feature_in(layer, feature)
        count, rank = len(own.values), max(own.ranks) * self.experts.get(layer, 1)
        if layer not in self.layers_of(feature):
            other = next(f for f in self.schema.names if layer in self.layers_of(f))
            a, b = self.pair(layer, other)
            none = np.zeros((count, a.shape[1], 0), "float32")
            return none, np.zeros((count, 0, b.shape[2]), "float32")
        names = table_names(layer, feature)
        a, b = (self.tables.get(name, np.zeros(0, "float32")) for name in names)
        for name, table, shape in (
            (names[0], a, (count, *a.shape[1:2], rank)),
            (names[1], b, (count, rank, *b.shape[2:])),
        ):
            if table.shape != shape or table.ndim != 3 or table.dtype != np.float32:
                raise ValueError(
                    "Adapter weights must be float32, of shape (values, d_in, rank) "
                    "and (values, rank, d_out). Received: "
                    f"{table.dtype} of shape {table.shape} at {name!r} in "
                    f"{self.source!r}, for {count} values and rank {rank}. Save it "
                    "again."
                )
        return a, b

    def factors(self, layer: str, feature: str) -> Factors:
        """The updates of a feature in a layer as factors in float64."""
        scales = self.feature_in(layer, feature).scales
        return Factors.of(
            *self.pair(layer, feature), scales, self.experts.get(layer, 1)
        )


def checked_path(path: str | os.PathLike[str]) -> Path:
    """The path of an adapter file; raises for another suffix."""
    if not str(path).endswith(SUFFIX):
        raise ValueError(
            f"An adapter file's name must end in {SUFFIX!r}. Received: "
            f"path={str(path)!r}. Rename it, such as 'adapters{SUFFIX}'."
        )
    return Path(path)


def write_adapters(adapters: Adapters, path: Path) -> None:
    """Writes an adapter file, which takes the place of another only when complete."""
    header = {
        "version": WITH_RANKS
        if adapters.ranks or adapters.experts
        else WITH_PLACES
        if adapters.places
        else WITH_TRAINED_BASE
        if adapters.trained
        else FORMAT_VERSION,
        "schema": adapters.schema.get_config(),
        "alpha": adapters.alpha,
        "layers": adapters.layers,
    }
    if adapters.scale != "rank":
        header["scale"] = adapters.scale
    if adapters.base is not None:
        header["base"] = adapters.base.get_config()
    if adapters.rows:
        header["rows"] = adapters.rows
    if adapters.places:
        header["places"] = adapters.places
    if adapters.trained:
        header["trained"] = list(adapters.trained)
    if adapters.tokens:
        header["tokens"] = adapters.tokens
    if adapters.ranks:
        header["ranks"] = adapters.ranks
    if adapters.experts:
        header["experts"] = adapters.experts
    check_folder(path)
    text = json.dumps(header)
    digest = content_digest(text, adapters.tensors)
    # In the same entry: safetensors writes several in any order.
    text = f'{text[:-1]}, "digest": "{digest}"}}'
    data = safetensors.numpy.save(adapters.tensors, {HEADER: text})
    size = int.from_bytes(data[:8], "little")
    if size > MAX_HEADER:
        raise ValueError(
            f"The names and values in an adapter file may take {MAX_HEADER:,} bytes. "
            f"Received: {size:,} bytes of them in {adapters.source}. Use fewer or "
            "shorter values."
        )
    x = adapters
    of = {name: set(x.layers_of(name)) for name in x.schema.names}
    pairs = pairs_of(x.schema, x.layers, of, x.ranks, x.experts)
    check_tables(pairs, x.tables, x.source)
    write_whole(path, data)


def read_adapters(
    path: str | os.PathLike[str], check: Callable[[Adapters], None] | None = None
) -> Adapters:
    """Reads an adapter file.

    Args:
        path: A file that `save_adapters` wrote, or a handle of one on a hub.
        check: Called before the adapter weights are read, and raises for adapters
            that are not wanted. The weights that it sees have their shapes, but take
            no memory and are zero.

    Returns:
        Its `Adapters`: float32 weights, those of its schema and its layers, as they
        were saved. Files of earlier versions have no digest to tell the latter by.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not an adapter file.
    """
    place = str(path)
    path = checked_path(adapter_file(path, SUFFIX))
    if not path.is_file():
        kind = ValueError if path.exists() else MissingFileError
        raise kind(
            f"`path` must be an existing file. Received: path={str(path)!r}, which "
            "is none. Check the path."
        )
    with contextlib.ExitStack() as stack:
        with errors_name(path):
            check_header_size(path, MAX_HEADER)
            file = stack.enter_context(safetensors.safe_open(path, framework="numpy"))
            text = (file.metadata() or {})[HEADER]
            header = json.loads(text)
            version = header["version"]
            known = type(version) is int and version in VERSIONS
            adapters = _described(header, file, place) if known else None
        if adapters is None:
            raise ValueError(
                f"An adapter file must have one of the format versions {VERSIONS}. "
                f"Received: version {shown(version)} in {str(path)!r}. Update "
                "keras_flix."
            )
        if check is not None:
            check(adapters)
        with errors_name(path):
            tensors = {name: file.get_tensor(name) for name in adapters.tensors}
            _check_digest(text, header, tensors)
    return dataclasses.replace(
        adapters,
        tables={name: tensors[name] for name in adapters.tables},
        trained={name: tensors[name] for name in adapters.trained},
    )


def content_digest(header: str, tables: Mapping[str, np.ndarray]) -> str:
    """A digest of all that a file holds, 32 hexadecimal digits: tells damaged ones."""
    found = hashlib.blake2b(header.encode(), digest_size=16)
    for name in sorted(tables):
        table = np.ascontiguousarray(tables[name])
        found.update(f"{name} {table.dtype} {table.shape}\n".encode())
        found.update(table.reshape(-1).view("uint8").data)
    return found.hexdigest()


def _check_digest(
    text: str, header: Mapping[str, Any], tables: Mapping[str, np.ndarray]
) -> None:
    found = DIGEST.search(text)
    if found is None:
        odd = sorted(header.keys() - ENTRIES)
        # Such as a digest whose name is damaged.
        if odd:
            raise ValueError(f"Its header has an unknown entry {odd[0]!r}.")
    elif found[1] != content_digest(f"{text[: found.start()]}}}", tables):
        raise ValueError("The digest differs from that of the content.")


def _described(header: Mapping[str, Any], file: Any, place: str) -> Adapters:
    """The adapters of a file, with tables that have no content yet."""
    schema = FeatureSchema.from_config(header["schema"])
    # Files of 0.1 state an alpha for all features that have none of their own.
    scale = check_scale(header.get("scale", "rank"))
    schema = schema.resolve(alpha=header["alpha"], scale=scale)
    layers = [str(layer) for layer in header["layers"]]
    if len(set(layers)) < len(layers) or not isinstance(header["layers"], list):
        raise ValueError("The layers must be a list of different names.")
    base = header.get("base")
    trained = header.get("trained", [])
    if not isinstance(trained, list) or len(set(trained)) < len(trained):
        raise ValueError("What trained must be a list of different names.")
    places = checked_places(schema, layers, header.get("places", {}))
    of = {name: set(places.get(name, layers)) for name in schema.names}
    ranks = checked_ranks(of, header.get("ranks", {}))
    experts = checked_experts(layers, header.get("experts", {}))
    pairs = pairs_of(schema, layers, of, ranks, experts)
    return Adapters(
        source=place,
        schema=schema,
        alpha=header["alpha"],
        scale=scale,
        layers=layers,
        tables=stand_ins(pairs, sum(map(len, of.values())), file, set(trained)),
        places=places,
        ranks=ranks,
        experts=experts,
        base=None if base is None else BaseFingerprint.from_config(base),
        rows={
            path: sorted(as_orders(orders))
            for path, orders in (header.get("rows") or {}).items()
        },
        trained={str(name): empty(file.get_slice(name), name) for name in trained},
        tokens={
            str(path): [int(one) for one in ids]
            for path, ids in header.get("tokens", {}).items()
        },
    )
