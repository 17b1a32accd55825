"""Names, dates, units and spans of time: the Unicode CLDR in Babel."""

from __future__ import annotations

import datetime
import functools
from collections.abc import Mapping
from typing import Any

from benchmarks.quality.words.items import Item, is_short, tidy

UNITS = (
    "duration-second duration-minute duration-hour duration-day duration-week "
    "duration-month duration-year length-meter length-kilometer length-centimeter "
    "length-inch length-foot mass-gram mass-kilogram volume-liter area-hectare "
    "energy-calorie power-watt angle-degree"
).split()
# Unions and what CLDR tests with.
NO_COUNTRIES = frozenset("EU EZ UN QO XA XB ZZ".split())
SPANS = ("minute", "hour", "day", "week", "month", "year")


@functools.cache
def locale(language: str) -> Any:
    from babel import Locale

    return Locale(language)


def named(
    kind: str, english: Mapping[str, str], names: Mapping[str, str]
) -> list[Item]:
    """Names that are known, short, and not the English ones: those would be copies."""
    items = []
    for code in sorted(english):
        subject, answer = tidy(english[code]), tidy(names.get(code) or "")
        plain = subject.replace(" ", "").replace("-", "").isalpha()
        copied = answer.casefold() == subject.casefold()
        if answer and plain and not copied and is_short(subject) and is_short(answer):
            items.append(Item(subject, answer, (f"{kind}:{code}",)))
    return distinct(items)


def distinct(items: list[Item]) -> list[Item]:
    """Without the subjects that have more than one answer."""
    answers: dict[str, set[str]] = {}
    for item in items:
        answers.setdefault(item.subject, set()).add(item.answer)
    seen: set[str] = set()
    return [
        item
        for item in items
        if len(answers[item.subject]) == 1
        and not (item.subject in seen or seen.add(item.subject))  # type: ignore[func-returns-value]
    ]


def countries(language: str) -> list[Item]:
    """`Germany`: `Saksa`."""
    english = {
        code: name
        for code, name in locale("en").territories.items()
        if len(code) == 2 and code.isalpha() and code not in NO_COUNTRIES
        if " - " not in name and "SAR" not in name
    }
    return named("country", english, locale(language).territories)


def languages(language: str) -> list[Item]:
    """`Welsh`: `kymri`."""
    english = {
        code: name
        for code, name in locale("en").languages.items()
        if len(code) == 2  # the well-known ones
    }
    return named("language", english, locale(language).languages)


def currencies(language: str) -> list[Item]:
    """`Swiss Franc`: `Sveitsin frangi`."""
    from babel.numbers import get_territory_currencies

    in_use = {
        code
        for territory in locale("en").territories
        if len(territory) == 2 and territory.isalpha()
        for code in get_territory_currencies(territory)
    }
    english = {
        code: name
        for code, name in locale("en").currencies.items()
        if code in in_use and code != "XXX"
    }
    return named("currency", english, locale(language).currencies)


def dates(language: str) -> list[Item]:
    """`2024-03-05`: `5. maaliskuuta 2024`."""
    from babel.dates import format_date

    first = datetime.date(1990, 1, 1)
    days = [first + datetime.timedelta(days=17 * step) for step in range(800)]
    items = []
    for day in days:
        answer = tidy(format_date(day, "long", locale=locale(language)))
        if is_short(answer):
            items.append(Item(day.isoformat(), answer, (f"date:{day}",)))
    return items


def units(language: str) -> list[Item]:
    """`5 hours`: `5 tuntia`."""
    items = []
    for unit in UNITS:
        for count in (*range(1, 13), 15, 20, 21, 22, 25, 30, 50, 100):
            texts = [written_out(code, unit, count) for code in ("en", language)]
            if texts[0].casefold() != texts[1].casefold() and is_short(texts[1]):
                items.append(Item(*texts, keys=(f"unit:{unit} {count}",)))
    return items


def written_out(language: str, unit: str, count: int) -> str:
    """A count with its unit.

    In CLDR, a unit without a long form inherits the short one ("siku 5"). Babel's
    `format_unit` writes its name or even its identifier there, so the patterns are read
    where Babel keeps them.
    """
    known = locale(language)
    lengths = known._data["unit_patterns"][unit]
    form = known.plural_form(count)
    pattern = lengths.get("long", {}).get(form) or lengths["short"][form]
    return tidy(pattern.format(count))


def relative_times(language: str) -> list[Item]:
    """`3 days ago`: `3 päivää sitten`."""
    from babel.dates import format_timedelta

    def render(code: str, count: int, unit: str) -> str:
        # A threshold this high keeps 40 days from becoming a month.
        seconds = count * SECONDS[unit]
        return tidy(
            format_timedelta(
                datetime.timedelta(seconds=seconds),
                granularity=unit,
                threshold=10_000,
                add_direction=True,
                locale=locale(code),
            )
        )

    items = []
    for unit in SPANS:
        for count in (*range(1, 22), 25, 30, 45):
            for sign in (1, -1):
                texts = [render(code, sign * count, unit) for code in ("en", language)]
                if is_short(texts[1]):
                    items.append(Item(*texts, keys=(f"span:{unit} {sign * count}",)))
    return items


SECONDS = {
    "minute": 60,
    "hour": 3600,
    "day": 86_400,
    "week": 604_800,
    "month": 2_592_000,
    "year": 31_536_000,
}
