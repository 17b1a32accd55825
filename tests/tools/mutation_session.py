"""All runs of one call of the mutation tool, and what is written of them."""

from __future__ import annotations

import ast
import collections
import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

from chosen_tests import Chosen
from entered import imported, watched_by
from mutants import ROOMS, Mutant, draw
from mutation_run import INTERNAL_ERROR, NO_TESTS, WENT_WRONG, Outcome, Run, read_json
from traced_tests import Traced

ROOT = Path(__file__).parents[2]
DAILY = ["-m", "not slow and not guide"]
ALL = ["-m", "not guide", "--full"]
"""What is run: what a developer runs all day; in the last stage, what runs by night."""


class Session:
    """All runs of one call, and what is written of them."""

    def __init__(self, output: Path, count: int, seed: int, folder: Path):
        self.output = output
        self.tests_file = output.with_suffix(".tests.json")
        self.log = output.with_suffix(".log")
        self.project = copy_project(folder / "project")
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
        tasks = [
            (mutant, result)
            for mutant, result in zip(self.mutants, self.results["mutants"])
            if not result["killed_by"] and name not in result["survived"]
        ]
        for done, (mutant, result) in enumerate(tasks, 1):
            end = self.run(name, mutant, result)
            _write(self.output, self.results)
            count = f"{name} {done}/{len(tasks)} {result['seconds']:5.1f} s"
            print(f"{count} {result['id']} {end}", flush=True)

    def run(self, stage: str, mutant: Mutant, result: dict) -> str:
        """Runs a mutant against the tests of a stage, and says how it ended.

        A mutant stays open where pytest itself went wrong: the next call takes it.
        """
        options = ALL if stage == "full" else DAILY
        near = near_tests(ROOT, mutant.path)
        for files in self.files(stage, mutant.room, near):
            traced = self.traces(files, options)
            order = plan(mutant, traced, near)
            if not order:
                continue
            outcome = self.outcome(stage, mutant, order, traced, options)
            result["seconds"] = round(result["seconds"] + outcome.seconds, 1)
            if outcome.status in (0, NO_TESTS):
                continue
            if outcome.status in (INTERNAL_ERROR, WENT_WRONG):
                return f"WENT WRONG, see {self.log}"
            time_is_up = outcome.status in (None, -signal.SIGXCPU)
            ends = "time is up" if time_is_up else f"ended by {outcome.status}"
            test = outcome.report.get("failed") or ends
            result["killed_by"] = {"stage": stage, "test": test}
            return test
        result["survived"].append(stage)
        return "SURVIVED"

    def files(self, stage: str, room: str, near: list[str]) -> list[list[str]]:
        """What a stage runs, one list of files after the other."""
        if stage == "near":
            return [[file] for file in near]
        by_folder: dict[str, list[str]] = {}
        for path in sorted((ROOT / "tests").rglob("test_*.py")):
            file = path.relative_to(ROOT)
            if stage == "full" or (
                stage == stage_of(file.parts[1], room) and file.as_posix() not in near
            ):
                by_folder.setdefault(file.parts[1], []).append(file.as_posix())
        return list(by_folder.values())

    def traces(self, files: list[str], options: list[str]) -> dict:
        """What the tests of some files reach."""
        found = [self.trace(file, options) for file in files]
        return {
            "tests": {n: test for one in found for n, test in one["tests"].items()},
            "left out": [name for one in found for name in one["left out"]],
            "on import": {key for one in found for key in one["on import"]},
        }

    def trace(self, file: str, options: list[str]) -> dict:
        """Runs tests without a mutant, the first time, and notes what they reach."""
        key = " ".join([file, *options])
        if key in self.traced:
            return self.traced[key]
        project = self.project
        plugin = Traced(project.with_suffix(".entered"), self.watched)
        outcome = Run(project, [file, *options], plugin, self.log).outcome()
        if outcome.status not in (0, 1, NO_TESTS):
            raise SystemExit(
                "The tests must run without a mutant. Received: exit status "
                f"{outcome.status} of {file}. See {self.log}."
            )
        failed = outcome.report.pop("failed")
        outcome.report["left out"] += failed
        self.results["failed without a mutant"] = sorted(
            {*self.results["failed without a mutant"], *failed}
        )
        self.traced[key] = outcome.report
        _write(self.tests_file, self.traced)
        count = len(outcome.report["tests"])
        print(f"no mutant, {file}: {count} tests, {outcome.seconds:.0f} s", flush=True)
        if failed:
            print(f"LEFT OUT, they fail without a mutant: {failed}", flush=True)
        return outcome.report

    def outcome(
        self,
        stage: str,
        mutant: Mutant,
        order: list[str],
        traced: dict,
        options: list[str],
    ) -> Outcome:
        """Runs a mutant against tests in their order."""
        files = list(dict.fromkeys(name.partition("::")[0] for name in order))
        chosen = Chosen(order, {*traced["left out"], *traced["tests"]})
        limit = 30 + round(3 * sum(traced["tests"][n]["seconds"] for n in order))
        with self.log.open("a") as log:
            log.write(f"\n===== {stage} {mutant.id}\n")
        arguments = ["-x", *files, *options]
        number = self.mutants.index(mutant)
        run = Run(self.project, arguments, chosen, self.log, limit, mutant, number)
        return run.outcome()


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


def near_tests(root: Path, path: str) -> list[str]:
    """The files of tests that are nearest to one of the package, the smallest first.

    The one that mirrors it; where there is none, those of the files of its room that
    import from it, or import from these, and so on.
    """
    imports = _imports_in(root, Path(path).parts[1])
    level, seen = {path}, {path}
    while level:
        mirrors = [root / _mirror(file) for file in sorted(level)]
        if found := [mirror for mirror in mirrors if mirror.exists()]:
            found.sort(key=lambda mirror: mirror.stat().st_size)
            return [mirror.relative_to(root).as_posix() for mirror in found]
        level = {file for file in imports if imports[file] & level} - seen
        seen |= level
    return []


@functools.cache
def _imports_in(root: Path, room: str) -> dict[str, set[str]]:
    return {
        file.relative_to(root).as_posix(): imported(ast.parse(file.read_bytes()))
        for file in (root / "keras_flix" / room).rglob("*.py")
    }


def _mirror(path: str) -> str:
    file = Path(path)
    return f"tests/{'/'.join(file.parts[1:-1])}/test_{file.name}"


def stage_of(folder: str, room: str) -> str:
    """In which stage a mutant of a room meets a folder of tests."""
    if folder not in ROOMS:
        return "fast"
    return "room" if folder == room else "rooms"


def plan(mutant: Mutant, traced: dict, near: list[str]) -> list[str]:
    """The tests that reach what is changed: those first that are near and quick."""
    key = mutant.statement or mutant.path
    tests, always = traced["tests"], key in traced["on import"]
    chosen = [name for name in tests if always or key in tests[name]["enters"]]
    folders = {str(Path(file).parent) for file in near}
    of_file: dict[str, float] = collections.defaultdict(float)
    for name in chosen:
        of_file[name.partition("::")[0]] += tests[name]["seconds"]

    def rank(name: str) -> tuple:
        file = name.partition("::")[0]
        far = str(Path(file).parent) not in folders
        return far, of_file[file], file, tests[name]["seconds"]

    return sorted(chosen, key=rank)


def _write(path: Path, content: dict) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)
