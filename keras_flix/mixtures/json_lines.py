"""JSON-lines files, with errors that name file and line; spans in bytes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

BLANK = b" \t\r"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    r"""The objects of a file, each with its place for error messages.

    A byte order mark at the start, Windows line ends and blank lines are fine.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "en.jsonl")
    >>> _ = path.write_bytes(b'{"input": "a"}\r\n\n{"input": "b"}\n')
    >>> [(place[-17:], example) for place, example in read_json_lines(path)]
    [('en.jsonl, line 1:', {'input': 'a'}), ('en.jsonl, line 3:', {'input': 'b'})]
    """
    empty = True
    data = path.read_bytes().removeprefix(BYTE_ORDER_MARK)
    # Not `splitlines`, which also cuts at characters that JSON strings may hold.
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip(BLANK):
            empty = False
            place = f"{path}, line {number}:"
            yield place, _parsed(line, place)
    if empty:
        raise ValueError(
            f"A file must hold at least one example. Received: {path}, without any. "
            "Download or unpack it again, or leave it out."
        )


def _parsed(line: bytes, place: str) -> dict[str, Any]:
    try:
        example = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"A line must hold one JSON object in UTF-8. Received: {place} {error}. "
            "Correct or remove the line."
        ) from None
    if not isinstance(example, dict):
        raise ValueError(
            f"A line must hold one JSON object. Received: {place} "
            f"{_named(example)}. Correct or remove the line."
        )
    return example


def text_of(example: Mapping[str, Any], name: str, place: str) -> str:
    """A string field of an example; raises where there is none."""
    text = _field(example, name, str, "a string", place)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"Field {name!r} must be text without lone surrogates. Received: {place} "
            f"{text!r}. Correct or remove the line."
        ) from None
    return text


def entities_of(
    example: Mapping[str, Any], text: str, place: str
) -> list[tuple[str, str]]:
    """Label and text of each span of an example, in the order of the spans.

    Args:
        example: It has `"spans"`, a list of dicts with `"label"`, `"start_byte"`
            and `"limit_byte"`: the first byte in UTF-8, and the one after the last.
        text: What the spans are of.
        place: File and line, for error messages.

    Returns:
        A list of `(label, entity)`.

    Raises:
        ValueError: If spans are out of range, empty, overlap or cut a character.

    >>> spans = [{"start_byte": 4, "limit_byte": 12, "label": "LOC"}]
    >>> entities_of({"spans": spans}, "ní Èkó.", "yo.jsonl, line 1:")
    Traceback (most recent call last):
    ...
    ValueError: A span must lie within the 10 bytes of its text and not be empty. ...
    >>> entities_of({"spans": [{**spans[0], "limit_byte": 9}]}, "ní Èkó.", "...")
    [('LOC', 'Èkó')]
    """
    data = text.encode()
    entities, bounds = [], []
    for span in _field(example, "spans", list, "a list", place):
        if not isinstance(span, dict):
            raise ValueError(
                "A span must be an object with 'start_byte', 'limit_byte' and 'label'."
                f" Received: {place} {span!r}. Correct or remove the span."
            )
        start = _field(span, "start_byte", int, "an integer", place)
        limit = _field(span, "limit_byte", int, "an integer", place)
        label = text_of(span, "label", place)
        if not 0 <= start < limit <= len(data):
            raise ValueError(
                f"A span must lie within the {len(data)} bytes of its text and not be "
                f"empty. Received: {place} {span!r}. Correct or remove the span."
            )
        if any(i < len(data) and data[i] & 0xC0 == 0x80 for i in (start, limit)):
            raise ValueError(
                "A span must not cut a UTF-8 character. Received: "
                f"{place} {span!r}, of bytes {data[start:limit]!r}. Count in bytes, "
                "not in characters."
            )
        entities.append((label, data[start:limit].decode()))
        bounds.append((start, limit))
    bounds.sort()
    for left, right in itertools.pairwise(bounds):
        if right[0] < left[1]:
            raise ValueError(
                "Spans must not overlap. Received: "
                f"{place} bytes {left} and {right}. Correct or remove one of them."
            )
    return entities


def _field(
    example: Mapping[str, Any], name: str, kind: type, called: str, place: str
) -> Any:
    value = example.get(name)
    # True is an integer to Python.
    if not isinstance(value, kind) or isinstance(value, bool):
        found = _named(value) if name in example else "no such field"
        raise ValueError(
            f"Field {name!r} must be {called}. Received: {place} {found}, among the "
            f"fields {sorted(example)}. Correct or remove the line."
        )
    return value


def _named(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
