"""Multitask multilingual mixture made from the Unicode CLDR data in Babel.

Ten tasks (weekday, full date, duration, currency, ...) in 28 languages make
280 cells; each cell turns a language-neutral input into the way the Unicode
CLDR writes it in that language. `build_mixture` keeps a few cells of every
language out of training, so that unseen (task, language) pairs can be scored.

`raw_documents` yields the text for pretraining the small base model of the
guides. A document is one locale's record of one date, weekday, quantity, amount
or list: a language tag, the neutral form, and a few of its CLDR renderings in
random order. So the base model knows the *substance* of all cells, the held-out
ones too, as a real pretrained model has met month names and date formats of
many languages in ordinary text. It has never met a prompt or a task tag, and
nothing in a document says which rendering is which: what a task tag asks for is
left to the adapters.
"""

import copy
import dataclasses
import datetime
import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from babel import localedata
from babel.dates import format_date, format_skeleton, format_timedelta, get_day_names
from babel.lists import format_list
from babel.numbers import format_currency
from babel.units import format_unit

LANGUAGES: tuple[str, ...] = (
    "ar", "bg", "bn", "de", "el", "en", "es", "fa", "fi", "fr", "he", "hi", "hy", "id",
    "it", "ja", "ka", "ko", "nl", "pl", "pt", "ru", "sv", "ta", "th", "tr", "uk", "zh",
)  # fmt: skip

# Languages of the larger mixture in `benchmarks/quality`.
MORE_LANGUAGES: tuple[str, ...] = (
    "ca", "cs", "da", "et", "hr", "hu", "mr", "ms", "nb", "ro", "sk", "sw",
)  # fmt: skip

# Languages that no base of the repository was pretrained on.
UNKNOWN_LANGUAGES: tuple[str, ...] = ("af", "gl", "sl", "is", "sq", "cy", "vi", "fil")

TASKS: tuple[str, ...] = (
    "weekday",
    "month",
    "month_year",
    "day_month",
    "long_date",
    "full_date",
    "duration",
    "relative_time",
    "currency",
    "list",
)

# The family of a task is the kind of neutral input it takes.
FAMILIES: dict[str, str] = {
    **dict.fromkeys(TASKS[:6], "date"),
    "duration": "quantity",
    "relative_time": "offset",
    "currency": "amount",
    "list": "items",
}

# Separators: one token each in the tokenizer, so that a rendering is cut into
# the same tokens at the start of a response as within a raw document.
ANSWER = " = "
NEXT = " | "

_UNIT_SECONDS: dict[str, int] = {
    "minute": 60,
    "hour": 3600,
    "day": 86400,
    "week": 7 * 86400,
    # Babel's own lengths of a month and a year.
    "month": 30 * 86400,
    "year": 365 * 86400,
}
# Babel writes the aliases that it resolves into dictionaries which locales share,
# so a locale can end up with the month names of another one that was read
# before. A deep copy, made before anything is resolved, keeps them apart.
for _language in LANGUAGES + MORE_LANGUAGES + UNKNOWN_LANGUAGES:
    _data = localedata.load(_language)
    _copy = copy.deepcopy(_data)
    _data.clear()
    _data.update(_copy)

_CURRENCIES: tuple[str, ...] = ("EUR", "USD", "GBP", "CHF", "INR", "BRL")
_FIRST_DAY = datetime.date(1990, 1, 1).toordinal()
_LAST_DAY = datetime.date(2039, 12, 31).toordinal()


