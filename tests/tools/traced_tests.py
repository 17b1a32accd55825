"""A pytest plugin that notes what each test reaches of what mutants change."""

from __future__ import annotations

import collections
import os
import sys
from pathlib import Path

import pytest
from entered import customize, note_entered
from short_form import left_out


class Traced:
    """A pytest plugin that notes what each test reaches of what mutants change.

    So do the processes that the test starts: in files of `folder`. The seconds of a
    test are the processor's, and those of these processes, too.
    """

    def __init__(self, folder: Path, watched: dict[str, list[str]]) -> None:
        self.folder = folder
        self.watched = watched
        self.entered: set[str] = set()
        self.of_fixtures = collections.defaultdict(set)
        self.of_modules: dict[Path, set[str]] = {}
        self.on_import: set[str] = set()
        self.tests: dict[str, dict] = {}
        self.failed: set[str] = set()
        self.left_out: set[str] = set()

    def start(self, project: Path) -> None:
        self.folder.mkdir(exist_ok=True)
        note_entered(
            *(project, self.watched, self.entered, self.on_import),
            *(self.folder, os.getpid()),
        )
        self.customized = customize(project, self.watched, self.folder)

    def report(self) -> dict:
        self.customized.unlink()
        passed = {n: t for n, t in self.tests.items() if n not in self.failed}
        return {
            "tests": passed,
            "failed": sorted(self.failed),
            "left out": sorted(self.left_out),
            "on import": sorted(self.on_import),
        }

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config, items) -> None:
        # Of a file that is named, the conftest leaves out nothing.
        if not config.getoption("--full"):
            backend = os.environ["KERAS_BACKEND"]
            short = left_out(items, backend, Path(config.rootpath) / "tests")
            self.left_out.update(item.nodeid for item in short)
            items[:] = [item for item in items if item not in short]

    def pytest_deselected(self, items) -> None:
        self.left_out.update(item.nodeid for item in items)

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector):
        before = self.taken()
        report = yield
        # What a module does when it is imported, each of its tests may see.
        self.of_modules.setdefault(collector.path, set()).update(self.taken())
        self.entered |= before
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        before = set(self.entered)
        self.entered.clear()
        try:
            return (yield)
        finally:
            self.of_fixtures[id(fixturedef)] |= self.taken()
            self.entered |= before

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        clear_caches()
        self.taken()
        start = processor_seconds()
        try:
            return (yield)
        finally:
            seconds = round(processor_seconds() - start, 3)
            enters = self.taken() | self.of_modules.get(item.path, set())
            # Fixtures of a module or a session have run for an earlier test.
            for definitions in item._fixtureinfo.name2fixturedefs.values():
                for definition in definitions:
                    enters |= self.of_fixtures[id(definition)]
            self.tests[item.nodeid] = {"seconds": seconds, "enters": sorted(enters)}

    def taken(self) -> set[str]:
        """What was entered since the last call, by all processes."""
        found = set(self.entered)
        self.entered.clear()
        for path in self.folder.iterdir():
            found.update(path.read_text().split())
            path.unlink()
        return found

    def pytest_collectreport(self, report) -> None:
        if report.failed:
            self.failed.add(report.nodeid)

    pytest_runtest_logreport = pytest_collectreport


def processor_seconds() -> float:
    """Of this process, and of those that it has waited for."""
    return sum(os.times()[:4])


def clear_caches() -> None:
    """Empties the package's caches, so that a test enters what it needs itself."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "keras_flix":
            for value in list(vars(module).values()):
                if hasattr(value, "cache_clear"):
                    value.cache_clear()
