"""The page of faults names tests that are there, and reports once."""

import re

import pytest
from helpers.places import ROOT

PAGE = (ROOT / "guides" / "faults.md").read_text()
REPORTS = PAGE.partition("## Reports of other libraries")[2].partition("\n## ")[0]
ROWS = [line.split(" | ") for line in REPORTS.splitlines() if line.startswith("| [")]
OUTCOMES = ("Held", "Refused", "Repaired", "Open")


def test_every_report_has_an_outcome_and_a_test():
    assert len(ROWS) >= 15
    for report, _, here, tests in ROWS:
        assert here.startswith(OUTCOMES), report
        assert ("`" in tests) != here.startswith("Open"), report


def test_no_report_is_listed_twice():
    links = re.findall(r"\((https://[^)]+)\)", REPORTS)
    assert len(links) == len(set(links)) > len(ROWS)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(\S*test_\w+)`", REPORTS))))
def test_its_tests_are_there(name):
    path, _, function = name.rpartition("::")
    file = ROOT / (path or "tests/faults/test_fault_reports.py")
    assert f"def {function}(" in file.read_text()
