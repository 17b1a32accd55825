"""The mixture of real words: its cells, its splits, its leak check, its sources."""

import importlib.metadata
import os
import re
import subprocess
import sys
from collections import Counter

import pytest
from helpers.places import ROOT

pytest.importorskip("babel", reason="the mixture's answers come from packages")
pytest.importorskip("num2words2", reason="the mixture's answers come from packages")
pytestmark = pytest.mark.short("torch")

from benchmarks.quality.words import (  # noqa: E402
    build,
    cached,
    catalogues,
    cells,
    cldr,
    drawing,
    leaks,
    lexicon,
    numbers,
    summary,
)
from benchmarks.quality.words.items import Item, is_short, tidy  # noqa: E402
from benchmarks.quality.words.languages import (  # noqa: E402
    FAMILY,
    LANGUAGES,
    NAME,
    NEW_LANGUAGES,
)
from benchmarks.quality.words.prompts import TASKS  # noqa: E402

# What needs no large package: two blocks of tasks.
SMALL = ("number", "country", "unit", "date", "relative_time", "digits", "currency")
ORDER = tuple(task for task in TASKS if task in SMALL)


@pytest.fixture(scope="module")
def mix():
    return build(seed=0, examples=12, tasks=SMALL, languages=8)


def per_cell(examples):
    return Counter((example.task, example.language) for example in examples)


def everything(mix):
    return [example for split in mix.splits.values() for example in split]


# Cells


def whole_grid():
    """The groups of the default mixture, with the holes that the sources have."""
    holes = {("hyphenation", "fi"), ("emoji", "fi"), ("number", "tr"), ("digits", "tr")}
    tasks = tuple(TASKS)[:12]
    available = {(task, language) for task in tasks for language in NAME} - holes
    return tasks, available


def test_every_language_misses_a_task_of_each_block_and_has_few_examples_of_one():
    tasks, available = whole_grid()
    groups = cells.groups(tasks, tuple(LANGUAGES), NEW_LANGUAGES, available, seed=0)
    assert groups.keys() == available
    for language in LANGUAGES:
        own = Counter(group for cell, group in groups.items() if cell[1] == language)
        assert own["held_out"] == 3 and own["few_shot"] == 1
    for task in tasks:
        own = Counter(group for cell, group in groups.items() if cell[0] == task)
        # No task is nearly always held out, and none never.
        assert 4 <= own["held_out"] <= 8 and own["seen"] >= 12
        assert own["new_language"] == len(NEW_LANGUAGES)
    looked_at = cells.for_validation(groups)
    assert all(groups[cell] == "held_out" for cell in looked_at)
    # Two held-out tasks of every language are left for the test.
    assert Counter(language for _, language in looked_at) == dict.fromkeys(LANGUAGES, 1)


def test_a_smaller_mixture_keeps_its_cells_groups():
    tasks, available = whole_grid()
    whole = cells.groups(tasks, tuple(LANGUAGES), NEW_LANGUAGES, available, seed=3)
    small = cells.groups(tasks[:8], tuple(LANGUAGES)[:6], (), available, seed=3)
    assert small == {cell: group for cell, group in whole.items() if cell in small}
    other = cells.groups(tasks, tuple(LANGUAGES), NEW_LANGUAGES, available, seed=4)
    assert other.keys() == whole.keys() and other != whole


# Splits


def test_the_mixture_holds_what_its_cells_say(mix):
    assert mix.tasks == ORDER and mix.languages == tuple(LANGUAGES)[:8]
    assert not set(mix.languages) & set(mix.new_languages)
    assert mix.families == tuple(dict.fromkeys(FAMILY[code] for code in mix.languages))
    assert set(mix.splits) == {"train", "validation", "validation_held_out", "test"}
    counts = {split: per_cell(examples) for split, examples in mix.splits.items()}
    trained = {"seen": 12, "few_shot": drawing.FEW_SHOT}
    for cell, group in mix.cells.items():
        assert counts["train"][cell] == trained.get(group, 0)
        assert counts["validation"][cell] == (4 if group in trained else 0)
        looked_at = counts["validation_held_out"][cell]
        assert looked_at == 0 or group == "held_out"
        assert sorted((looked_at, counts["test"][cell])) == [0, 8]
    for example in everything(mix):
        assert example.group == mix.cells[example.task, example.language]
        assert example.family == FAMILY[example.language]
        assert NAME[example.language] in example.prompt
        assert is_short(example.response) and tidy(example.response) == example.response
    seen = [cell for cell, group in mix.cells.items() if group == "seen"]
    for task, language in mix.cells:
        assert any(task == other for other, _ in seen)
        if language not in mix.new_languages:
            assert any(language == other for _, other in seen)


