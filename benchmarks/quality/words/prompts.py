"""The tasks: where their items come from, and the instruction that asks for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from benchmarks.quality.words import catalogues, cldr, lexicon, numbers
from benchmarks.quality.words.items import Item


@dataclasses.dataclass(frozen=True)
class Task:
    """One kind of question.

    Attributes:
        instruction: Prompt with places for `{language}` and `{subject}`.
        items: All items of a language; none where the source has no such language.
        packages: Distributions that the answers come from.
    """

    instruction: str
    items: Callable[[str], list[Item]]
    packages: tuple[str, ...]

    def prompt(self, language: str, item: Item) -> str:
        return self.instruction.format(language=language, subject=item.subject)


WORDS = ("simplemma", "wordfreq")
# Blocks of four; each block holds out one task of every language (see `cells`).
TASKS = {
    "dictionary_form": Task(
        "Write the dictionary form of the {language} word: {subject}",
        lexicon.dictionary_forms,
        WORDS,
    ),
    "number": Task(
        "Write the number in {language} words: {subject}",
        numbers.cardinals,
        ("num2words2",),
    ),
    "country": Task(
        "Write the {language} name of the country: {subject}",
        cldr.countries,
        ("babel",),
    ),
    "unit": Task("Write the measure in {language}: {subject}", cldr.units, ("babel",)),
    "hyphenation": Task(
        "Split the {language} word with hyphens: {subject}",
        lexicon.hyphenations,
        (*WORDS, "pyphen"),
    ),
    "date": Task(
        "Write the date in {language}, with the month's name: {subject}",
        cldr.dates,
        ("babel",),
    ),
    "interface": Task(
        "Translate the label of a web page into {language}: {subject}",
        catalogues.interface_strings,
        ("babel", "django"),
    ),
    "accents": Task(
        "Put the accents back into the {language} word: {subject}",
        lexicon.accents,
        WORDS,
    ),
    "relative_time": Task(
        "Write the relative time in {language}: {subject}",
        cldr.relative_times,
        ("babel",),
    ),
    "ordinal": Task(
        "Write the ordinal number in {language} words: {subject}",
        numbers.ordinals,
        ("num2words2",),
    ),
    "digits": Task(
        "Write the {language} number in digits: {subject}",
        numbers.digits,
        ("num2words2",),
    ),
    "emoji": Task(
        "Write the {language} name of the emoji, in small letters: {subject}",
        catalogues.emoji_names,
        ("emoji",),
    ),
    "currency": Task(
        "Write the {language} name of the currency: {subject}",
        cldr.currencies,
        ("babel",),
    ),
    "language": Task(
        "Write the {language} name of the language: {subject}",
        cldr.languages,
        ("babel",),
    ),
}
