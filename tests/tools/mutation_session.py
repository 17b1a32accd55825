"""All runs of one call of the mutation tool, and what is written of them."""

from __future__ import annotations

import collections
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from chosen_tests import Chosen
from entered import watched_by
from mutants import ROOMS, Mutant, draw
from mutation_run import INTERNAL_ERROR, NO_TESTS, WENT_WRONG, Outcome, Run, read_json
from traced_tests import Traced

ROOT = Path(__file__).parents[2]
DAILY = ["-m", "not slow and not guide"]
ALL = ["-m", "not guide", "--full"]
"""What is run: what a developer runs all day; in the last stage, what runs by night."""


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
        self.results = read_json(output) or {
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
        self.watched = watched_by(ROOT, self.mutants)
        # What tests reach is not true any more when a test has changed.
        state = f"{digest('keras_flix', 'tests')} {count} {seed}"
        kept = read_json(self.tests_file)
        self.traced = kept if kept.get("state") == state else {"state": state}

    def stage(self, name: str) -> None:
        """Runs what is left of the mutants against the tests of a stage."""
        options = ALL if name == "full" else DAILY
        folders = sorted({path.parent for path in (ROOT / "tests").rglob("test_*.py")})
        rooms = {path.relative_to(ROOT / "tests").parts[0] for path in folders}
        rooms &= set(ROOMS) if name in ("room", "rooms") else rooms
        for room in sorted(rooms):
            self.trace(room, options)
        tests, left_out, on_import = {}, set(), set()
        for room in rooms:
            of_room = self.traced[" ".join([room, *options])]
            tests.update(of_room["tests"])
            left_out.update(of_room["left out"])
            on_import.update(of_room["on import"])
        tasks = [
            (number, mutant)
            for number, mutant in enumerate(self.mutants)
            if not self.results["mutants"][number]["killed_by"]
            and name not in self.results["mutants"][number]["survived"]
        ]
        start = time.monotonic()
        for done, (number, outcome) in enumerate(
            self.outcomes(name, tasks, tests, left_out, on_import, options), 1
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
        """Runs the tests of a room without a mutant, and notes what they reach."""
        key = " ".join([room, *options])
        if key in self.traced:
            return
        project = self.projects[0]
        plugin = Traced(project.with_suffix(".entered"), self.watched)
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
        outcome.report["left out"] += failed
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
        left_out: set[str],
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
                    chosen = Chosen(order, left_out.union(tests))
                    limit = 30 + round(3 * sum(tests[n]["seconds"] for n in order))
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
        if stage == "full":
            return tests

        def is_of_stage(name: str) -> bool:
            room = name.split("/")[1]
            if room not in ROOMS:
                return stage == "fast"
            return stage == ("room" if room == mutant.room else "rooms")

        return {name: test for name, test in tests.items() if is_of_stage(name)}

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
        time_is_up = outcome.status in (None, -signal.SIGXCPU)
        ends = "time is up" if time_is_up else f"ended by {outcome.status}"
        test = outcome.report.get("failed") or ends
        result["killed_by"] = {"stage": stage, "test": test}
        return test

    def write(self) -> None:
        _write(self.output, self.results)


def copy_project(folder: Path) -> Path:
    """Copies what git tracks, or would: mutants are written to copies only."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True).stdout
    for name in names.decode().split("\0"):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


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
    """The tests that could notice a mutant, those first that are near and quick.

    Those that reach what is changed, and all of its own file of tests: what a test of
    that file has computed may be kept, and be used by the next.
    """
    key = mutant.statement or mutant.path
    own = own_tests(mutant)
    chosen = [
        name
        for name, test in tests.items()
        if key in on_import or key in test["enters"] or name.startswith(f"{own}::")
    ]
    of_file: dict[str, float] = collections.defaultdict(float)
    for name in chosen:
        of_file[name.partition("::")[0]] += tests[name]["seconds"]

    def rank(name: str) -> tuple:
        file = name.partition("::")[0]
        near = (file != own, Path(file).parent != Path(own).parent)
        reaches = key in tests[name]["enters"]
        return (*near, of_file[file], file, not reaches, tests[name]["seconds"])

    return sorted(chosen, key=rank)


def _write(path: Path, content: dict) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)