def test_training_shows_no_number_date_or_place_that_a_test_asks_for(mix):
    """Told from the texts alone, whatever the keys say."""

    def asked(example):
        subject = example.prompt.rpartition(": ")[2]
        if example.task == "digits":
            subject = example.response
        number = subject.isdigit()
        return "number" if number else example.task, subject

    parts = {split: set(map(asked, mix.splits[split])) for split in mix.splits}
    held_back = parts["test"] | parts["validation"] | parts["validation_held_out"]
    assert not parts["train"] & held_back
    assert not parts["test"] & (parts["validation"] | parts["validation_held_out"])
    prompts = [example.prompt for example in everything(mix)]
    assert len(prompts) == len(set(prompts))


@pytest.mark.slow
def test_the_seed_alone_decides(mix):
    again = build(seed=0, examples=12, tasks=SMALL, languages=8)
    assert again == mix
    assert build(seed=1, examples=12, tasks=SMALL, languages=8).digest != mix.digest
    # A process of its own hashes strings differently.
    code = (
        "from benchmarks.quality.words import build\n"
        f"print(build(0, 12, {SMALL}, 8).digest)"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-c", code]
    told = subprocess.run(run, env=environment, capture_output=True, text=True)
    assert told.stdout.strip() == mix.digest, told.stderr


def test_fewer_examples_are_the_first_of_more(mix):
    fewer = build(seed=0, examples=5, tasks=SMALL, languages=8)
    for split in ("validation", "validation_held_out", "test"):
        assert fewer.splits[split] == mix.splits[split]
    assert fewer.cells == mix.cells
    for cell in mix.cells:
        own, less = (
            [e for e in m.splits["train"] if (e.task, e.language) == cell]
            for m in (mix, fewer)
        )
        assert less == own[:5] if mix.cells[cell] == "seen" else less == own


def test_bad_arguments_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="1 to 14, or some of dictionary_form, .*: 99"):
        build(tasks=99)
    with pytest.raises(ValueError, match="`languages` is .* Received: xx"):
        build(tasks=SMALL, languages=("de", "xx"))

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ImportError, match="Received: no babel. .*evidence"):
        build(tasks=("country",))


def test_the_summary_shows_every_cell(mix):
    lines = summary.grid(mix).splitlines()
    assert len(lines) == len(mix.tasks) + 2
    marks = "".join(line[16:] for line in lines[1:-1]).replace(" ", "").replace(".", "")
    assert len(marks) == len(mix.cells)
    assert marks.count("n") == list(mix.cells.values()).count("new_language")
    # Only "2000" and the like stand in both; nothing else is copied.
    assert "| `country` | 10 |" in summary.table(mix)


# Leaks


def entries(*items):
    return [("task", f"prompt {number}", keys) for number, keys in items]


def test_a_planted_leak_is_found():
    clean = {
        "train": entries((1, ("word:talo", "word:taloissa")), (2, ("number:7",))),
        "validation": entries((3, ("number:8",))),
        "validation_held_out": entries((4, ("number:8",))),
        "test": entries((5, ("number:9",))),
    }
    leaks.check(clean)
    for key in ("number:7", "word:taloissa", "number:8"):
        planted = clean | {"test": [*clean["test"], ("other", "elsewhere", (key,))]}
        with pytest.raises(ValueError, match=f"may not stand in training.*'{key}'"):
            leaks.check(planted)
    planted = clean | {"test": entries((1, ("number:9",)))}
    with pytest.raises(ValueError, match="once in a mixture.*'prompt 1'"):
        leaks.check(planted)


def test_a_leak_stops_the_build(monkeypatch):
    """A number that a test of Spanish asks for, in German training."""
    draw = drawing.draw

    def planted(*arguments):
        drawn = draw(*arguments)
        item = next(item for cell, item in drawn["test"] if cell == ("number", "es"))
        drawn["train"].append((("number", "de"), item))
        return drawn

    build(tasks=("number", "country"), languages=("de", "es"))
    monkeypatch.setattr(drawing, "draw", planted)
    with pytest.raises(
        ValueError,
        match="in 'test' .task 'number'. and in 'train'|"
        "in 'train' .task 'number'. and in 'test'",
    ):
        build(tasks=("number", "country"), languages=("de", "es"))


