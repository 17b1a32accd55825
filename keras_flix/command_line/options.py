"""The options of a training: one table for the command line and for YAML files.

A value is one or more texts, as typed, wherever it comes from. What they mean is said
here, once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from keras_flix.command_line.nested_values import (
    is_mapping_of,
    is_number,
    listed,
    nested,
)
from keras_flix.command_line.templates import TEMPLATES
from keras_flix.models.recommended import RECOMMENDED

ADAPTERS = "adapters.flix.safetensors"
"""The adapter file in the folder that a training writes."""

OF_FEATURES = ("rank", "dropout", "alpha", "scale", "targets")
"""The arguments of `Feature` that are settings; the data say the others."""
OF_RATES = ("factors", "a", "b", "weight_decay")
"""The arguments of `set_learning_rates`."""

Parse = Callable[[Sequence[str]], Any]
"""From texts to a value of JSON types; raises a `ValueError` that says the rule."""


@dataclasses.dataclass(frozen=True)
class Option:
    """One setting.

    Attributes:
        name: In a file. On the command line, `--` stands before it, and `-` for `_`.
        parse: What its texts mean.
        help: One line.
        default: If it is not given.
        metavar: What `--help` calls its value.
        many: Whether it takes several texts.
        nested: Whether its value may be nested: JSON, where it is typed.
    """

    name: str
    parse: Parse
    help: str
    default: Any = None
    metavar: str | None = None
    many: bool = False
    nested: bool = False

    @property
    def flag(self) -> str:
        """How it is typed."""
        return f"--{self.name.replace('_', '-')}"


def _one(texts: Sequence[str]) -> str:
    if len(texts) != 1 or not texts[0]:
        raise ValueError("one value")
    return texts[0]


def _number(
    kind: type, rule: str, fits: Callable[[Any], bool]
) -> Callable[[Sequence[str]], Any]:
    def parse(texts: Sequence[str]) -> Any:
        try:
            value = kind(_one(texts))
        except ValueError:
            raise ValueError(rule) from None
        if not fits(value):
            raise ValueError(rule)
        return value

    return parse


_count = _number(int, "a positive whole number", lambda x: x > 0)
_whole = _number(int, "a whole number, 0 or more", lambda x: x >= 0)
_rate = _number(float, "a positive number", lambda x: 0 < x < math.inf)
_share = _number(float, "at least 0 and below 1", lambda x: 0 <= x < 1)


def _switch(texts: Sequence[str]) -> bool:
    words = dict.fromkeys(("true", "yes", "on"), True)
    words |= dict.fromkeys(("false", "no", "off"), False)
    text = _one(texts).lower()
    if text not in words:
        raise ValueError("true or false")
    return words[text]


def _choice(*choices: str) -> Parse:
    def parse(texts: Sequence[str]) -> str:
        text = _one(texts)
        if text not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return text

    return parse


def _names(texts: Sequence[str]) -> list[str]:
    names = [name for text in texts for name in text.split(",")]
    if not names or "" in names or len(set(names)) != len(names):
        raise ValueError("different names of columns, such as task language")
    return names


def _rank(texts: Sequence[str]) -> int | dict[str, int]:
    rule = "a positive whole number, or one by feature, such as task=8 language=4"
    entries = [entry for text in texts for entry in text.split(",")]
    try:
        if len(entries) == 1 and "=" not in entries[0]:
            return _count(entries)
        ranks = dict(entry.split("=") for entry in entries)
        if len(ranks) < len(entries):
            raise ValueError
        return {name: _count([rank]) for name, rank in ranks.items()}
    except ValueError:
        raise ValueError(rule) from None


def _targets(texts: Sequence[str]) -> str | list[str]:
    words = ("attention", "all-linear")
    if len(texts) == 1 and texts[0] in words:
        return texts[0]
    if not texts or "" in texts or {*texts} & {*words}:
        raise ValueError("attention, all-linear, or names of layers")
    return list(texts)


def _rank_or_json(texts: Sequence[str]) -> int | dict[str, int]:
    """As `_rank`; or JSON of a number, of texts as they are typed, or of a mapping."""
    if len(texts) == 1 and texts[0][:1] in ("{", "[", '"'):
        value = nested("a rank", lambda value: True)(texts)
        if isinstance(value, dict):
            value = [f"{name}={rank}" for name, rank in value.items()]
        texts = [str(one) for one in (value if isinstance(value, list) else [value])]
    return _rank(texts)


def _texts(texts: Sequence[str]) -> list[str]:
    return list(texts)


_OPTIONS = (
    Option("data", _one, "JSON lines, CSV, parquet, or a Hugging Face folder"),
    Option("preset", _one, "the base, as KerasHub names it"),
    Option("output", _one, "a folder for what is written", metavar="DIR"),
    Option(
        "features",
        _names,
        "the columns that are features (default: task language)",
        ["task", "language"],
        "COLUMN",
        many=True,
    ),
    Option("prompt", _one, "the column of prompts", "prompt", "COLUMN"),
    Option("response", _one, "the column of responses", "response", "COLUMN"),
    Option(
        "validation_split",
        _share,
        "share of each combination's examples that is not trained on",
        0.1,
        "SHARE",
    ),
    Option(
        "hold_out",
        _texts,
        "combinations that are only scored, such as task=qa,language=sw",
        [],
        "FEATURE=VALUE",
        many=True,
    ),
    Option(
        "rank",
        _rank,
        f"of a value's update, also by feature: task=8 (default: {RECOMMENDED.rank})",
        RECOMMENDED.rank,
        "RANK",
        many=True,
    ),
    Option(
        "targets",
        _targets,
        f"attention, all-linear, or names of layers (default: {RECOMMENDED.targets})",
        RECOMMENDED.targets,
        "LAYER",
        many=True,
    ),
    Option(
        "alpha",
        nested("a number", is_number),
        "the scale of an update is alpha / rank (default: 1 in all)",
        metavar="NUMBER",
    ),
    Option(
        "scale",
        _choice("rank", "sqrt"),
        "what divides alpha: the rank, or its square root",
        "rank",
    ),
    Option(
        "experts",
        _choice("shared", "each"),
        "adapt experts, too: one update for all of a layer, or for each",
    ),
    Option(
        "expert_rank",
        _rank_or_json,
        "the rank there, also by feature: task=2",
        metavar="RANK",
        many=True,
        nested=True,
    ),
    Option(
        "layer_ranks",
        nested(
            'a mapping from layers to ranks, such as {"query": 8, "key": {"task": 2}}',
            lambda value: isinstance(value, dict),
        ),
        'ranks of some layers: {"query": 8, "key": {"task": 2}}',
        metavar="JSON",
        nested=True,
    ),
    Option(
        "rows",
        nested(
            'a mapping from layers to orders of rows, such as {"head": "repeat"}',
            lambda value: isinstance(value, dict),
        ),
        'the orders of rows, where unknown: {"head": "repeat"}',
        metavar="JSON",
        nested=True,
    ),
    Option(
        "train",
        listed("names of layers or regexes", (str,)),
        "layers that train whole besides",
        metavar="LAYER",
        many=True,
        nested=True,
    ),
    Option(
        "trainable_tokens",
        listed("ids or names of tokens", (int, str)),
        "tokens whose embeddings train whole, by id or name",
        metavar="TOKEN",
        many=True,
        nested=True,
    ),
    Option(
        "feature_settings",
        nested(
            "a mapping from features to mappings, such as "
            '{"language": {"targets": ["query"]}}',
            lambda value: isinstance(value, dict),
        ),
        f"by feature, its own {', '.join(OF_FEATURES)}",
        metavar="JSON",
        nested=True,
    ),
    Option(
        "learning_rates",
        nested(
            f"a mapping from some of {', '.join(OF_RATES)}", is_mapping_of(OF_RATES)
        ),
        'factors of the learning rate: {"factors": {"task": 0.5}, "b": 16}',
        metavar="JSON",
        nested=True,
    ),
    Option(
        "shared", _switch, "an always-on feature, too", RECOMMENDED.shared, "true|false"
    ),
    Option("dropout", _share, "of features", RECOMMENDED.dropout, "SHARE"),
    Option(
        "learning_rate",
        _rate,
        "the highest one: it rises, then falls to 0",
        RECOMMENDED.learning_rate,
        "RATE",
    ),
    Option("batch_size", _count, "examples per step", RECOMMENDED.batch_size, "COUNT"),
    Option(
        "epochs",
        _count,
        f"as many examples as there are, so often (default: {RECOMMENDED.epochs})",
        None,
        "COUNT",
    ),
    Option("steps", _count, "instead of epochs: so many batches", None, "COUNT"),
    Option(
        "backup_steps",
        _count,
        "steps between backups, and validation losses (default: an epoch)",
        None,
        "COUNT",
    ),
    Option(
        "temperature",
        _rate,
        "how evenly combinations are drawn: 1 goes by their sizes",
        1.0,
        "NUMBER",
    ),
    Option(
        "sequence_length",
        _count,
        "of prompt and response in tokens (default: what the longest needs, up to "
        "the preset's)",
        None,
        "COUNT",
    ),
    Option("dtype", _one, "of the base, such as bfloat16"),
    Option("template", _choice(*TEMPLATES), "what prompts are put into", "none"),
    Option(
        "score_examples",
        _whole,
        "at most so many of each combination are answered and scored; 0: none",
        50,
        "COUNT",
    ),
    Option("seed", _whole, "of data, adapters and training", 0, "NUMBER"),
)

OPTIONS: Mapping[str, Option] = MappingProxyType({o.name: o for o in _OPTIONS})
"""The options of `train`, by name."""

REQUIRED = ("data", "preset", "output")
"""Those that must be given, on the command line or in a file."""
ONE_OF = ("epochs", "steps")
"""Two names of one setting: a later source takes the place of both."""
