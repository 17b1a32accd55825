"""Changes the library's sources at random places: does a test fail each time?

    python tests/tools/mutation.py --output FILE.json              # tests of the room
    python tests/tools/mutation.py --output FILE.json --stage fast # then the fast ones
    python tests/tools/mutation.py --output FILE.json --stage full # then all tests
    python tests/tools/mutation.py --output FILE.json --report     # prints Markdown

mutmut and cosmic-ray start a process per mutant, which imports Keras, KerasHub and
PyTorch for longer than most mutants live; here they are imported once, and forked.

A mutant is written to a copy of the project, so the processes that tests start see it
too. It meets the tests that enter the mutated function, those of its own test file
first: a run without mutants has noted what each test enters. What runs on import meets
all tests. A later stage takes what has survived the one before; a second call goes on
where the first was ended.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import gc
import hashlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

ENVIRONMENT = {
    "KERAS_BACKEND": "torch",
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
os.environ.update(ENVIRONMENT)

import pytest  # noqa: E402
from mutants import ROOMS, Mutant, draw, note_entered  # noqa: E402

ROOT = Path(__file__).parents[2]
STAGES = ("room", "fast", "full")
PYTEST = ("-q", "-m", "not guide", "-p", "no:cacheprovider", "--tb=short")
NO_TESTS, INTERNAL_ERROR, WENT_WRONG = 5, 3, 70
"""Exit statuses: two of pytest, one of this file."""
FULL = "--full"
"""The option that runs today's whole suite, where the conftest knows it."""
PRELOADED = (
    *("torch", "tensorflow", "keras", "keras_hub", "hypothesis", "sentencepiece"),
    *("h5py", "matplotlib.pyplot", "peft", "sacrebleu", "safetensors.torch"),
    *("scipy.stats", "transformers.models.auto.modeling_auto"),
)
"""What tests import, but for the package; what is not installed is left out."""