# Sources


def test_numbers_in_words():
    finnish = {item.subject: item for item in numbers.cardinals("fi")}
    assert finnish["345"].answer == "kolmesataaneljäkymmentäviisi"
    assert Item(finnish["345"].answer, "345", finnish["345"].keys) in numbers.digits(
        "fi"
    )
    german = {item.subject: item.answer for item in numbers.ordinals("de")}
    assert german["21st"] == "einundzwanzigste" and german["12th"] == "zwölfte"
    # Written without spaces, or with an ending after the cardinal, by the package.
    assert not numbers.cardinals("tr") and not numbers.ordinals("cs")
    portuguese = {item.subject: item.answer for item in numbers.cardinals("pt")}
    assert portuguese["16"] == "dezesseis", "Brazilian, as Babel's"


def test_names_are_never_the_english_ones():
    finnish = {item.subject: item.answer for item in cldr.countries("fi")}
    assert finnish["Germany"] == "Saksa" and "Chile" not in finnish
    for items in map(cldr.currencies, ("de", "sw")):
        assert len(items) > 100
        assert not [i for i in items if i.subject.casefold() == i.answer.casefold()]


def test_units_without_a_long_form_are_words_all_the_same():
    assert cldr.written_out("sw", "duration-day", 5) == "siku 5"
    assert cldr.written_out("pl", "duration-hour", 5) == "5 godzin"
    for language in NAME:
        texts = [item.answer for item in cldr.units(language)]
        assert len(texts) >= 200
        assert not [text for text in texts if re.search(r"duration|mass-|length", text)]


def test_times_and_dates():
    relative = {item.subject: item.answer for item in cldr.relative_times("fi")}
    assert relative["3 days ago"] == "3 päivää sitten"
    assert relative["in 45 days"] == "45 päivän päästä"
    dates = {item.subject: item.answer for item in cldr.dates("fi")}
    assert dates["1990-01-01"] == "1. tammikuuta 1990"


@pytest.mark.slow
def test_words_of_a_lexicon(monkeypatch, tmp_path):
    for package in ("simplemma", "wordfreq", "pyphen"):
        pytest.importorskip(package, reason="the lexicon is read from it")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    lexicon.lexicon.cache_clear()
    # A small dictionary.
    forms = lexicon.dictionary_forms("sl")
    assert len(forms) > 500
    by_word = {item.subject: item.answer for item in forms}
    assert by_word["mestu"] == "mesto"
    # No answer is a question, and no word has a second reading as a dictionary form.
    assert not set(by_word) & set(by_word.values())
    assert all(item.keys[0] == f"word:{item.answer}" for item in forms)
    for item in lexicon.hyphenations("sl"):
        assert item.answer.replace("-", "") == item.subject != item.answer
    accents = lexicon.accents("sl")
    assert len(accents) > 500
    for item in accents:
        assert lexicon.without_accents(item.answer) == item.subject != item.answer
    # Again from the cache, which other versions do not find.
    (file,) = tmp_path.rglob("*.json")
    lexicon.lexicon.cache_clear()
    assert lexicon.dictionary_forms("sl") == forms
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0")
    packages = ("simplemma", "wordfreq")
    assert cached.place("lexicon", "sl", lexicon.__file__, packages) != file
    lexicon.lexicon.cache_clear()


def test_accents_come_off():
    assert lexicon.without_accents("łódź") == "lodz"
    assert lexicon.without_accents("çıkış") == "cikis"
    assert lexicon.without_accents("það") == "það", "letters of their own"


def test_interface_strings():
    pytest.importorskip("django", reason="they are Django's")
    items = catalogues.interface_strings("fi")
    finnish = {item.subject: item.answer for item in items}
    assert finnish["Log out"] == "Kirjaudu ulos"
    assert not {"seven", "Seven", "Finnish", "Mon", "mar"} & set(finnish)
    assert len({item.keys for item in items}) == len(items) > 150


def test_emoji_names():
    pytest.importorskip("emoji", reason="they are its names")
    items = catalogues.emoji_names("de")
    german = {item.subject: item.answer for item in items}
    assert german["🐢 turtle"] == "schildkröte"
    assert not [subject for subject in german if "Zambia" in subject]
    assert catalogues.emoji_names("fi") == []
