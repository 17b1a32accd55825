"""Frequent words: dictionary form, hyphens, accents (simplemma, pyphen, wordfreq)."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Mapping
from typing import NamedTuple

from benchmarks.quality.words import cached
from benchmarks.quality.words.items import Item
from benchmarks.quality.words.languages import VARIANT

# simplemma knows all of these, and wordfreq has lists of their words. Without word
# frequencies (Swahili, Estonian) a dictionary shows words that nobody uses; the list
# of Croatian is that of Serbo-Croatian.
FREQUENT = frozenset(
    "de es pl fi tr id ru sv fr hu lt el hi nl it cs uk da pt sl is ro sk "
    "nb ca lv".split()
)
# simplemma gives stems of verbs there, not their dictionary forms.
STEMS_ONLY = frozenset(["tr"])
# pyphen's patterns are wrong there: "χα-ράμα-τα", "си-м-во-ли".
GAPS = frozenset(["el", "uk"])
# Languages in Latin or Greek letters with accents that readers miss.
ACCENTED = FREQUENT - frozenset("id ru uk hi nl".split())
# The most frequent ones are enough to draw from.
ENOUGH = 2000
# Letters with a plain relative that Unicode does not decompose.
PLAIN = str.maketrans("łđøı", "ldoi")


class Lexicon(NamedTuple):
    """What is known of a language's frequent words.

    Attributes:
        lemmas: Dictionary form of each word, most frequent first.
        plain: Of their spellings without accents, those that are words themselves.
    """

    lemmas: Mapping[str, str]
    plain: frozenset[str]


def is_word(text: str) -> bool:
    # Vowel signs of Hindi are marks, not letters.
    return all(c.isalpha() or unicodedata.category(c)[0] == "M" for c in text)


@functools.cache
def frequent_words(language: str) -> tuple[str, ...]:
    """The words of a language, most frequent first."""
    import wordfreq

    words = wordfreq.top_n_list(language, 10_000)
    return tuple(word for word in words if is_word(word) and 3 <= len(word) <= 14)


@functools.cache
def lexicon(language: str) -> Lexicon:
    """Read from the user's cache; whole dictionaries take a minute and gigabytes."""
    file = cached.place("lexicon", language, __file__, ("simplemma", "wordfreq"))
    if not file.exists():
        cached.write(file, read_lexicon(language))
    lemmas, plain = cached.read(file)
    return Lexicon(lemmas, frozenset(plain))


def read_lexicon(language: str) -> tuple[dict[str, str], list[str]]:
    from simplemma.strategies.dictionaries import DefaultDictionaryFactory

    dictionary = DefaultDictionaryFactory(cache_max_size=1).get_dictionary(language)
    lemmas, plain = {}, set()
    for word in frequent_words(language):
        # German nouns have a capital in the dictionary, and none in the frequencies.
        spellings = (word, word.capitalize()) if language == "de" else (word,)
        forms = {spelling: dictionary.get(spelling) for spelling in spellings}
        known = {spelling: form for spelling, form in forms.items() if form}
        if len(known) == 1:
            ((spelling, form),) = known.items()
            lemmas[spelling] = form
            if without_accents(spelling) in dictionary:
                plain.add(without_accents(spelling))
    return lemmas, sorted(plain)


def keys_of(word: str, lemma: str) -> tuple[str, ...]:
    """The dictionary form first: it decides where all its forms go."""
    # Without a language: neighbours have many words in common.
    return tuple(dict.fromkeys(f"word:{text.casefold()}" for text in (lemma, word)))


def dictionary_forms(language: str) -> list[Item]:
    """`taloissa`: `talo`."""
    if language not in FREQUENT - STEMS_ONLY:
        return []
    known = lexicon(language).lemmas
    own = {lemma for word, lemma in known.items() if word != lemma}
    items = []
    for word, lemma in known.items():
        # A word that is also a dictionary form has two answers. An answer that is rare,
        # or is itself said to be a form of something else, is more often wrong.
        if word == lemma or word in own or known.get(lemma) != lemma:
            continue
        if is_word(lemma) and 2 <= len(lemma) <= 14 and len(word) >= 4:
            items.append(Item(word, lemma, keys_of(word, lemma)))
    return items[:ENOUGH]


def hyphenations(language: str) -> list[Item]:
    """`taloissa`: `ta-lois-sa`."""
    import pyphen

    if language not in FREQUENT - GAPS or language not in pyphen.LANGUAGES:
        return []
    known = lexicon(language).lemmas
    hyphens = pyphen.Pyphen(lang=VARIANT.get(language, language))
    words = [word for word in known if 6 <= len(word) <= 12][:ENOUGH]
    answers = {word: hyphens.inserted(word) for word in words}
    return [
        Item(word, answer, keys_of(word, known[word]))
        for word, answer in answers.items()
        if "-" in answer
    ]


def without_accents(word: str) -> str:
    decomposed = unicodedata.normalize("NFD", word)
    plain = "".join(c for c in decomposed if not unicodedata.combining(c))
    return unicodedata.normalize("NFC", plain.translate(PLAIN))


def accents(language: str) -> list[Item]:
    """`aani`: `ääni`."""
    if language not in ACCENTED:
        return []
    lemmas, words = lexicon(language)
    readings: dict[str, set[str]] = {}
    for word in frequent_words(language):
        readings.setdefault(without_accents(word), set()).add(word)
    items = []
    for word, lemma in lemmas.items():
        plain = without_accents(word)
        # Left out: what people also write without accents, and what has a twin.
        alone = readings[plain.lower()] == {word.lower()} and plain not in words
        if plain != word and alone and len(word) >= 4:
            items.append(Item(plain, word, keys_of(word, lemma)))
    return items[:ENOUGH]
