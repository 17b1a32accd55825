"""Features as requests to the servers that hold exported adapters.

It reads the index that `export_values` or `export_loras` wrote, and needs numpy only:
no Keras, no backend and none of the servers' packages.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_flix._utils.atomic_files import MissingFileError
from keras_flix._utils.displayed import Displayed, Rows, count, some
from keras_flix.features.feature import Feature
from keras_flix.features.schema import FeatureSchema
from keras_flix.files.hub_handles import INDEX_FILE

VALUES = "keras_flix.values"
LORAS = "keras_flix.loras"
"""What indices call themselves: of one file per value, of one per combination."""

VERSION = 1

SERVERS = {
    (VALUES, "gguf"): "llama.cpp",
    (VALUES, "peft"): "peft",
    (LORAS, "peft"): "vllm",
}
"""What each kind of files is for."""

ENTRIES = (
    ("directory", "features"),
    ("feature", "value", "always", "file", "rank", "scale"),
)
"""What the index says of each combination, and of each value."""

SHOWN = 4
"""So many combinations are listed in an error."""


@dataclasses.dataclass(frozen=True, repr=False)
class AdapterIndex(Displayed):
    """What a directory of exported adapters holds.

    Attributes:
        directory: Where it is.
        server: What reads the files: `"llama.cpp"`, `"peft"` or `"vllm"`.
        schema: The features that a request states.
        adapters: The index's own entries, in order.
        max_rank: The highest rank of a file.
        not_for_vllm: Why vLLM cannot serve the files of `export_loras`, which PEFT
            loads; `None` if it can.
    """

    directory: Path
    server: str
    schema: FeatureSchema
    adapters: Sequence[Mapping[str, Any]]
    max_rank: int
    not_for_vllm: str | None = None

    def _line(self) -> str:
        return (
            f"AdapterIndex({count(len(self.adapters), 'adapter')} for {self.server}, "
            f"features {some(self.schema.names)})"
        )

    def _tables(self) -> Iterable[tuple[str, Rows]]:
        names = list(self.adapters[0]) if self.adapters else []
        rows = [[adapter[name] for name in names] for adapter in self.adapters]
        return [("", [names, *rows])]

    def request(self, features: Mapping[str, Any]) -> dict[str, Any]:
        """What a request to the server says besides its prompt.

        Args:
            features: One entry per feature, as for `merge_features`: a value, `None`
                where it is absent, a dict from values to weights, and on a
                `multiple` feature a list.

        Returns:
            For `"llama.cpp"`, `{"lora": [{"id": 0, "scale": 1.0}, ...],
            "cache_prompt": False}`: what the JSON of `/completion` and
            `/v1/chat/completions` takes. llama-server's cache in memory finds prompts
            by their tokens alone, whatever adapters they were read with; where it is
            off, as with `server_arguments`, `"cache_prompt": True` is right and faster.
            For `"vllm"`, `{"model": "qa-sw"}`: the LoRA's name.
            For `"peft"`, `{"adapters": ["task-qa", ...], "weights": [1.0, ...],
            "combination_type": "cat"}`: what `add_weighted_adapter` takes, once each
            directory was loaded under its own name. Both lists are empty where
            everything is absent: use `disable_adapter` then.

        Raises:
            ValueError: If features are missing or unknown, or have unknown values, or
                for `"vllm"` if the combination was not exported.
        """
        weights = self._weights(features)
        if self.server == "vllm":
            return {"model": self._exported(features, weights)["directory"]}
        scales = self._scales(weights)
        if self.server == "peft":
            names = [self.adapters[i]["file"] for i in scales]
            combined = {"adapters": names, "weights": list(scales.values())}
            return {**combined, "combination_type": "cat"}
        # The server reads an empty list as none, which is what it was started with.
        lora = [{"id": i, "scale": scale} for i, scale in (scales or {0: 0.0}).items()]
        return {"lora": lora, "cache_prompt": False}

    def server_arguments(self) -> list[str]:
        """The arguments with which the server loads all adapters, in the index's order.

        For `llama-server`, all of them at scale 0, and without its cache in memory,
        see `request`, as llama.cpp takes them in 2026 (older ones want one
        `--lora-scaled FILE SCALE` each); for `vllm serve`, by name.

        Raises:
            ValueError: If it is PEFT, which is no server, vLLM cannot serve the files,
                or the directory's path has signs that divide the arguments.
        """
        folder = str(self.directory.absolute())
        if self.server == "llama.cpp":
            if set(folder) & {",", ":"}:
                raise ValueError(
                    "llama-server takes paths without ',' and ':'. Received: "
                    f"{folder!r}. Move the directory."
                )
            files = [f"{folder}/{adapter['file']}:0" for adapter in self.adapters]
            return ["--lora-scaled", ",".join(files), "--cache-ram", "0"]
        if self.server == "vllm" and self.not_for_vllm is not None:
            raise ValueError(
                "vLLM must be able to serve the LoRAs. Received: an export of which "
                f"{folder!r} says that {self.not_for_vllm}. Load the directories with "
                "PEFT, or use `merge_features` or `export_merged`."
            )
        if self.server == "vllm":
            names = [adapter["directory"] for adapter in self.adapters]
            rank = ["--enable-lora", "--max-lora-rank", str(self.max_rank)]
            return [*rank, "--lora-modules", *(f"{n}={folder}/{n}" for n in names)]
        raise ValueError(
            "Arguments are of llama.cpp's server and vLLM's. Received: PEFT "
            "directories of values, which no server adds up. Load them with "
            "`model.load_adapter`, or export with format='gguf', or `export_loras`."
        )

    def _weights(self, features: Mapping[str, Any]) -> dict[str, dict[Any, float]]:
        """By feature, the weights of its values that are there."""
        ids = self.schema.encode_one(features)
        weights: dict[str, dict[Any, float]] = {}
        for name, entries in self.schema.decode(ids).items():
            (entry,) = entries
            if not isinstance(entry, dict):
                values = entry if isinstance(entry, list) else [entry]
                entry = {value: 1.0 for value in values if value is not None}
            weights[name] = entry
        return weights

    def _scales(self, weights: Mapping[str, Mapping[Any, float]]) -> dict[int, float]:
        """By an adapter's place in the index, what its update is multiplied by."""
        scales = {}
        for i, adapter in enumerate(self.adapters):
            own = weights.get(adapter["feature"], {})
            weight = 1.0 if adapter["always"] else own.get(adapter["value"])
            if weight is not None:
                scales[i] = round(weight * adapter["scale"], 6)
        return scales

    def _exported(
        self, features: Mapping[str, Any], weights: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        wanted = _key(weights)
        for adapter in self.adapters:
            if _key(adapter["features"]) == wanted:
                return adapter
        some = [dict(adapter["features"]) for adapter in self.adapters[:SHOWN]]
        more = ", ..." if len(self.adapters) > SHOWN else ""
        raise ValueError(
            "vLLM serves the combinations that were exported: "
            f"{', '.join(map(str, some))}{more}. Received: {dict(features)}. List it "
            "in `export_loras`, or use `export_values` with a server that combines "
            "values."
        )


def _key(features: Mapping[str, Any]) -> tuple[Any, ...]:
    """The same for one combination, however it is written."""
    key = []
    for name, entry in sorted(features.items()):
        if not isinstance(entry, Mapping):
            values = entry if isinstance(entry, list) else [entry]
            entry = {value: 1.0 for value in values if value is not None}
        # JSON's keys are strings, integers' too.
        own = sorted((str(v), round(float(w), 6)) for v, w in entry.items())
        key.append((name, tuple(own)))
    return tuple(key)


def read_index(directory: str | os.PathLike[str]) -> AdapterIndex:
    """Reads the index of a directory that `export_values` or `export_loras` wrote.

    Args:
        directory: The directory, or its `index.json`.

    Raises:
        FileNotFoundError: If there is no index.
        ValueError: If the file is none, or was written by a newer version.

    Example:

    >>> import json, pathlib, tempfile
    >>> directory = pathlib.Path(tempfile.mkdtemp())
    >>> adapters = [
    ...     {"feature": name, "value": value, "always": False, "scale": 1.0,
    ...      "rank": 4, "file": f"{name}-{value}.gguf"}
    ...     for name, value in [("task", "qa"), ("language", "en"), ("language", "sw")]
    ... ]
    >>> _ = (directory / "index.json").write_text(json.dumps({
    ...     "format": "keras_flix.values", "version": 1, "files": "gguf",
    ...     "features": [
    ...         {"name": "task", "values": ["qa"], "multiple": False},
    ...         {"name": "language", "values": ["en", "sw"], "multiple": False},
    ...     ],
    ...     "adapters": adapters,
    ... }))
    >>> index = read_index(directory)
    >>> index.request({"task": "qa", "language": "sw"})["lora"]
    [{'id': 0, 'scale': 1.0}, {'id': 2, 'scale': 1.0}]
    >>> index.request({"task": None, "language": {"en": 0.5, "sw": 0.25}})["lora"]
    [{'id': 1, 'scale': 0.5}, {'id': 2, 'scale': 0.25}]
    """
    path = Path(directory)
    path = path / INDEX_FILE if path.is_dir() else path
    if not path.is_file():
        raise MissingFileError(
            f"`directory` must hold {INDEX_FILE!r}. Received: directory="
            f"{str(directory)!r}, which does not. Write it with `export_values` or "
            "`export_loras`."
        )
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        kind, version = index["format"], index["version"]
        server = SERVERS[kind, index.get("files", "peft")]
        if version == VERSION:
            return _read(path.parent, server, index)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{INDEX_FILE!r} must be what `export_values` or `export_loras` wrote. "
            f"Received: {str(path)!r}, which is not ({type(error).__name__}: {error}). "
            "Export again."
        ) from error
    raise ValueError(
        f"The index must be of version {VERSION}. Received: {str(path)!r} of version "
        f"{version!r}. Update keras_flix."
    )


def _read(folder: Path, server: str, index: Mapping[str, Any]) -> AdapterIndex:
    features = [
        Feature(entry["name"], entry["values"], multiple=entry["multiple"])
        for entry in index["features"]
    ]
    adapters = tuple(index["adapters"])
    for adapter in adapters:
        for key in ENTRIES[server != "vllm"]:
            adapter[key]
        name = adapter["directory" if server == "vllm" else "file"]
        if Path(name).name != name:
            # Others may have written it: it must not lead elsewhere.
            raise KeyError(name)
    ranks = [adapter.get("rank", 0) for adapter in adapters]
    return AdapterIndex(
        directory=folder,
        server=server,
        # A schema has a feature, be it one that no request states.
        schema=FeatureSchema(features or [Feature("always", always=True)]),
        adapters=adapters,
        max_rank=index.get("max_lora_rank") or max(ranks),
        not_for_vllm=index.get("not_for_vllm"),
    )
