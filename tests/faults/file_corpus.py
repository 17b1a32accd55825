"""Tables files that are damaged or made to do harm, by code; no test framework."""

from __future__ import annotations

import copy
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from keras_flix.files.adapter_file import (
    HEADER,
    Adapters,
    content_digest,
    read_adapters,
)
from keras_flix.files.stand_ins import table_names

Parts = tuple[dict[str, Any], dict[str, Any], bytes]
"""Of an adapter file: the header of safetensors, ours, and the tables."""


def split(whole: bytes) -> Parts:
    """The parts of an adapter file."""
    end = 8 + struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8:end])
    own = json.loads(header.pop("__metadata__")[HEADER])
    own.pop("digest", None)
    return header, own, whole[end:]


def joined(
    header: dict[str, Any], own: Any, data: bytes, digest: str | None = None
) -> bytes:
    """An adapter file of parts; `own` may be text."""
    text = own if isinstance(own, str) else json.dumps(own)
    if digest is not None:
        text = f'{text[:-1]}, "digest": "{digest}"}}'
    return raw({"__metadata__": {HEADER: text}, **header}, data)


def raw(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of a header, which may say another length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def with_digest(header: dict[str, Any], own: Any, data: bytes) -> bytes:
    """The file with the digest of its content, if that can be read at all."""
    file = joined(header, own, data)
    try:
        tables = safetensors.numpy.load(file)
        text = own if isinstance(own, str) else json.dumps(own)
        return joined(header, own, data, content_digest(text, tables))
    except Exception:
        return file


class Trap:
    """Whoever unpickles this makes a directory."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.sprung,)


def foreign(sprung: Path) -> dict[str, bytes]:
    """Files of other kinds, several of which run code where they are trusted."""
    trap = Trap(sprung)
    arrays = io.BytesIO()
    np.savez(arrays, a=np.array([trap], dtype=object))
    torch = io.BytesIO()
    with zipfile.ZipFile(torch, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(trap))
        archive.writestr("archive/version", "3")
    return {
        "an empty file": b"",
        "a pickle": pickle.dumps(trap),
        "an old pickle": pickle.dumps(trap, protocol=0),
        "a PyTorch file": torch.getvalue(),
        "a NumPy archive": arrays.getvalue(),
        "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(2000),
        "a text": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "a web page": b"<!DOCTYPE html><html>" + b" " * 5000,
        "zeros": bytes(4096),
        "ones": b"\xff" * 4096,
    }


def hostile(whole: bytes) -> dict[str, bytes]:
    """Tables files that claim, name or hold what none does."""
    header, own, data = split(whole)
    first = min(header)
    span = header[first]["data_offsets"]

    def outer(**changes: Any) -> bytes:
        return joined({**header, first: {**header[first], **changes}}, own, data)

    def inner(text: str | None = None, **changes: Any) -> bytes:
        return joined(header, {**own, **changes} if text is None else text, data)

    def feature(**changes: Any) -> bytes:
        features = own["schema"]["features"]
        features = [{**features[0], **changes}, *features[1:]]
        return inner(schema={"features": features})

    def renamed(name: str) -> bytes:
        return joined(
            {name if k == first else k: v for k, v in header.items()}, own, data
        )

    text = json.dumps(header)[1:-1]
    twice = json.dumps({first: header[first]})[1:-1]
    features = own["schema"]["features"]
    return {
        "a header of 2**63 bytes": raw(header, data, 2**63),
        "a header longer than the file": raw(header, data, len(whole) * 2),
        "a header of 17 MiB": joined(header, " " * (17 << 20) + json.dumps(own), data),
        "a terabyte of tables": outer(shape=[3, 2**36, 2], data_offsets=[0, 2**40]),
        "more than 2**64 bytes": outer(shape=[2**62, 2**62, 2]),
        "negative offsets": outer(data_offsets=[-4, span[1]]),
        "tables that overlap": outer(data_offsets=[span[0], span[1] + 4]),
        "tables with a hole": outer(data_offsets=[span[0], span[1] - 4]),
        "a table named twice": raw(f"{{{text}, {twice}}}".encode(), data),
        "no elements and 2**60 columns": outer(
            shape=[0, 2**60, 2], data_offsets=[0, 0]
        ),
        "70 axes": outer(shape=[*header[first]["shape"], *[1] * 67]),
        "float16": outer(dtype="F16"),
        "bfloat16": outer(dtype="BF16"),
        "float8": outer(dtype="F8_E4M3", shape=[3, 48, 2]),
        "an unknown type": outer(dtype="O"),
        "data after the end": joined(header, own, data + b"more"),
        "a header nested 100,000 times": raw(b'{"a":' + b"[" * 100_000, data),
        "a schema nested 100,000 times": inner("[" * 100_000),
        "dicts nested 100,000 times": inner('{"a":' * 100_000),
        "no JSON": inner("\x00"),
        "a list": inner("[]"),
        "a number of 5,000 digits": inner(f'{{"version": {"1" * 5000}}}'),
        "a version that is true": inner(version=True),
        "a version that is a text": inner(version="1" * 10_000),
        "an alpha of 400 digits": inner(alpha=10**400),
        "an alpha of NaN": inner(alpha=float("nan")),
        "an infinite alpha": inner(alpha=float("inf")),
        "an alpha of zero": inner(alpha=0),
        "no layers": inner(layers=[]),
        "a layer twice": inner(layers=own["layers"] * 2),
        "a million layers": inner(layers=[f"l{i}" for i in range(1_000_000)]),
        "layers that are a text": inner(layers="".join(own["layers"])),
        "a layer outside": inner(layers=["../../../etc/passwd", own["layers"][1]]),
        "a table outside": renamed("../../../etc/passwd"),
        "a table at the root": renamed("/etc/passwd"),
        "a table with a null character": renamed(f"{first}\x00"),
        "no features": inner(schema={"features": []}),
        "20,000 features": inner(schema={"features": features * 10_000}),
        "a base that is a list": inner(base=[]),
        "a base that is another": inner(base={"variables": {"hidden/kernel": "0" * 8}}),
        "a feature outside": feature(name="../task"),
        "a feature without a name": feature(name=""),
        "a million values": feature(values=[str(i) for i in range(1_000_000)]),
        "a value of 8 MiB": feature(values=["a" * (8 << 20)], rank=[["b" * 10_000, 1]]),
        "values with lists": feature(values=[[], [[]]]),
        "an attribute that is none": feature(__class__="os.system"),
        "a rank of 10**18": feature(rank=10**18),
        "a rank of 400 digits": feature(rank=10**400),
        "a rank of NaN": feature(rank=float("nan")),
        "a rank of zero": feature(rank=0),
        "ranks of unknown values": feature(rank=[[f"v{i}", 1] for i in range(100_000)]),
        "a dropout of NaN": feature(dropout=float("nan")),
        "a dropout of 400 digits": feature(dropout=10**400),
        "a dropout with code": feature(dropout={"rate": 0.1, "code": "exec('1')"}),
        "an unknown entry": inner(digesu="0" * 32),
        "the digest of another": joined(header, own, data, "0" * 32),
    }


POOL: list[Any] = [
    *(None, True, False, 0, 1, 2, 3, -1, 1.5, 2**31, 2**63, 10**30, 10**400),
    *(float("nan"), float("inf"), -0.0, 1e-300, "", "a", "../x", "/", "*", "en"),
    *("F16", "BF16", "I64", "BOOL", "task", "hidden", "\x00", "\ud800", "é" * 300),
    *([], {}, [[]], {"rate": 0.5}, [["en", 1]], ["en", "en"], [3, 8, 2], [0, 0]),
]
"""What takes the place of something in a header."""

TEXTS = ["", "null", "[]", "{}", "[" * 5000, '{"a":' * 5000, "1" * 5000, '"\\ud800"']


class Choices:
    """Decisions out of bytes, so that whoever varies the bytes varies those."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def rest(self) -> bytes:
        return self.data[self.place :]

    def index(self, count: int) -> int:
        """A number below `count`; zero once the bytes are used up."""
        size = 1 if count <= 256 else 4
        found = int.from_bytes(self.data[self.place : self.place + size], "little")
        self.place += size
        return found % count


def fuzzed(whole: bytes, data: bytes) -> bytes:
    """A file that some bytes stand for: themselves, or changes of a whole file."""
    choices = Choices(data)
    kind = choices.index(8)
    if kind == 0:
        return choices.rest()
    if kind == 1:
        return _damaged(whole, choices)
    header, own, tables = split(whole)
    text: Any = own
    for _ in range(1 + choices.index(3)):
        tree = header if choices.index(4) == 0 else own
        _change(tree, choices)
    if choices.index(16) == 15:
        text = TEXTS[choices.index(len(TEXTS))]
    digest = choices.index(3)
    file = (with_digest if digest == 2 else joined)(header, text, tables)
    return _damaged(file, choices) if choices.index(8) == 7 else file


def _damaged(file: bytes, choices: Choices) -> bytes:
    """The file with bits flipped, cut off, or bytes put in."""
    changed = bytearray(file)
    for _ in range(1 + choices.index(4)):
        kind, place = choices.index(4), choices.index(len(changed) + 1)
        if kind == 0:
            del changed[place:]
        elif kind == 1:
            changed[place:place] = bytes([choices.index(256)]) * choices.index(9)
        elif place < len(changed):
            changed[place] ^= 1 << choices.index(8)
    return bytes(changed)


def _change(tree: Any, choices: Choices) -> None:
    """Changes one place of a JSON tree."""
    parents = list(_containers(tree))
    parent = parents[choices.index(len(parents))]
    keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
    kind = choices.index(6)
    if kind == 0 or not keys:
        value = copy.deepcopy(POOL[choices.index(len(POOL))])
        if isinstance(parent, dict):
            parent[str(POOL[choices.index(len(POOL))])] = value
        else:
            parent.insert(choices.index(len(parent) + 1), value)
        return
    key = keys[choices.index(len(keys))]
    if kind == 1:
        del parent[key]
    elif kind == 2:
        other = keys[choices.index(len(keys))]
        parent[key], parent[other] = parent[other], parent[key]
    elif kind == 3 and isinstance(parent[key], int):
        parent[key] += choices.index(9) - 4
    elif kind == 3 and isinstance(parent, dict):
        parent[f"{key}{choices.index(3) or ''}"] = parent.pop(key)
    else:
        parent[key] = copy.deepcopy(POOL[choices.index(len(POOL))])


def _containers(tree: Any) -> Any:
    if isinstance(tree, (dict, list)):
        yield tree
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _containers(value)


def read_or_refuse(path: Path, load: Callable[[Path], Any] = read_adapters) -> Any:
    """What `load` gives; `None` if it refuses the file as it is documented to."""
    try:
        return load(path)
    except ValueError as error:
        message = str(error)
        assert str(path) in message and "Received: " in message, message
        assert len(message) < 3000, "a message as long as the file"
        message.encode()
        return None


def check(adapters: Adapters) -> None:
    """What holds for all that is read."""
    expected = set()
    for layer in adapters.layers:
        for feature in adapters.schema:
            a, b = adapters.pair(layer, feature.name)
            names = table_names(layer, feature.name)
            expected |= set(names)
            shape = (len(feature.values), max(feature.ranks))
            assert (a.shape[0], a.shape[2]) == (b.shape[0], b.shape[1]) == shape
            assert all(adapters.tables[n].dtype == np.float32 for n in names)
        alpha = adapters.schema[adapters.schema.names[0]].alpha
        assert alpha is None or (0 < alpha < np.inf)
    assert set(adapters.tables) == expected


def same(one: Adapters, other: Adapters) -> bool:
    """Whether two files hold the same."""
    return (one.schema, one.alpha, one.layers, one.base) == (
        other.schema,
        other.alpha,
        other.layers,
        other.base,
    ) and all(
        one.tables[name].tobytes() == other.tables[name].tobytes()
        for name in one.tables.keys() | other.tables.keys()
    )
