"""Numbers in words and back: num2words2."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.quality.words.items import Item, is_short, tidy
from benchmarks.quality.words.languages import VARIANT

# Left out: Turkish, which the package writes without spaces, as on cheques.
CARDINALS = frozenset(
    "de es pl fi id ru sv fr hu lt el sw hi nl it cs uk da pt sl is ro hr "
    "nb ca sk lv".split()
)
# The package appends an ending to the cardinal in the others: "dvacet jednaý".
ORDINALS = frozenset("de es pl fi id ru sv fr hu sw hi nl it uk pt sl".split())


def key_of(number: int) -> tuple[str]:
    # Ordinals stop at 99; a part of each range goes to the tests.
    return (f"{'small' if number < 100 else 'large'}_number:{number}",)


def words_of(language: str, kind: str, numbers: Iterable[int]) -> dict[int, str]:
    from num2words2 import num2words

    return {
        number: tidy(num2words(number, lang=VARIANT.get(language, language), to=kind))
        for number in numbers
    }


def cardinals(language: str) -> list[Item]:
    """`345`: `dreihundertfünfundvierzig`."""
    if language not in CARDINALS:
        return []
    words = words_of(language, "cardinal", range(2, 1000))
    return [
        Item(str(number), text, key_of(number))
        for number, text in words.items()
        if is_short(text)
    ]


def digits(language: str) -> list[Item]:
    """`dreihundertfünfundvierzig`: `345`."""
    return [Item(item.answer, item.subject, item.keys) for item in cardinals(language)]


def ordinals(language: str) -> list[Item]:
    """`21st`: `einundzwanzigste`."""
    if language not in ORDINALS:
        return []
    words = words_of(language, "ordinal", range(1, 100))
    return [
        Item(f"{number}{suffix(number)}", text, key_of(number))
        for number, text in words.items()
        if is_short(text)
    ]


def suffix(number: int) -> str:
    if number % 100 in (11, 12, 13):
        return "th"
    return {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
