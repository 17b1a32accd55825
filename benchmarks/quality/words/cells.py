"""Which (task, language) is trained on, and which is kept for later."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from benchmarks.quality.words.items import order

GROUPS = ("seen", "few_shot", "held_out", "new_language")
# Every language misses one task of each block. A mixture of fewer tasks or languages
# so keeps the groups of the cells that it has.
BLOCK = 4

Cell = tuple[str, str]


def groups(
    tasks: Sequence[str],
    languages: Sequence[str],
    new_languages: Iterable[str],
    available: Collection[Cell],
    seed: int,
) -> dict[Cell, str]:
    """The group of every available cell, tasks and languages in their order.

    One task of each block of every language is held out, where the language has two or
    more of the block's; one task of one of its first blocks has few examples. Tasks
    take turns: the one that was held out in the smallest share of its languages so far
    comes first, by lot among equals.
    """
    found: dict[Cell, str] = {}
    blocks = [tasks[start : start + BLOCK] for start in range(0, len(tasks), BLOCK)]
    for number, block in enumerate(blocks):
        taken: dict[str, Counter[str]] = {"held_out": Counter(), "few_shot": Counter()}
        for place, language in enumerate(languages):
            own = [task for task in block if (task, language) in available]
            found |= {(task, language): "seen" for task in own}
            for group, least in (("held_out", 2), ("few_shot", 3)):
                left = [task for task in own if found[task, language] == "seen"]
                turn = group == "held_out" or place % 3 == number
                if len(own) < least or not turn:
                    continue
                task = min(
                    left,
                    key=lambda task: (
                        taken[group][task] / reach(task, languages, available),
                        order(seed, group, task, language),
                    ),
                )
                found[task, language] = group
                taken[group][task] += 1
    for language in new_languages:
        for task in tasks:
            if (task, language) in available:
                found[task, language] = "new_language"
    places = {code: place for place, code in enumerate([*languages, *new_languages])}
    return dict(
        sorted(found.items(), key=lambda c: (tasks.index(c[0][0]), places[c[0][1]]))
    )


def reach(task: str, languages: Iterable[str], available: Collection[Cell]) -> int:
    return sum((task, language) in available for language in languages)


def for_validation(groups: dict[Cell, str]) -> set[Cell]:
    """The held-out cells that a practitioner may look at: one of a block in turn."""
    chosen = set()
    languages = list(dict.fromkeys(language for _, language in groups))
    for place, language in enumerate(languages):
        held = [cell for cell, group in groups.items() if group == "held_out"]
        own = [cell for cell in held if cell[1] == language]
        if len(own) > 1:
            chosen.add(own[place % len(own)])
    return chosen
