"""Adapter files: what is in them, written and read without a model. No pickle."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from keras_flix.feature import check_alpha
from keras_flix.features import FeatureSchema
from keras_flix.files.fingerprint import BaseFingerprint
from keras_flix.files.handles import adapter_file
from keras_flix.files.whole_files import check_folder, write_whole

SUFFIX = ".flix.safetensors"
FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Adapters:
    """The adapters of a model: what an adapter file holds.

    Attributes:
        source: Where they come from, for messages.
        schema: The axes, with ranks and dropout rates resolved.
        alpha: As given to `enable_flix`.
        layers: The keys of the adapted layers.
        tables: By `layer/flix_<axis>_<a or b>`, arrays of shape `(values, d_in,
            rank)` and `(values, rank, d_out)`.
        base: The fingerprint of the base; `None` in files that have none.
    """

    source: str
    schema: FeatureSchema
    alpha: float | None
    layers: list[str]
    tables: Mapping[str, np.ndarray]
    base: BaseFingerprint | None = None

    def pair(self, layer: str, axis: str) -> tuple[np.ndarray, np.ndarray]:
        """The tables of an axis in a layer; raises if they are not as it says."""
        feature = self.schema[axis]
        count, rank = len(feature.values), max(feature.ranks)
        names = table_names(layer, axis)
        a, b = (self.tables.get(name, np.zeros(0, "float32")) for name in names)
        for name, table, shape in (
            (names[0], a, (count, *a.shape[1:2], rank)),
            (names[1], b, (count, rank, *b.shape[2:])),
        ):
            if table.shape != shape or table.ndim != 3 or table.dtype != np.float32:
                raise ValueError(
                    "The tables of adapters must be float32, of shape (values, d_in, "
                    "rank) and (values, rank, d_out). Received: "
                    f"{table.dtype} of shape {table.shape} at {name!r} in "
                    f"{self.source!r}, for {count} values and rank {rank}. Save it "
                    "again."
                )
        return a, b

    def alpha_of(self, axis: str) -> float | None:
        """The alpha that an axis goes by: its own, or that of all."""
        own = self.schema[axis].alpha
        return self.alpha if own is None else own


def table_names(layer: str, axis: str) -> tuple[str, str]:
    """What the tables of an axis in a layer are called in an adapter file."""
    return f"{layer}/flix_{axis}_a", f"{layer}/flix_{axis}_b"


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
        "version": FORMAT_VERSION,
        "schema": adapters.schema.get_config(),
        "alpha": adapters.alpha,
        "layers": adapters.layers,
    }
    if adapters.base is not None:
        header["base"] = adapters.base.get_config()
    check_folder(path)
    data = safetensors.numpy.save(
        dict(adapters.tables), {"keras_flix": json.dumps(header)}
    )
    write_whole(path, data)


def read_adapters(path: str | os.PathLike[str]) -> Adapters:
    """Reads an adapter file.

    Args:
        path: A file that `save_adapters` wrote, or a handle of one on a hub.

    Returns:
        Its `Adapters`. Whether the tables fit schema and layers is not checked.

    Raises:
        ValueError: If there is no such file, or it is not an adapter file.
    """
    place = str(path)
    path = checked_path(adapter_file(path, SUFFIX))
    if not path.is_file():
        raise ValueError(
            f"`path` must be an existing file. Received: path={str(path)!r}, which "
            "is none. Check the path."
        )
    adapters = None
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tables = {name: file.get_tensor(name) for name in file.keys()}
        header = json.loads(metadata["keras_flix"])
        version = header["version"]
        if version == FORMAT_VERSION:
            schema = FeatureSchema.from_config(header["schema"])
            check_alpha(header["alpha"])
            base = header.get("base")
            adapters = Adapters(
                source=place,
                schema=schema,
                alpha=header["alpha"],
                layers=[str(layer) for layer in header["layers"]],
                tables=tables,
                base=None if base is None else BaseFingerprint.from_config(base),
            )
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            "An adapter file must have been written by `save_adapters` and be "
            f"whole. Received: path={str(path)!r}, which cannot be read "
            f"({type(error).__name__}: {error}). Save it again."
        ) from error
    if adapters is None:
        raise ValueError(
            f"An adapter file must have format version {FORMAT_VERSION}. Received: "
            f"version {version} in {str(path)!r}. Update keras_flix."
        )
    return adapters
