"""A pytest plugin: failures that are known, each with a reason and a link.

    pytest -p known_failures --known-failures FILE

A listed test that fails is counted as such. One that passes, or that is not there, is
reported, so that the list shrinks. Any other failure remains one.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

KEYS = {"tests", "backends", "reason", "link"}


@dataclasses.dataclass(frozen=True)
class Known:
    """Tests that fail for one reason.

    Attributes:
        tests: Their ids; without brackets, all parameters of a test.
        backends: Where they do.
        reason: What is wrong, in a sentence.
        link: Where that is told or can be seen.
    """

    tests: tuple[str, ...]
    backends: tuple[str, ...]
    reason: str
    link: str

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> Known:
        """Checks an entry of the file: nothing is let off without reason and link."""
        link = str(entry.get("link", ""))
        if set(entry) != KEYS or not all(entry.values()) or "https://" not in link:
            raise ValueError(
                f"A known failure must have {', '.join(sorted(KEYS))}, and the link "
                f"must be an address. Received: {dict(entry)}. Say why these tests "
                "fail, and where one can read of it."
            )
        return cls(
            tests=tuple(entry["tests"]),
            backends=tuple(entry["backends"]),
            reason=entry["reason"],
            link=link,
        )


def read(path: Path) -> list[Known]:
    """The known failures of a file; raises a `ValueError` for incomplete ones."""
    entries = tomllib.loads(path.read_text()).get("failures", [])
    return [Known.from_entry(entry) for entry in entries]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--known-failures", type=Path, help="a TOML file of failures")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--known-failures")
    if path is not None:
        config.pluginmanager.register(Listed(read(path), os.environ["KERAS_BACKEND"]))


class Listed:
    """Marks the listed tests, and says what is listed in vain."""

    def __init__(self, known: list[Known], backend: str) -> None:
        entries = [k for k in known if backend in k.backends]
        self.reasons = {test: k for k in entries for test in k.tests}
        self.found: set[str] = set()
        self.passed: list[str] = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            for name in {item.nodeid, item.nodeid.partition("[")[0]}:
                if name in self.reasons:
                    known = self.reasons[name]
                    self.found.add(name)
                    reason = f"{known.reason} {known.link}"
                    item.add_marker(pytest.mark.xfail(reason=reason, strict=False))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed and hasattr(report, "wasxfail"):
            self.passed.append(report.nodeid)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        unneeded = [f"{test} passes" for test in self.passed]
        unneeded += [f"{t} is not there" for t in sorted({*self.reasons} - self.found)]
        if unneeded:
            terminalreporter.section("to be taken off the list of known failures")
            for line in unneeded:
                terminalreporter.line(line)
