"""CLDR-mix: eight tasks in forty languages, split into cells of four kinds.

Every prompt carries its task and its language as text, so that no arm depends on
feature ids to know what is asked. The cells are

- *seen*: `train_per_cell` examples in training, others for validation and test;
- *few-shot*: one task of every language, with `few_shot` examples in training;
- *held-out*: two tasks of every language, none in training, while the language and
  the task are seen in other cells;
- *new-language*: all tasks of languages of which training shows nothing. They have
  no language value.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import babel
import keras_hub
import numpy as np

from benchmarks.quality import store
from benchmarks.shared.places import GUIDES
from keras_flix.mixtures import Dataset, Mixture
from keras_flix.models.adapted.prompts import preprocess_prompts

sys.path.insert(0, str(GUIDES))

import cldr_mixture  # noqa: E402

# `full_date` is left out for its length; `month` is contained in three others.
TASKS = (
    "long_date",
    "duration",
    "currency",
    "weekday",
    "day_month",
    "relative_time",
    "list",
    "month_year",
)

FAMILIES = {
    "romance": ("fr", "es", "pt", "it", "ca", "ro", "gl"),
    "germanic": ("de", "en", "nl", "sv", "da", "nb", "af", "is"),
    "slavic": ("ru", "pl", "bg", "uk", "cs", "hr", "sk", "sl"),
    "indo_iranian": ("hi", "bn", "fa", "mr"),
    "uralic": ("fi", "hu", "et"),
    "austronesian": ("id", "ms", "fil"),
    "sinitic_neighbours": ("zh", "ja", "ko", "th"),
    "semitic": ("ar", "he"),
    # Languages without a relative here form families of their own.
    "turkic": ("tr",),
    "dravidian": ("ta",),
    "hellenic": ("el",),
    "armenian": ("hy",),
    "kartvelian": ("ka",),
    "bantu": ("sw",),
    "albanian": ("sq",),
    "celtic": ("cy",),
    "austroasiatic": ("vi",),
}
FAMILY = {code: family for family, codes in FAMILIES.items() for code in codes}

# Each has a relative in training.
NEW_LANGUAGES = ("ro", "nb", "sk", "mr", "et", "ms")
# Pretraining showed nothing of these; only some trials train on them.
UNKNOWN_LANGUAGES = cldr_mixture.UNKNOWN_LANGUAGES
# Families take turns, so that the first few languages are as diverse as all are.
LANGUAGES = tuple(
    codes[turn]
    for turn in range(max(map(len, FAMILIES.values())))
    for codes in (
        tuple(c for c in codes if c not in NEW_LANGUAGES + UNKNOWN_LANGUAGES)
        for codes in FAMILIES.values()
    )
    if turn < len(codes)
)

KINDS = ("seen", "few_shot", "held_out", "new_language")
LENGTH = 40


@dataclasses.dataclass(frozen=True)
class Data:
    """Which part of CLDR-mix is trained on.

    Attributes:
        tasks: The first so many of `TASKS`.
        languages: The first so many of `LANGUAGES`.
        unknown: The first so many of `UNKNOWN_LANGUAGES`, besides.
        only: Trains on this one task instead.
        train_per_cell: Examples of a seen cell.
        few_shot: Examples of a few-shot cell.
        validation_per_cell: Of seen cells.
        test_per_cell: Of all cells.
        temperature: Of the draw among cells, see `Mixture`.
    """

    tasks: int = len(TASKS)
    languages: int = len(LANGUAGES)
    unknown: int = 0
    only: str | None = None
    train_per_cell: int = 20
    few_shot: int = 3
    validation_per_cell: int = 4
    test_per_cell: int = 8
    temperature: float = 2.0

    @property
    def chosen_tasks(self) -> tuple[str, ...]:
        return (self.only,) if self.only else TASKS[: self.tasks]

    @property
    def chosen_languages(self) -> tuple[str, ...]:
        return LANGUAGES[: self.languages] + UNKNOWN_LANGUAGES[: self.unknown]


def kind_of(task: str, language: str) -> str:
    """The kind of a cell; fixed, whatever part of the mixture is trained on."""
    if language in NEW_LANGUAGES:
        return "new_language"
    # Every language loses two tasks and has few examples of a third; the
    # losses go round, so that each task is seen in five languages out of eight.
    languages = LANGUAGES + UNKNOWN_LANGUAGES
    place = (TASKS.index(task) - 3 * languages.index(language)) % len(TASKS)
    return {0: "held_out", 3: "held_out", 5: "few_shot"}.get(place, "seen")


BABEL = babel.__version__
"""Whose renderings the answers are: another version may have others."""
UNSTATED_BABEL = "2.18.0"
"""What results were made with that do not say it."""


def check_babel(size: str) -> None:
    """Refuses to add results to a folder whose answers another Babel gave.

    Raises:
        ValueError: If a result of that size was made with another version.
    """
    for file in sorted(store.folder(size).glob("*.json")):
        made_with = json.loads(file.read_text()).get("babel", UNSTATED_BABEL)
        if made_with != BABEL:
            raise ValueError(
                "All results of a folder must be of one version of Babel, which gives "
                f"the answers. Received: Babel {BABEL}, and {file.name} in "
                f"{file.parent}, made with {made_with}. Run `pip install "
                f"babel=={made_with}`, or keep results apart with `--results` and "
                "another folder."
            )


def base_folder(base: str) -> str:
    """The base's preset."""
    return str(Path(__file__).parent / base)


