"""A pytest plugin that runs chosen tests in their order."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest


class Chosen:
    """A pytest plugin that runs chosen tests in their order.

    Tests that `known` does not name are run as well: a mutant may change their names.
    It names those that a stage leaves out, too: of a named file, pytest runs all.
    """

    def __init__(self, order: list[str], known: Iterable[str]) -> None:
        self.order = {name: i for i, name in enumerate(order)}
        self.known = set(known)
        self.failed: str | None = None

    def start(self, project: Path) -> None:
        pass

    def report(self) -> dict:
        return {"failed": self.failed}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items) -> None:
        items[:] = [
            item
            for item in items
            if item.nodeid in self.order or item.nodeid not in self.known
        ]
        items.sort(key=lambda item: self.order.get(item.nodeid, len(self.order)))

    def pytest_collectreport(self, report) -> None:
        if report.failed:
            self.failed = self.failed or report.nodeid

    pytest_runtest_logreport = pytest_collectreport
