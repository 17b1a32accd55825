"""What a source yields: a question, its answer, and what may not be seen twice."""

from __future__ import annotations

import dataclasses
import hashlib
import unicodedata

# A sequence of 64 tokens of SmolLM2 holds the template and both texts: a Latin letter
# costs less than half a token there, a letter of another script one or more.
LATIN, OTHER = 36, 22


@dataclasses.dataclass(frozen=True, order=True)
class Item:
    """One question of one task in one language.

    Attributes:
        subject: What the prompt asks about.
        answer: What is to be written.
        keys: Names of what must not stand both in training and in a test, in any task
            or language: `"country:FR"`, `"word:talo"`. The first one decides where the
            item goes.
    """

    subject: str
    answer: str
    keys: tuple[str, ...]


def is_short(text: str) -> bool:
    """Whether a text is within what a trial's sequences hold."""
    latin = all(
        "LATIN" in unicodedata.name(letter, "") for letter in text if letter.isalpha()
    )
    return 0 < len(text) <= (LATIN if latin else OTHER)


def tidy(text: str) -> str:
    """Composed letters, plain spaces; CLDR has narrow and unbreakable ones."""
    text = unicodedata.normalize("NFC", text)
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")
    return " ".join(text.split())


def order(*words: object) -> str:
    """A value to sort by, which looks random and is the same on every machine."""
    return hashlib.sha256("\n".join(map(str, words)).encode()).hexdigest()