@dataclasses.dataclass
class Outcome:
    """How a run of tests ended; `status` is None where time was up.

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
        limit: Seconds after which the run is ended.
        mutant: What is changed in the copy until the run has ended.
        number: Of the mutant, for a modification time that no other has.
    """

    def __init__(
        self,
        project: Path,
        arguments: list[str],
        plugin: Traced | Chosen,
        log: Path,
        limit: float = 3600.0,
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

    def poll(self) -> Outcome | None:
        """The outcome, once there is one."""
        ended, code, usage = os.wait4(self.child, os.WNOHANG)
        if not ended and time.monotonic() - self.start < self.limit:
            return None
        status = os.waitstatus_to_exitcode(code) if ended else None
        seconds = usage.ru_utime + usage.ru_stime if ended else self.limit
        self.end(reap=not ended)
        return Outcome(status, seconds, _read(self.report))

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
            os.setsid()
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


class Chosen:
    """A pytest plugin that runs chosen tests in their order.

    Tests that `known` does not name are run as well: a mutant may change their names.
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


class Traced:
    """A pytest plugin that notes what functions of the package each test enters.

    So do the processes that the test starts: in files of `folder`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entered: set[str] = set()
        self.of_fixtures = collections.defaultdict(set)
        self.on_import: set[str] = set()
        self.tests: dict[str, dict] = {}
        self.failed: set[str] = set()

    def start(self, project: Path) -> None:
        self.folder.mkdir(exist_ok=True)
        note_entered(project, self.entered, self.folder, os.getpid())
        # Python imports this where a test starts one.
        self.customized = project / "sitecustomize.py"
        self.customized.write_text(
            f"import sys\nsys.path.append({str(project / 'tests/tools')!r})\n"
            "from mutants import Path, note_entered\nsys.path.pop()\n"
            f"note_entered(Path({str(project)!r}), set(), "
            f"Path({str(self.folder)!r}), None)\n"
        )

    def report(self) -> dict:
        self.customized.unlink()
        passed = {n: t for n, t in self.tests.items() if n not in self.failed}
        return {
            "tests": passed,
            "failed": sorted(self.failed),
            "on import": sorted(self.on_import),
        }

    def pytest_collection_finish(self) -> None:
        self.on_import |= self.entered

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
        start = time.monotonic()
        try:
            return (yield)
        finally:
            seconds = round(time.monotonic() - start, 3)
            enters = self.taken()
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


def clear_caches() -> None:
    """Empties the package's caches, so that a test enters what it needs itself."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "keras_flix":
            for value in list(vars(module).values()):
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


def copy_project(folder: Path) -> Path:
    """Copies what git tracks, or would: mutants are written to copies only."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True).stdout
    for name in names.decode().split("\0"):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


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


def digest(*folders: str) -> str:
    """A hash of the Python files in these folders."""
    paths = sorted(p for folder in folders for p in (ROOT / folder).rglob("*.py"))
    contents = [p.relative_to(ROOT).as_posix().encode() + p.read_bytes() for p in paths]
    return hashlib.sha256(b"".join(contents)).hexdigest()[:16]


def own_tests(mutant: Mutant) -> str:
    """The file of tests that mirrors the mutant's."""
    path = Path(mutant.path)
    return f"tests/{'/'.join(path.parts[1:-1])}/test_{path.name}"


def plan(mutant: Mutant, tests: dict[str, dict], on_import: set[str]) -> list[str]:
    """The tests that could notice a mutant, those first that are near and quick."""
    everywhere = mutant.function is None or mutant.function in on_import
    own = own_tests(mutant)
    chosen = [
        name
        for name, test in tests.items()
        if everywhere
        or mutant.function in test["enters"]
        or name.startswith(f"{own}::")
    ]
    of_file: dict[str, float] = collections.defaultdict(float)
    for name in chosen:
        of_file[name.partition("::")[0]] += tests[name]["seconds"]

    def rank(name: str) -> tuple:
        file = name.partition("::")[0]
        near = (file != own, Path(file).parent != Path(own).parent)
        return (*near, of_file[file], file, tests[name]["seconds"])

    return sorted(chosen, key=rank)


class Session:
    """All runs of one call, and what is written of them."""

    def __init__(self, output: Path, count: int, seed: int, folder: Path, jobs: int):
        self.output = output
        self.tests_file = output.with_suffix(".tests.json")
        self.log = output.with_suffix(".log")
        self.projects = [copy_project(folder / str(i) / "project") for i in range(jobs)]
        self.mutants = draw(ROOT, count, seed)
        header = {
            "backend": os.environ["KERAS_BACKEND"],
            "seed": seed,
            "count": count,
            "sources": digest("keras_flix"),
        }
        self.results = _read(output) or {
            **header,
            "failed without a mutant": [],
            "seconds": 0.0,
            "mutants": [
                {
                    "id": mutant.id,
                    "room": mutant.room,
                    "diff": mutant.diff((ROOT / mutant.path).read_bytes()),
                    "killed_by": None,
                    "survived": [],
                    "seconds": 0.0,
                }
                for mutant in self.mutants
            ],
        }
        found = {name: self.results[name] for name in header}
        if found != header:
            raise SystemExit(
                "The results must be of the same sources and mutants. Received: "
                f"{output} with {found}, not {header}. Name another --output."
            )
        # What tests enter is not true any more when a test has changed.
        state = digest("keras_flix", "tests")
        kept = _read(self.tests_file)
        self.traced = kept if kept.get("state") == state else {"state": state}

    def stage(self, name: str) -> None:
        """Runs what is left of the mutants against the tests of a stage."""
        options = [FULL] if name == "full" else []
        if options and FULL not in (ROOT / "tests" / "conftest.py").read_text():
            print(f"The conftest has no {FULL} yet: the last stage is the fast one.")
            return
        folders = sorted({path.parent for path in (ROOT / "tests").rglob("test_*.py")})
        rooms = {path.relative_to(ROOT / "tests").parts[0] for path in folders}
        rooms &= set(ROOMS) if name == "room" else rooms
        for room in sorted(rooms):
            self.trace(room, options)
        tests, on_import = {}, set()
        for room in rooms:
            of_room = self.traced[" ".join([room, *options])]
            tests.update(of_room["tests"])
            on_import.update(of_room["on import"])
        tasks = [
            (number, mutant)
            for number, mutant in enumerate(self.mutants)
            if not self.results["mutants"][number]["killed_by"]
            and name not in self.results["mutants"][number]["survived"]
        ]
        start = time.monotonic()
        for done, (number, outcome) in enumerate(
            self.outcomes(name, tasks, tests, on_import, options), 1
        ):
            result = self.results["mutants"][number]
            end = self.take(name, result, outcome)
            self.write()
            count = f"{name} {done}/{len(tasks)} {outcome.seconds:5.1f} s"
            print(f"{count} {result['id']} {end}", flush=True)
        seconds = time.monotonic() - start
        self.results["seconds"] = round(self.results["seconds"] + seconds, 1)
        self.write()
        print(f"{name}: {len(tasks)} mutants in {seconds:.0f} s", flush=True)

    def trace(self, room: str, options: list[str]) -> None:
        """Runs the tests of a room without a mutant, and notes what they enter."""
        key = " ".join([room, *options])
        if key in self.traced:
            return
        project = self.projects[0]
        plugin = Traced(project.with_suffix(".entered"))
        run = Run(project, [f"tests/{room}", *options], plugin, self.log)
        try:
            while (outcome := run.poll()) is None:
                time.sleep(0.1)
        except BaseException:
            run.end()
            raise
        if outcome.status not in (0, 1) or not outcome.report.get("tests"):
            raise SystemExit(
                "The tests must run without a mutant. Received: exit status "
                f"{outcome.status} of tests/{room}. See {self.log}."
            )
        failed = outcome.report.pop("failed")
        self.results["failed without a mutant"] = sorted(
            {*self.results["failed without a mutant"], *failed}
        )
        self.traced[key] = outcome.report
        _write(self.tests_file, self.traced)
        count = len(outcome.report["tests"])
        print(f"no mutant, {key}: {count} tests, {outcome.seconds:.0f} s", flush=True)
        if failed:
            print(f"LEFT OUT, they fail without a mutant: {failed}", flush=True)

    def outcomes(
        self,
        stage: str,
        tasks: list[tuple[int, Mutant]],
        tests: dict[str, dict],
        on_import: set[str],
        options: list[str],
    ) -> Iterator[tuple[int, Outcome]]:
        """Runs mutants, as many side by side as there are copies of the project."""
        waiting = iter(tasks)
        free = list(self.projects)
        running: list[tuple[int, Run]] = []
        try:
            while True:
                while free and (task := next(waiting, None)):
                    number, mutant = task
                    known = self.known(stage, mutant, tests)
                    order = plan(mutant, known, on_import)
                    if not order:
                        yield number, Outcome(0, 0.0, {})
                        continue
                    files = list(dict.fromkeys(n.partition("::")[0] for n in order))
                    arguments = ["-x", *files, *options]
                    chosen = Chosen(order, tests)
                    limit = 120 + 8 * sum(tests[name]["seconds"] for name in order)
                    project = free.pop()
                    with self.log.open("a") as log:
                        log.write(f"\n===== {stage} {mutant.id}\n")
                    run = Run(
                        project, arguments, chosen, self.log, limit, mutant, number
                    )
                    running.append((number, run))
                if not running:
                    return
                time.sleep(0.05)
                for number, run in list(running):
                    if (outcome := run.poll()) is not None:
                        running.remove((number, run))
                        free.append(run.project)
                        yield number, outcome
        finally:
            for _, run in running:
                run.end()

    def known(self, stage: str, mutant: Mutant, tests: dict[str, dict]) -> dict:
        """The tests of a stage that a mutant has not met yet."""
        room = f"tests/{mutant.room}/"
        if stage == "room":
            return {n: test for n, test in tests.items() if n.startswith(room)}
        if stage == "fast":
            return {n: test for n, test in tests.items() if not n.startswith(room)}
        return tests

    def take(self, stage: str, result: dict, outcome: Outcome) -> str:
        """Notes how a run ended, and says it.

        A mutant stays open where pytest itself went wrong: the next call takes it.
        """
        result["seconds"] = round(result["seconds"] + outcome.seconds, 1)
        if outcome.status in (0, NO_TESTS):
            result["survived"].append(stage)
            return "SURVIVED"
        if outcome.status in (INTERNAL_ERROR, WENT_WRONG):
            return f"WENT WRONG, see {self.log}"
        ends = "time is up" if outcome.status is None else f"ended by {outcome.status}"
        test = outcome.report.get("failed") or ends
        result["killed_by"] = {"stage": stage, "test": test}
        return test

    def write(self) -> None:
        _write(self.output, self.results)


def report(results: dict) -> str:
    """The score by room, and the survivors, as Markdown."""
    mutants = results["mutants"]
    lines = ["| room | mutants | killed by the room's tests | killed by all |"]
    lines.append("| --- | --- | --- | --- |")
    for room in [*ROOMS, "all"]:
        mine = [m for m in mutants if room in ("all", m["room"])]
        killed = [m["killed_by"]["stage"] for m in mine if m["killed_by"]]
        counts = (len(mine), killed.count("room"), len(killed))
        share = f"{len(killed) / max(len(mine), 1):.0%}"
        lines.append("| {} | {} | {} | {} ({}) |".format(room, *counts, share))
    lines += ["", "| survivor | change | why |", "| --- | --- | --- |"]
    for m in mutants:
        if m["survived"] and not m["killed_by"]:
            change = m["diff"].replace("|", "\\|")
            lines.append(f"| `{m['id']}` | `{change}` | {m.get('why', '')} |")
    return "\n".join(lines) + "\n"


def preload() -> None:
    """Imports what the forked processes need, and starts no threads."""
    for name in PRELOADED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    sys.modules["torch"].set_num_threads(1)
    gc.collect()
    gc.freeze()


def _read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.exists() else {}


def _write(path: Path, content: dict) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="results, as JSON")
    parser.add_argument("--count", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", choices=STAGES, default="room", help="the last one")
    parser.add_argument("--jobs", type=int, default=1, help="mutants side by side")
    parser.add_argument(
        "--again", action="store_true", help="run the survivors anew, with new tests"
    )
    parser.add_argument("--report", action="store_true", help="print Markdown only")
    options = parser.parse_args()
    output = options.output.resolve()
    if options.report:
        print(report(json.loads(output.read_text())), end="")
        return
    preload()
    # So that no process is left when this one is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory() as folder:
        session = Session(
            output, options.count, options.seed, Path(folder).resolve(), options.jobs
        )
        if options.again:
            for result in session.results["mutants"]:
                result["survived"] = []
        for stage in STAGES[: STAGES.index(options.stage) + 1]:
            session.stage(stage)
    print(report(session.results), end="")


if __name__ == "__main__":
    main()
