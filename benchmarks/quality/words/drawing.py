"""The mixture: items drawn into splits."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Sequence

from benchmarks.quality.words import cells as cell_groups, leaks
from benchmarks.quality.words.cells import Cell
from benchmarks.quality.words.items import Item, order
from benchmarks.quality.words.languages import FAMILY, LANGUAGES, NAME, NEW_LANGUAGES
from benchmarks.quality.words.prompts import TASKS

SPLITS = ("train", "validation", "validation_held_out", "test")
# Shares of what there is to ask for; the rest is trained on. Numbers below 100 leave
# 60 for training.
TEST_SHARE, VALIDATION_SHARE = 0.2, 0.1
FEW_SHOT, VALIDATION, TEST = 4, 4, 8


@dataclasses.dataclass(frozen=True)
class Example:
    """A prompt and its answer.

    Attributes:
        task: One of `Mix.tasks`.
        language: Code of a language.
        family: The language's family.
        prompt: An instruction in English that names task and language.
        response: What is to be written.
        group: `"seen"`, `"few_shot"`, `"held_out"` or `"new_language"`.
    """

    task: str
    language: str
    family: str
    prompt: str
    response: str
    group: str


@dataclasses.dataclass(frozen=True)
class Mix:
    """The mixture, see `build`.

    Attributes:
        splits: Examples of `"train"`, `"validation"` (seen and few-shot cells),
            `"validation_held_out"` (held-out cells that are not in the test) and
            `"test"`.
        cells: Group of each (task, language).
        tasks: In their order.
        languages: Those with training data.
        new_languages: Those without.
        families: Of `languages`.
        versions: Of the packages that the answers come from.
        digest: SHA-256 of examples and versions.
    """

    splits: dict[str, list[Example]]
    cells: dict[Cell, str]
    tasks: tuple[str, ...]
    languages: tuple[str, ...]
    new_languages: tuple[str, ...]
    families: tuple[str, ...]
    versions: dict[str, str]
    digest: str


@functools.cache
def items_of(task: str, language: str) -> tuple[Item, ...]:
    """All items of a cell."""
    return tuple(TASKS[task].items(language))


def build(
    seed: int = 0,
    examples: int = 60,
    tasks: int | Sequence[str] = 12,
    languages: int | Sequence[str] = 24,
) -> Mix:
    """Draws the mixture of real words.

    Args:
        seed: Decides which cells are held out and which items go where.
        examples: Training examples of a seen cell. Fewer ones are the first of more;
            everything else stays as it is.
        tasks: The first so many of `prompts.TASKS`, or their names.
        languages: The first so many of `languages.LANGUAGES`, or their codes. New
            languages come along, all four with 16 or more languages.

    Returns:
        The mixture, the same on every machine that has the same package versions.

    Raises:
        ValueError: If there are not so many tasks or languages.
        ImportError: If a package is missing.
    """
    chosen = chosen_names("tasks", tasks, TASKS)
    trained = chosen_names("languages", languages, LANGUAGES)
    new = tuple(NEW_LANGUAGES)[: max(1, round(len(trained) / 4))]
    packages = {name for task in chosen for name in TASKS[task].packages}
    versions = versions_of(sorted(packages))
    found = {
        (task, language): items_of(task, language)
        for task in chosen
        for language in (*trained, *new)
    }
    # Enough for a test and for training.
    available = {cell for cell, items in found.items() if len(items) >= 60}
    groups = cell_groups.groups(chosen, trained, new, available, seed)
    parts = parts_of([found[cell] for cell in groups], seed)
    drawn = draw(groups, found, parts, examples, seed)
    leaks.check(
        {
            split: [
                (cell[0], TASKS[cell[0]].prompt(NAME[cell[1]], item), item.keys)
                for cell, item in entries
            ]
            for split, entries in drawn.items()
        }
    )
    splits = {
        split: [example(cell, item, groups[cell]) for cell, item in entries]
        for split, entries in drawn.items()
    }
    return Mix(
        splits=splits,
        cells=groups,
        tasks=chosen,
        languages=trained,
        new_languages=new,
        families=tuple(dict.fromkeys(FAMILY[language] for language in trained)),
        versions=versions,
        digest=digest(splits, versions),
    )


def chosen_names(
    argument: str, wanted: int | Sequence[str], known: Iterable[str]
) -> tuple[str, ...]:
    known = tuple(known)
    if isinstance(wanted, int):
        wanted = known[:wanted] if 0 < wanted <= len(known) else (str(wanted),)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(
            f"`{argument}` is a number from 1 to {len(known)}, or some of "
            f"{', '.join(known)}. Received: {unknown[0]}."
        )
    return tuple(name for name in known if name in wanted)


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    try:
        return {name: importlib.metadata.version(name) for name in packages}
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(
            f"The mixture's answers come from packages. Received: no {error.name}. "
            'Install `pip install "keras-flix[evidence]"`, or name `tasks` that do '
            "without."
        ) from None


def parts_of(found: Iterable[Iterable[Item]], seed: int) -> dict[str, str]:
    """Sends every first key to one part, a fixed share of each kind and language."""
    kinds: dict[str, set[str]] = {}
    for items in found:
        for item in items:
            key = item.keys[0]
            kinds.setdefault(key.rpartition(":")[0], set()).add(key)
    parts = {}
    for keys in kinds.values():
        ranked = sorted(keys, key=lambda key: (order(seed, "part", key), key))
        tests = round(TEST_SHARE * len(ranked))
        both = tests + round(VALIDATION_SHARE * len(ranked))
        for place, key in enumerate(ranked):
            parts[key] = (
                "test" if place < tests else "validation" if place < both else "train"
            )
    return parts


def draw(
    groups: dict[Cell, str],
    found: dict[Cell, tuple[Item, ...]],
    parts: dict[str, str],
    examples: int,
    seed: int,
) -> dict[str, list[tuple[Cell, Item]]]:
    """Takes items for the splits, tests first: what they need is kept from training."""
    looked_at = cell_groups.for_validation(groups)
    train = {"seen": examples, "few_shot": FEW_SHOT}
    plan: dict[str, list[tuple[Cell, str, int]]] = {split: [] for split in SPLITS}
    for cell, group in groups.items():
        plan["train"].append((cell, "train", train.get(group, 0)))
        if group in train:
            plan["validation"].append((cell, "validation", VALIDATION))
        if cell in looked_at:
            plan["validation_held_out"].append((cell, "validation", TEST))
        else:
            plan["test"].append((cell, "test", TEST))
    drawn: dict[str, list[tuple[Cell, Item]]] = {}
    owners: dict[str, str] = {}
    for split in ("test", "validation_held_out", "validation", "train"):
        part = "validation" if split.startswith("validation") else split
        drawn[split] = []
        for cell, wanted, count in plan[split]:
            mine = [item for item in found[cell] if parts[item.keys[0]] == wanted]
            mine.sort(key=lambda item: (order(seed, *cell, *item.keys), item))
            free = [
                item
                for item in mine
                if all(owners.get(key, part) == part for key in item.keys)
            ][:count]
            owners |= {key: part for item in free for key in item.keys}
            drawn[split] += [(cell, item) for item in free]
    return {split: drawn[split] for split in SPLITS}


def example(cell: Cell, item: Item, group: str) -> Example:
    task, language = cell
    prompt = TASKS[task].prompt(NAME[language], item)
    return Example(task, language, FAMILY[language], prompt, item.answer, group)


def digest(splits: dict[str, list[Example]], versions: dict[str, str]) -> str:
    content = {
        split: [dataclasses.astuple(example) for example in examples]
        for split, examples in splits.items()
    }
    text = json.dumps([content, versions], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
