"""The settings of a training: from the command line, a YAML file and the defaults."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from keras_flix._utils.atomic_files import MissingFileError, write_whole
from keras_flix._utils.near_names import hint
from keras_flix._utils.optional_packages import needed
from keras_flix.command_line.nested_values import of_node
from keras_flix.command_line.options import ONE_OF, OPTIONS, REQUIRED
from keras_flix.models.recommended import RECOMMENDED

Given = dict[str, tuple[list[str], str]]
"""By the name of an option, its texts and the place where they stand."""


def configuration(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings of a training.

    Args:
        arguments: What was typed: `None` where nothing was. `config` is a YAML file,
            whose settings those on the command line win over.

    Returns:
        By name, a value of JSON types for every option.

    Raises:
        ValueError: If a name or a value is not valid; the message names file and line.
    """
    given = read_config(arguments.config) if arguments.config else {}
    typed: Given = {}
    for name, option in OPTIONS.items():
        value = getattr(arguments, name)
        if value is not None:
            texts = [value] if isinstance(value, str) else list(value)
            typed[name] = texts, option.flag
    if typed.keys() & set(ONE_OF):
        given = {name: one for name, one in given.items() if name not in ONE_OF}
    given |= typed
    both = [given[name][1] for name in ONE_OF if name in given]
    if len(both) > 1:
        raise ValueError(
            "A training must have either `epochs` or `steps`. Received: "
            f"{' and '.join(both)}. Leave one of them out."
        )
    found = {name: option.default for name, option in OPTIONS.items()}
    found |= {name: parsed(name, *one) for name, one in given.items()}
    for name in REQUIRED:
        if found[name] is None:
            typed_as = "DATA" if name == "data" else OPTIONS[name].flag
            raise ValueError(
                f"`train` must be told its {name}. Received: neither {typed_as} nor "
                f"{name!r} in a file of --config. Add one."
            )
    if found["epochs"] is None and found["steps"] is None:
        found["epochs"] = RECOMMENDED.epochs
    return found


def parsed(name: str, texts: list[str], place: str) -> Any:
    """The value of an option; raises with its rule and the place where it stands."""
    try:
        return OPTIONS[name].parse(texts)
    except ValueError as rule:
        raise ValueError(
            f"`{name}` must be {rule}. Received: {place} {' '.join(texts)!r}. "
            "Correct it."
        ) from None


def read_config(path: str, known: Iterable[str] = OPTIONS) -> Given:
    """The settings in a YAML file.

    Values are read as they would be typed: `no` is a word and `1e-3` a number, a list
    is several values, and a mapping several of `name=value`. Where a value may be
    nested, it is the JSON that would be typed.

    Args:
        path: The file.
        known: The names that may be in it.
    """
    yaml = needed("yaml", "A file of settings", "cli")
    if not Path(path).is_file():
        raise MissingFileError(
            "A file of settings must be an existing file. Received: "
            f"{path!r}, which is none. Check the path."
        )
    try:
        root = yaml.compose(Path(path).read_bytes(), yaml.SafeLoader)
    except RecursionError:
        raise ValueError(
            f"A file of settings must have few levels. Received: {path}, which is "
            "nested too deeply to be read. Correct it."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = path if mark is None else f"{path}, line {mark.line + 1}"
        what = getattr(error, "problem", None) or "no text in UTF-8"
        raise ValueError(
            f"A file of settings must be YAML. Received: {where}: {what}. Correct it."
        ) from None
    given: Given = {}
    if root is None:
        return given
    for key, node in _entries(root, f"{path}, line {root.start_mark.line + 1}:"):
        place = f"{path}, line {key.start_mark.line + 1}:"
        name = key.value
        if name not in known:
            near = hint(name, known) or f" Those are {', '.join(known)}."
            raise ValueError(
                "A file of settings must hold names of options. Received: "
                f"{place} {name!r}.{near}"
            )
        if name in given:
            raise ValueError(
                "A file of settings must name an option once. Received: "
                f"{place} {name!r} again. Remove one."
            )
        if not (node.id == "scalar" and node.tag.endswith(":null")):
            may_nest = name in OPTIONS and OPTIONS[name].nested
            texts = [_nested(node, place)] if may_nest else _texts(node, place)
            given[name] = texts, f"{place} {name}:"
    return given


def _texts(node: Any, place: str) -> list[str]:
    """What stands in a file, as it would be typed."""
    if node.id == "scalar":
        return [node.value]
    if node.id == "mapping":
        return [f"{k.value}={_text(v, place)}" for k, v in _entries(node, place)]
    return [
        ",".join(_texts(one, place)) if one.id == "mapping" else _text(one, place)
        for one in node.value
    ]


def _nested(node: Any, place: str) -> str:
    """What stands in a file, as the JSON that would be typed."""
    try:
        return json.dumps(of_node(node), ensure_ascii=False)
    except (ValueError, RecursionError) as error:
        depths = isinstance(error, RecursionError)
        rule = "of few levels, none within itself" if depths else error
        raise ValueError(
            f"A nested setting must be {rule}. Received: {place} another one. "
            "Correct it."
        ) from None


def _text(node: Any, place: str) -> str:
    if node.id == "sequence" and all(one.id == "scalar" for one in node.value):
        return ",".join(one.value for one in node.value)
    if node.id != "scalar":
        raise ValueError(
            "A setting must be a value, a list of values or a mapping to values. "
            f"Received: {place} a {node.id} inside of those. Write it in one line, as "
            "it is typed."
        )
    return "" if node.tag.endswith(":null") else str(node.value)


def _entries(node: Any, place: str) -> list[tuple[Any, Any]]:
    if node.id != "mapping" or any(key.id != "scalar" for key, _ in node.value):
        raise ValueError(
            "Settings must be lines 'name: value'. Received: "
            f"{place} a {node.id}. Write such as 'rank: 8'."
        )
    return list(node.value)


def write_config(settings: Mapping[str, Any], path: Path, about: str) -> None:
    """Writes settings as YAML that `read_config` reads.

    Args:
        settings: By name, of JSON types.
        path: The file.
        about: A comment in the first line.
    """
    # What JSON writes in one line is YAML.
    lines = [
        f"{name}: {json.dumps(value, ensure_ascii=False)}"
        for name, value in settings.items()
    ]
    write_whole(path, "\n".join([f"# {about}", *lines, ""]).encode())
