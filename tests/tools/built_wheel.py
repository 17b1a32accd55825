"""Builds the wheel, installs it into an empty environment and uses it from there.

    python tests/tools/built_wheel.py               # borrows what it needs
    python tests/tools/built_wheel.py --alone       # installs what it needs anew
    python tests/tools/built_wheel.py --wheel FILE  # checks this one, for a release

It borrows from the environment that runs this; the package itself is the wheel's.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "keras_flix"
IMPORTS = f"""
import importlib, pathlib, pkgutil, sys
import {PACKAGE}
from {PACKAGE} import *
print("imported from", {PACKAGE}.__file__)
place = pathlib.Path({PACKAGE}.__file__).parent
if not place.is_relative_to(sys.prefix):
    sys.exit("This is not the wheel's package.")
for module in pkgutil.walk_packages([str(place)], "{PACKAGE}."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""
"""Everything public, and every module, which must be the environment's own."""


def sources() -> set[str]:
    """The files of the checkout, as git sees it: no ignored leftovers of builds."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    output = subprocess.run(
        listed, cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    return {name for name in output.split("\0") if name and (ROOT / name).is_file()}


def build(folder: Path) -> Path:
    """Builds the wheel of the checkout; returns its path in `folder`.

    From a copy, as setuptools packs what former builds have left in the checkout.
    """
    copy = folder / "source"
    needed = ("pyproject.toml", "README.md", "LICENSE")
    for name in sources():
        if name in needed or name.startswith(f"{PACKAGE}/"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--disable-pip-version-check"]
    options = ["--quiet", "--no-deps", "--wheel-dir", str(folder)]
    subprocess.run([*pip, *options, str(copy)], check=True)
    [wheel] = folder.glob("*.whl")
    return wheel


def check_files(wheel: Path) -> list[str]:
    """What is missing in the wheel, and what should not be in it."""
    expected = {name for name in sources() if name.startswith(f"{PACKAGE}/")}
    expected = {n for n in expected if n.endswith((".py", "/py.typed"))}
    with zipfile.ZipFile(wheel) as archive:
        held = {n for n in archive.namelist() if ".dist-info/" not in n}
    print(f"{wheel.name}: {len(held)} files, {wheel.stat().st_size // 1024} kB")
    return [
        *(f"{name} is not in the wheel" for name in sorted(expected - held)),
        *(f"{name} is in the wheel" for name in sorted(held - expected)),
    ]


def check_use(wheel: Path, folder: Path, alone: bool) -> list[str]:
    """What goes wrong when the wheel is installed and used outside of the checkout."""
    venv.create(folder / "env", with_pip=True)
    scripts = folder / "env" / "bin"
    python = str(scripts / "python")
    if not alone:
        # A path in a `.pth` file comes after the environment's own packages, and the
        # `.pth` files there, such as that of an editable install, are not read.
        code = "import sysconfig; print(sysconfig.get_path('purelib'))"
        own = subprocess.run([python, "-c", code], check=True, capture_output=True)
        lent = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        place = Path(own.stdout.decode().strip(), "lent.pth")
        place.write_text("\n".join(sorted(lent)) + "\n")
    install = [python, "-m", "pip", "install", "--disable-pip-version-check"]
    needs = [] if alone else ["--no-deps"]
    subprocess.run([*install, "--quiet", *needs, str(wheel)], check=True, cwd=folder)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    problems = []
    expected = wheel.name.split("-")[1]
    for command, words in (
        ([python, "-c", IMPORTS], "imported from"),
        ([str(scripts / "keras-flix"), "--version"], f"keras-flix {expected}\n"),
        ([python, "-m", PACKAGE, "--version"], f"keras-flix {expected}\n"),
    ):
        result = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True
        )
        print(result.stdout.strip().replace(str(folder), "..."), flush=True)
        if result.returncode != 0 or words not in result.stdout:
            name = " ".join([Path(command[0]).name, *command[1:]]).strip()
            problems.append(f"`{name}` failed:\n{result.stderr[-2000:]}")
    return problems


def main() -> int:
    """Builds and checks; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--alone", action="store_true", help="install all it needs")
    parser.add_argument("--wheel", type=Path, help="a wheel that is there already")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        wheel = options.wheel.resolve() if options.wheel else build(folder)
        problems = check_files(wheel) + check_use(wheel, folder, options.alone)
    for problem in problems:
        print(f"FAILED: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
