"""What is under test, and whether it is what people get who install the package today.

    python tests/tools/versions.py            # Keras and KerasHub against the registry
    python tests/tools/versions.py --extras   # and no extra pulls an older one
    python tests/tools/versions.py --offline  # only says what is under test

A registry that does not answer is a failure: a check that did not run has not passed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from packaging.version import Version

ROOT = Path(__file__).parents[2]
WATCHED = ("keras", "keras-hub")
SHOWN = (
    *WATCHED,
    "jax",
    "tensorflow",
    "torch",
    "numpy",
    "transformers",
    "peft",
)
OTHER_ENVIRONMENT = {
    "peers": "it has an environment of its own, as adapters caps transformers"
}
"""Extras that nobody installs beside the newest of everything, and why."""
COMMAND = re.compile(r'"\.\[([\w,]+)\]"')
"""What the README's commands install."""


def installed(names: Iterable[str] = SHOWN) -> dict[str, str]:
    """The installed versions of packages, without those that are not."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def commit() -> str:
    """The commit under test, with a `+` where files differ from it."""
    git = ["git", "-C", str(ROOT)]
    try:
        options = {"check": True, "capture_output": True, "text": True}
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], **options)
        changes = subprocess.run([*git, "status", "--porcelain", "-uno"], **options)
    except (OSError, subprocess.CalledProcessError):
        return "unknown (not a git checkout)"
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")


def under_test() -> str:
    """One line: the commit, Python and the versions. It imports no backend."""
    versions = [f"{name} {version}" for name, version in installed().items()]
    return ", ".join(
        [f"commit {commit()}", f"Python {platform.python_version()}", *versions]
    )


def pip(*arguments: str) -> str:
    """What pip prints; raises a `RuntimeError` with its last words if it fails."""
    result = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PIP_NO_INPUT": "1"},
    )
    if result.returncode != 0:
        words = [line for line in result.stderr.splitlines() if "ERROR" in line]
        raise RuntimeError("; ".join(words) or result.stderr[-500:])
    return result.stdout


def offered(name: str) -> str:
    """The newest release of a package that this Python can install."""
    found = re.match(rf"{re.escape(name)} \((.+?)\)", pip("index", "versions", name))
    if found is None:
        raise RuntimeError(f"pip did not say which versions of {name} there are")
    return found.group(1)


def resolved(requirements: Iterable[str]) -> dict[str, str]:
    """The versions that these requirements get in an empty environment.

    Nothing is installed, and of wheels only their metadata is fetched. PyTorch is
    held at the installed one: which of its builds people get is not asked here.
    """
    with tempfile.TemporaryDirectory() as name:
        report, held = Path(name, "report.json"), Path(name, "held.txt")
        torch = installed(["torch"]).get("torch", "").partition("+")[0]
        held.write_text(f"torch=={torch}\n" if torch else "")
        options = [
            "--dry-run",
            "--ignore-installed",
            "--quiet",
            "--use-feature=fast-deps",
        ]
        files = ["--report", str(report), "--constraint", str(held)]
        pip("install", *options, *files, *requirements)
        found = [i["metadata"] for i in json.loads(report.read_text())["install"]]
    return {m["name"].lower().replace("_", "-"): m["version"] for m in found}


def older(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """Which packages are older than expected, in words."""
    return [
        f"{name} {found.get(name, 'is missing')}, not {version}"
        for name, version in expected.items()
        if name not in found or Version(found[name]) < Version(version)
    ]


def installations() -> dict[str, list[str]]:
    """By name, the requirements of the package alone, with each extra, and of the
    combinations of extras that the README's commands name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bare, extras = project["dependencies"], project["optional-dependencies"]
    commands = COMMAND.findall((ROOT / "README.md").read_text())
    names = [*(e for e in extras if e not in OTHER_ENVIRONMENT), *commands]
    return {
        "": bare,
        **{
            name: bare + [r for extra in name.split(",") for r in extras[extra]]
            for name in dict.fromkeys(names)
        },
    }


def check_installed() -> list[str]:
    """What is wrong with the environment that runs this."""
    newest = {name: offered(name) for name in WATCHED}
    print("offered:", ", ".join(f"{n} {v}" for n, v in newest.items()), flush=True)
    return [
        f"{words}. The tests must see what people get: pip install --upgrade "
        f"{' '.join(WATCHED)}"
        for words in older(installed(WATCHED), newest)
    ]


def check_extras() -> list[str]:
    """Which extras pull an older Keras or KerasHub than the package alone."""
    wanted = installations()
    # Pip waits for the registry most of the time.
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = dict(zip(wanted, pool.map(resolved, wanted.values()), strict=True))
    bare = {name: found[""][name] for name in WATCHED}
    problems = []
    for name, versions in found.items():
        shown = ", ".join(f"{watched} {versions.get(watched)}" for watched in WATCHED)
        print(f"keras-flix[{name}]: {shown}" if name else f"keras-flix: {shown}")
        problems += [
            f"Extra {name!r} gets {words} as the package alone: something in it asks "
            "for what newer ones do not admit. Find it with `pip install --dry-run "
            f"--ignore-installed '.[{name}]'` and leave it out"
            for words in older(versions, bare)
        ]
    for name, reason in OTHER_ENVIRONMENT.items():
        print(f"keras-flix[{name}]: not checked, {reason}")
    return problems


def main() -> int:
    """Prints and checks; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--extras", action="store_true", help="check all extras too")
    parser.add_argument("--offline", action="store_true", help="ask no registry")
    options = parser.parse_args()
    print("under test:", under_test(), flush=True)
    if options.offline:
        print("not checked against the registry: --offline")
        return 0
    try:
        problems = check_installed() + (check_extras() if options.extras else [])
    except RuntimeError as error:
        problems = [f"Not checked, the registry did not answer: {error}"]
    for problem in problems:
        print(f"FAILED: {problem}.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
