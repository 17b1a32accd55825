"""Strings of a web interface (Django's translations) and names of emoji."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.quality.words.cldr import locale
from benchmarks.quality.words.items import Item, is_short, tidy
from benchmarks.quality.words.languages import VARIANT

EMOJI = frozenset("de es fr it pt id ru tr".split())
MARKUP = re.compile(r"[%{}<>\n\x04“”\"/_:,0-9]")
# Of programmers, not of users; or shortened beyond recognition.
JARGON = frozenset(
    "django json gis repr raster hash hstore argon url uuid xml ipv csrf python "
    "logentry postgresql geometry geometric polygon extent a m p am pm jan feb mar apr "
    "may jun jul aug sep sept oct nov dec mon tue wed thu fri sat sun".split()
)
# Other tasks ask for numbers and languages; these CLDR calls otherwise.
ASKED_ELSEWHERE = frozenset(
    "one two three four five six seven eight nine bengali frisian sorbian".split()
)


def interface_strings(language: str) -> list[Item]:
    """`Log out`: `Kirjaudu ulos`."""
    from babel.messages.mofile import read_mo

    names = " ".join(locale("en").languages.values()).casefold().split()
    excluded = JARGON | ASKED_ELSEWHERE | set(names)
    items: dict[str, Item] = {}
    for path in catalogues(language):
        with path.open("rb") as file:
            messages = list(read_mo(file))
        for message in messages:
            # Plurals are tuples; a context would have to be in the prompt.
            if message.context or not isinstance(message.id, str):
                continue
            subject, answer = tidy(message.id), tidy(message.string)
            words = re.findall(r"\w+", subject.casefold())
            if MARKUP.search(message.id + message.string) or not words:
                continue
            copied = answer.casefold() == subject.casefold()
            if copied or not excluded.isdisjoint(words):
                continue
            if is_short(subject) and is_short(answer):
                # One spelling of "Site" and "site".
                key = f"string:{' '.join(words)}"
                items.setdefault(key, Item(subject, answer, (key,)))
    return [items[key] for key in sorted(items)]


def catalogues(language: str) -> list[Path]:
    """Django's .mo files, main one first."""
    import django

    root = Path(django.__file__).parent
    file = f"locale/{VARIANT.get(language, language)}/LC_MESSAGES/django.mo"
    return [root / "conf" / file, *sorted(root.glob(f"contrib/*/{file}"))]


def emoji_names(language: str) -> list[Item]:
    """A turtle: `Schildkröte`."""
    if language not in EMOJI:
        return []
    import emoji

    emoji.config.load_language(language)
    items = []
    for symbol, entry in emoji.EMOJI_DATA.items():
        if entry["status"] != emoji.STATUS["fully_qualified"] or language not in entry:
            continue
        # Flags are another task's countries; others vary the skin or the sex.
        if len(symbol.strip("\ufe0f")) > 1:
            continue
        subject, answer = (
            tidy(entry[code].strip(":").replace("_", " ")) for code in ("en", language)
        )
        letters = subject.replace(" ", "").replace("-", "")
        same = subject.casefold() == answer.casefold()
        named = letters.isalpha() and not subject.startswith("Japanese")
        if named and not same and is_short(answer) and len(subject) <= 24:
            items.append(Item(f"{symbol} {subject}", answer, (f"emoji:{symbol}",)))
    return items
