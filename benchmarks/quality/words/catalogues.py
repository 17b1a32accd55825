"""Strings of a web interface (Django's translations) and names of emoji."""

from __future__ import annotations

import gettext
import importlib.util
import re
from pathlib import Path

from benchmarks.quality.words.cldr import distinct, languages as language_names
from benchmarks.quality.words.items import Item, is_short, tidy

EMOJI = frozenset("de es fr it pt id ru tr".split())
MARKUP = re.compile(r"[%{}<>\n\x04“”\"/_:,0-9]")
# Of programmers, not of users; or shortened beyond recognition.
JARGON = frozenset(
    "django json gis repr raster hash hstore argon url uuid xml ipv am pm jan feb mar "
    "apr may jun jul aug sep sept oct nov dec python csrf".split()
)
# Other tasks ask for these.
NUMBERS = frozenset("one two three four five six seven eight nine".split())


def interface_strings(language: str) -> list[Item]:
    """`Log out`: `Kirjaudu ulos`."""
    names = {item.subject.casefold() for item in language_names("ru")}
    texts: dict[str, str] = {}
    for path in catalogues(language):
        with path.open("rb") as file:
            messages = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
        for english, text in messages.items():
            # Plurals are tuples.
            if isinstance(english, str) and not MARKUP.search(english + text):
                texts.setdefault(english, text)
    items = []
    for english, text in sorted(texts.items()):
        subject, answer = tidy(english), tidy(text)
        words = re.findall(r"\w+", subject.casefold())
        if not words or not (JARGON | NUMBERS | names).isdisjoint(words):
            continue
        copied = answer.casefold() == subject.casefold()
        if is_short(subject) and is_short(answer) and not copied:
            items.append(Item(subject, answer, (f"string:{' '.join(words)}",)))
    return distinct(items)


def catalogues(language: str) -> list[Path]:
    """Django's .mo files, main one first. Django itself is not imported."""
    spec = importlib.util.find_spec("django")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            "Interface strings are read from Django's translations. Received: no Django. "
            'Install `pip install "keras-flix[evidence]"`.'
        )
    root = Path(spec.submodule_search_locations[0])
    file = f"locale/{language}/LC_MESSAGES/django.mo"
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
