"""One run of pytest, with or without a mutant, in a process forked for it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chosen_tests import Chosen
from mutants import Mutant
from traced_tests import Traced

PYTEST = (
    *("-q", "--numprocesses=0", "-p", "no:cacheprovider"),
    *("--tb=short", "--disable-warnings"),
)
WAITS = 20
"""Seconds that may pass on the clock for each one of the processor."""
NO_TESTS, INTERNAL_ERROR, WENT_WRONG = 5, 3, 70
"""Exit statuses: two of pytest, one of this file."""


@dataclasses.dataclass
class Outcome:
    """How a run of tests ended; `status` is None where time was up on the clock.

    `seconds` are of the processor: on a busy machine they say more than the clock's.
    """

    status: int | None
    seconds: float
    report: dict


class Run:
    """One run of pytest in a process forked for it.

    Args:
        project: A copy of the project.
        arguments: What pytest gets.
        plugin: A pytest plugin with two more methods: `start(project)`, before pytest
            begins, and `report()`, which makes the report of the outcome.
        log: A file for all that is printed.
        limit: Seconds of the processor after which the run is ended; on the clock,
            `WAITS` times as many.
        mutant: What is changed in the copy until the run has ended.
        number: Of the mutant, for a modification time that no other has.
    """

    def __init__(
        self,
        project: Path,
        arguments: list[str],
        plugin: Traced | Chosen,
        log: Path,
        limit: int = 3600,
        mutant: Mutant | None = None,
        number: int = 0,
    ) -> None:
        self.project = project
        self.limit = limit
        self.written = contextlib.ExitStack()
        if mutant is not None:
            self.written.enter_context(mutated(project / mutant.path, mutant, number))
        self.report = project.with_suffix(".json")
        self.report.unlink(missing_ok=True)
        self.start = time.monotonic()
        sys.stdout.flush()
        self.child = os.fork()
        if self.child == 0:
            self._be_pytest([*PYTEST, *arguments], plugin, log)

    def outcome(self) -> Outcome:
        """Waits for the outcome; ends the run where that is interrupted."""
        try:
            while (outcome := self._poll()) is None:
                time.sleep(0.1)
        except BaseException:
            self.end()
            raise
        return outcome

    def _poll(self) -> Outcome | None:
        """The outcome, once there is one."""
        ended, code, usage = os.wait4(self.child, os.WNOHANG)
        if not ended and time.monotonic() - self.start < WAITS * self.limit:
            return None
        status = os.waitstatus_to_exitcode(code) if ended else None
        seconds = usage.ru_utime + usage.ru_stime if ended else self.limit
        self.end(reap=not ended)
        return Outcome(status, seconds, read_json(self.report))

    def end(self, reap: bool = True) -> None:
        """Ends the processes that are left, and takes the mutant back."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child, signal.SIGKILL)
        if reap:
            os.waitpid(self.child, 0)
        # Hypothesis would begin with the examples that another mutant failed.
        shutil.rmtree(self.project / ".hypothesis", ignore_errors=True)
        self.written.close()

    def _be_pytest(self, arguments: list[str], plugin, log: Path) -> None:
        """What the forked process does; it does not return."""
        status = WENT_WRONG
        try:
            # A group of its own, yet of the session whose priority it is to have.
            os.setpgid(0, 0)
            # At the hard limit, the kernel kills without saying that time is up.
            resource.setrlimit(resource.RLIMIT_CPU, (self.limit, self.limit + 5))
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir(self.project)
            os.environ["PYTHONPATH"] = str(self.project)
            sys.path[0] = str(self.project)
            plugin.start(self.project)
            base = f"--basetemp={self.project.with_suffix('.tmp')}"
            status = int(pytest.main([*arguments, base], plugins=[plugin]))
            own = sys.modules.get("keras_flix")
            if own and not Path(own.__file__).is_relative_to(self.project):
                raise AssertionError(f"The tests ran on {own.__file__}.")
            self.report.write_text(json.dumps(plugin.report()))
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            status = WENT_WRONG
        finally:
            os._exit(status)


@contextlib.contextmanager
def mutated(path: Path, mutant: Mutant, number: int) -> Iterator[None]:
    """Writes a mutant over its file, and the file back at the end.

    Python knows by size and modification time, in seconds, whether bytecode is of a
    source: every mutant has a time of its own.
    """
    before, stat = path.read_bytes(), path.stat()
    path.write_bytes(mutant.apply(before))
    os.utime(path, (stat.st_atime, stat.st_mtime + 1 + number))
    try:
        yield
    finally:
        path.write_bytes(before)
        os.utime(path, (stat.st_atime, stat.st_mtime))


def read_json(path: Path) -> dict:
    """What a file holds; nothing where there is none."""
    return json.loads(path.read_text()) if path.exists() else {}