@functools.cache
def preprocessor(base: str) -> Any:
    """The base's own preprocessor, at this mixture's length."""
    loaded = keras_hub.models.GemmaCausalLMPreprocessor.from_preset(base_folder(base))
    loaded.sequence_length = LENGTH
    return loaded


def features_of(task: str, language: str) -> dict[str, str | None]:
    """All feature values that any arm may use; `None` where training has none."""
    kind = kind_of(task, language)
    return {
        "task": task,
        "language": None if kind == "new_language" else language,
        "family": FAMILY[language],
        "cell": f"{task}/{language}" if kind in ("seen", "few_shot") else None,
    }


def texts_of(task: str, language: str, count: int, part: str) -> list[Any]:
    """`count` examples of one cell; those of the three parts do not overlap."""
    offset, size = {"train": (0, 60), "validation": (60, 10), "test": (70, 30)}[part]
    if count > size:
        raise ValueError(
            f"A cell has {size} examples for {part}. Received: count={count}. Ask for "
            "fewer."
        )
    rng = random.Random(f"{task}/{language}")
    examples = cldr_mixture.cell_examples(task, language, 100, rng)
    return examples[offset : offset + count]


def datasets(
    cells: Mapping[tuple[str, str], int], part: str, base: str
) -> list[Dataset]:
    """Tokenized examples.

    Args:
        cells: How many of each (task, language).
        part: `"train"`, `"validation"` or `"test"`.
        base: Folder of the base.
    """
    texts = {cell: texts_of(*cell, count, part) for cell, count in cells.items()}
    flat = [example for examples in texts.values() for example in examples]
    prompts = [example.prompt for example in flat]
    responses = [example.response for example in flat]
    # All at once: the tokenizer's calls cost more than its work.
    x, y, weight = preprocess_prompts(
        preprocessor(base), {"prompts": prompts, "responses": responses}
    )
    columns = {
        "name": np.array([f"{e.task}/{e.language}" for e in flat], object),
        "prompts": np.array(prompts, object),
        "responses": np.array(responses, object),
        "token_ids": np.asarray(x["token_ids"], "int32"),
        "padding_mask": np.asarray(x["padding_mask"], "int32"),
        "labels": np.asarray(y, "int32"),
        "weight": np.asarray(weight, "float32"),
    }
    starts = np.cumsum([0, *cells.values()])
    return [
        Dataset(
            features_of(*cell),
            {name: column[start:stop] for name, column in columns.items()},
        )
        for cell, start, stop in zip(cells, starts, starts[1:])
    ]


@functools.cache
def training_mixture(data: Data, base: str) -> Mixture:
    """The training examples of all seen and few-shot cells."""
    counts = {"seen": data.train_per_cell, "few_shot": data.few_shot}
    cells = {
        (task, language): counts[kind_of(task, language)]
        for task in data.chosen_tasks
        for language in data.chosen_languages
        if kind_of(task, language) in counts
    }
    return Mixture(datasets(cells, "train", base), temperature=data.temperature)


@functools.cache
def validation_examples(data: Data, base: str) -> dict[str, Any]:
    """What learning rates are chosen on: seen cells only."""
    return _validation(data, base, "seen")


@functools.cache
def held_out_validation(data: Data, base: str) -> dict[str, Any]:
    """Validation examples of held-out cells: what a practitioner may have a few of."""
    return _validation(data, base, "held_out")


def _validation(data: Data, base: str, kind: str) -> dict[str, Any]:
    cells = {
        (task, language): data.validation_per_cell
        for task in data.chosen_tasks
        for language in data.chosen_languages
        if kind_of(task, language) == kind
    }
    return Mixture(datasets(cells, "validation", base)).inputs()


@functools.cache
def test_examples(data: Data, base: str, new_languages: bool = True) -> dict[str, Any]:
    """The test examples of all cells, with those of new languages or without."""
    new = NEW_LANGUAGES if new_languages else ()
    cells = {
        (task, language): data.test_per_cell
        for task in data.chosen_tasks
        for language in (*data.chosen_languages, *new)
    }
    return Mixture(datasets(cells, "test", base)).inputs()
