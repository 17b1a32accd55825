"""Tests lie where what they test lies: the path of a change tells its tests."""

from pathlib import Path

from helpers.places import ROOT, TESTS

OWN_ROOMS = {
    "families": "KerasHub's families, whatever part of the package they go through",
    "faults": "what may go wrong at scale, in all parts at once",
    "project": "the project itself: its architecture, pages, guides and runners",
}
"""Folders of tests that mirror no room of the package."""
OTHER_TESTS = {
    "command_line/test_commands.py": "the commands of all modules, as they are typed",
    "exports/test_loras.py": "`export_loras`, the grid, is the other half of lora.py",
    "files/test_stored_files.py": "files of all kinds that 0.1 wrote, which must load",
    "models/adapted/test_bad_input.py": "one list of entries, refused by every module",
    "models/adapted/test_integer_values.py": "what an integer means, by entry point",
    "models/adapted/test_keras_saving.py": "what Keras saves: keras_files, plain_view",
    "models/adapted/test_other_tools.py": "loops and transforms of other libraries",
    "models/adapted/test_training_modes.py": "every way to train gives the same tables",
    "models/adapted/test_weighted_values.py": "blends, from the entry to the layers",
}
"""Files of tests that mirror no module."""
FILES = sorted(path.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py"))


def module_of(file: str) -> Path:
    path = Path(file)
    return ROOT / "keras_flix" / path.with_name(path.name.removeprefix("test_"))


def mirrors(file: str) -> bool:
    return file.partition("/")[0] in OWN_ROOMS or module_of(file).is_file()


def test_a_test_file_mirrors_a_module_or_says_why_not():
    assert [f for f in FILES if not mirrors(f) and f not in OTHER_TESTS] == []


def test_every_reason_is_still_needed():
    assert not {file for file in OTHER_TESTS if mirrors(file)}
    assert OTHER_TESTS.keys() <= set(FILES)
    for room in OWN_ROOMS:
        assert (TESTS / room).is_dir()
        assert not (ROOT / "keras_flix" / room).exists()