@dataclasses.dataclass(frozen=True)
class Example:
    """One prompt with the answer that the CLDR gives."""

    task: str
    language: str
    prompt: str
    response: str


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Train and test examples.

    Attributes:
        train: examples of the seen cells.
        test_seen: examples of the seen cells with inputs that `train` lacks
            in the same cell.
        test_unseen: examples of the held-out cells.
        held_out: the (task, language) pairs that `train` lacks.
    """

    train: list[Example]
    test_seen: list[Example]
    test_unseen: list[Example]
    held_out: frozenset[tuple[str, str]]


def task_tag(task: str) -> str:
    """Returns the tag that opens the prompts of a task."""
    return f"[{task}] "


def language_tag(language: str) -> str:
    """Returns the tag that marks a language in prompts and documents."""
    return f"[{language}] "


def make_prompt(task: str, language: str, neutral: str) -> str:
    """Returns the prompt, e.g. `[full_date] [fr] 2024-03-05 2 = `."""
    return f"{task_tag(task)}{language_tag(language)}{neutral}{ANSWER}"


def sample_neutral(family: str, rng: random.Random) -> str:
    """Draws a language-neutral input such as `2024-03-05 2` or `-3 day`."""
    if family == "date":
        day = datetime.date.fromordinal(rng.randint(_FIRST_DAY, _LAST_DAY))
        # The ISO weekday is given: computing it is beyond a small model.
        return f"{day.isoformat()} {day.isoweekday()}"
    if family == "day":
        return str(rng.randint(1, 7))
    if family == "quantity":
        return f"{rng.randint(1, 60)} {rng.choice(list(_UNIT_SECONDS))}"
    if family == "offset":
        unit = rng.choice(list(_UNIT_SECONDS))
        return f"{rng.choice('+-')}{rng.randint(1, 30)} {unit}"
    if family == "amount":
        # Amounts of all lengths, with and without a thousands separator.
        digits = rng.randint(3, 6)
        cents = rng.randrange(10 ** (digits - 1), 10**digits)
        return f"{cents // 100}.{cents % 100:02d} {rng.choice(_CURRENCIES)}"
    if family == "items":
        letters = rng.sample("ABCDEFGHIJKLMNOPQRSTUVWXYZ", rng.randint(3, 4))
        return ";".join(letters)
    raise ValueError(f"Unknown family: {family!r}")


def _date(neutral: str) -> datetime.date:
    return datetime.date.fromisoformat(neutral.split()[0])


def _offset(neutral: str, language: str, width: str) -> str:
    count, unit = neutral.split()
    return format_timedelta(
        datetime.timedelta(seconds=int(count) * _UNIT_SECONDS[unit]),
        granularity=unit,  # type: ignore[arg-type]
        # Never a larger unit than the one asked for.
        threshold=1e9,
        add_direction=True,
        format=width,  # type: ignore[arg-type]
        locale=language,
    )


def _quantity(neutral: str, language: str, width: str) -> str:
    count, unit = neutral.split()
    unit = f"duration-{unit}"
    text = format_unit(int(count), unit, length=width, locale=language)  # type: ignore[arg-type]
    if unit in text:
        # Where the long form equals the short one, the CLDR leaves the long one
        # out, and Babel answers with the bare name of the unit.
        text = format_unit(int(count), unit, length="short", locale=language)
    return text


def _amount(neutral: str, language: str, kind: str) -> str:
    number, currency = neutral.split()
    return format_currency(number, currency, locale=language, format_type=kind)  # type: ignore[arg-type]


def _items(neutral: str, language: str, style: str) -> str:
    return format_list(neutral.split(";"), style=style, locale=language)  # type: ignore[arg-type]


def _pattern(pattern: str) -> Callable[[str, str], str]:
    return lambda neutral, language: format_date(_date(neutral), pattern, language)


def _skeleton(skeleton: str) -> Callable[[str, str], str]:
    return lambda neutral, language: format_skeleton(
        skeleton, _date(neutral), locale=language
    )


_ANSWERS: dict[str, Callable[[str, str], str]] = {
    # "cccc" and "LLLL" are the names as they stand alone, outside a date.
    "weekday": _pattern("cccc"),
    "month": _pattern("LLLL"),
    "month_year": _skeleton("yMMMM"),
    "day_month": _skeleton("MMMMd"),
    "long_date": _pattern("long"),
    "full_date": _pattern("full"),
    "duration": lambda neutral, language: _quantity(neutral, language, "long"),
    "relative_time": lambda neutral, language: _offset(neutral, language, "long"),
    "currency": lambda neutral, language: _amount(neutral, language, "standard"),
    "list": lambda neutral, language: _items(neutral, language, "standard"),
}

# Renderings that no task asks for; they fill the raw documents only.
_OTHERS: dict[str, tuple[Callable[[str, str], str], ...]] = {
    "date": (_pattern("short"), _pattern("medium")),
    # The bare list of weekday names.
    "day": (
        lambda neutral, language: get_day_names("wide", "stand-alone", language)[
            int(neutral) - 1
        ],
    ),
    "quantity": (lambda neutral, language: _quantity(neutral, language, "short"),),
    # Babel lacks the short form of some units, as it does not follow the alias.
    "offset": (),
    "amount": (lambda neutral, language: _amount(neutral, language, "name"),),
    "items": (lambda neutral, language: _items(neutral, language, "or"),),
}


def answer(task: str, language: str, neutral: str) -> str:
    """Returns the CLDR rendering that a task asks for."""
    return _ANSWERS[task](neutral, language)


def renderings(family: str, language: str, neutral: str) -> list[str]:
    """Returns all distinct CLDR renderings of a neutral form."""
    found = [
        answer(task, language, neutral) for task in TASKS if FAMILIES[task] == family
    ]
    found += [other(neutral, language) for other in _OTHERS[family]]
    return list(dict.fromkeys(found))


def choose_held_out(seed: int, per_language: int) -> frozenset[tuple[str, str]]:
    """Chooses the (task, language) cells that training never shows.

    Every language loses `per_language` tasks, and the losses are spread evenly
    over the tasks, so that each task stays seen in most languages.
    """
    if not 0 <= per_language <= len(TASKS) // 2:
        raise ValueError(
            f"`held_out_per_language` must lie between 0 and {len(TASKS) // 2}. "
            f"Received: {per_language}"
        )
    rng = np.random.default_rng(seed)
    losses = dict.fromkeys(TASKS, 0)
    cells: set[tuple[str, str]] = set()
    for language in rng.permutation(LANGUAGES):
        order = [str(task) for task in rng.permutation(TASKS)]
        # The sort is stable: tasks with equal losses stay in random order.
        for task in sorted(order, key=losses.__getitem__)[:per_language]:
            losses[task] += 1
            cells.add((task, str(language)))
    return frozenset(cells)


def cell_examples(
    task: str, language: str, count: int, rng: random.Random
) -> list[Example]:
    """Returns `count` examples of one cell, all with different inputs."""
    neutrals: dict[str, None] = {}
    for _ in range(1000 * max(count, 1)):
        if len(neutrals) >= count:
            break
        neutrals[sample_neutral(FAMILIES[task], rng)] = None
    else:
        raise ValueError(f"Task {task!r} has fewer than {count} different inputs.")
    return [
        Example(
            task,
            language,
            make_prompt(task, language, neutral),
            answer(task, language, neutral),
        )
        for neutral in neutrals
    ]


def build_mixture(
    seed: int = 0,
    train_per_cell: int = 20,
    test_per_cell: int = 2,
    held_out_per_language: int = 2,
) -> Mixture:
    """Builds the mixture.

    Args:
        seed: fixes the held-out cells, the inputs and the order of `train`.
        train_per_cell: number of training examples of each seen cell.
        test_per_cell: number of test examples of each cell, seen or held out.
        held_out_per_language: number of tasks kept out of training for each
            language.

    Returns:
        The `Mixture`.
    """
    held_out = choose_held_out(seed, held_out_per_language)
    train: list[Example] = []
    test_seen: list[Example] = []
    test_unseen: list[Example] = []
    for task in TASKS:
        for language in LANGUAGES:
            # A string seeds a cell the same whatever the other cells hold.
            rng = random.Random(f"{seed}/{task}/{language}")
            if (task, language) in held_out:
                test_unseen += cell_examples(task, language, test_per_cell, rng)
                continue
            both = cell_examples(task, language, train_per_cell + test_per_cell, rng)
            train += both[:train_per_cell]
            test_seen += both[train_per_cell:]
    random.Random(seed).shuffle(train)
    return Mixture(train, test_seen, test_unseen, held_out)


def raw_documents(seed: int = 0, languages: Sequence[str] = LANGUAGES) -> Iterator[str]:
    """Yields raw CLDR records without end, for pretraining.

    A document looks like `[fr] 2024-03-05 2 = mardi | 5 mars 2024`: up to
    four renderings in random order, never a prompt and never a task tag.
    """
    rng = random.Random(f"raw/{seed}")
    families = ("date", "day", "quantity", "offset", "amount", "items")
    # Dates serve six of the ten tasks.
    weights = (5, 1, 1.5, 1.5, 1.5, 1)
    while True:
        language = rng.choice(languages)
        family = rng.choices(families, weights)[0]
        neutral = sample_neutral(family, rng)
        forms = renderings(family, language, neutral)
        forms = rng.sample(forms, min(len(forms), rng.randint(1, 4)))
        if family == "date" and rng.random() < 0.5:
            # Weekdays more often: a small model is slow to find their digit.
            name = answer("weekday", language, neutral)
            forms = [name, *(form for form in forms[:-1] if form != name)]
        yield f"{language_tag(language)}{neutral}{ANSWER}{NEXT.join(forms)}"
