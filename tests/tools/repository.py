"""Says where the repository lies, in all places at once.

    python tests/tools/repository.py https://github.com/me/keras_flix
    python tests/tools/repository.py --readme  # for the package index, before a build

The address is a setting of `pyproject.toml`: `Repository` of `[project.urls]`, with
`Changelog` and `Issues` of it beside. The site links to it, and each guide's first
cell, which Colab runs without the other files, gets it too. Where it is on GitHub, a
badge below a guide's title opens its notebook in Colab. Until it is said, nothing links
to a place that is not there. Without an address, this prints the one that is set, and
fails where a guide has another one.
"""

import argparse
import re
import sys
import tomllib
import urllib.parse
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYPROJECT, README = ROOT / "pyproject.toml", ROOT / "README.md"
CELL = re.compile(r'^(REPOSITORY = ")([^"]*)(")', re.MULTILINE)
STORED_CELL = re.compile(r'^( *"REPOSITORY = \\")([^"\\]*)(\\")', re.MULTILINE)
"""The same line as a notebook holds it, in JSON."""
COLAB = "https://colab.research.google.com"
BADGE = f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({{}})"
BADGES = re.escape(BADGE).replace(re.escape("{}"), "[^)]*")
"""Finds it, wherever it leads."""
BY_HAND = "In Colab, put the address of the repository into the next cell and run it."
BY_BADGE = "In Colab, run the next cell first."


def address() -> str:
    """The address of the repository, or an empty text while nobody has said it."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    return project["urls"].get("Repository", "").rstrip("/")


def guides() -> list[Path]:
    """The guides that know where they come from: scripts and their notebooks."""
    found = sorted((ROOT / "guides").glob("*.py"))
    found = [path for path in found if CELL.search(path.read_text(encoding="utf-8"))]
    notebooks = [path.with_suffix(".ipynb") for path in found]
    return [*found, *(path for path in notebooks if path.is_file())]


def in_cell(path: Path, new: str | None = None) -> str:
    """The address in a guide's first cell; with `new`, writes that one there."""
    cell = STORED_CELL if path.suffix == ".ipynb" else CELL
    text = path.read_text(encoding="utf-8")
    ((_, old, _),) = cell.findall(text)
    if new is not None:
        path.write_text(cell.sub(rf"\g<1>{new}\g<3>", text), encoding="utf-8")
    return old


def colab(place: str, path: str) -> str:
    """Where Colab opens a notebook of the repository; empty where it cannot."""
    parts = urllib.parse.urlsplit(place)
    if parts.netloc != "github.com":
        return ""
    return f"{COLAB}/github{parts.path}/blob/main/{path}"


def without_badge(text: str, path: Path) -> str:
    """A guide without the badge below its title."""
    start, end, empty = map(re.escape, _line(path))
    return re.sub(f"^{start}{BADGES}{end}{empty}", "", text, flags=re.MULTILINE)


def invite(path: Path, place: str) -> None:
    """Writes below a guide's title how it is opened in Colab."""
    text = without_badge(path.read_text(encoding="utf-8"), path)
    if place:
        text = text.replace(BY_HAND, BY_BADGE)
    link = colab(place, f"guides/{path.with_suffix('.ipynb').name}")
    if link:
        start, end, empty = _line(path)
        title = f"^{re.escape(start)}# .*\n{re.escape(empty)}"
        found = re.search(title, text, re.MULTILINE)
        if found is None:
            raise SystemExit(f"A guide must begin with its title. Received: {path}.")
        badge = f"{start}{BADGE.format(link)}{end}{empty}"
        text = text[: found.end()] + badge + text[found.end() :]
    path.write_text(text, encoding="utf-8")


def _line(path: Path) -> tuple[str, str, str]:
    """What stands around a line of a guide's text, and its empty line."""
    if path.suffix == ".ipynb":
        return '    "', '\\n",\n', '    "\\n",\n'
    return "# ", "\n", "#\n"


def say(new: str) -> None:
    """Writes the address into `pyproject.toml` and all guides."""
    if not re.fullmatch(r"https://[\w.-]+(/[\w.~-]+)+", new):
        raise SystemExit(
            "The address must be that of a page, without a slash at its end. Received: "
            f"{new!r}. Write it as https://github.com/me/keras_flix."
        )
    text = PYPROJECT.read_text(encoding="utf-8")
    urls = {
        "Changelog": f"{new}/blob/main/guides/changelog.md",
        "Issues": f"{new}/issues",
        "Repository": new,
    }
    text = re.sub(rf"^({'|'.join(urls)}) = .*\n", "", text, flags=re.MULTILINE)
    lines = "".join(f'{name} = "{url}"\n' for name, url in urls.items())
    head = "[project.urls]\n"
    PYPROJECT.write_text(text.replace(head, head + lines), encoding="utf-8")
    for path in guides():
        in_cell(path, new)
        invite(path, new)


def absolute(text: str) -> str:
    """A README whose links and pictures are found from anywhere, as on PyPI."""
    if not (place := address()):
        raise SystemExit(
            "README can only link to a repository that is known. Received: none. Say "
            "it: python tests/tools/repository.py https://github.com/me/keras_flix."
        )
    text = re.sub(r"(!\[[^]]*\]\()(?!https?:)", rf"\g<1>{place}/raw/main/", text)
    return re.sub(r"(\]\()(?!https?:|#)", rf"\g<1>{place}/blob/main/", text)


def for_index(text: str) -> str:
    """A README as the package index shows it, from where it is installed."""
    clone = r'^pip install "\.\[(\w+)\]".*$'
    index = r'pip install "keras-flix[\1]"  # or another of jax, tensorflow, torch'
    return absolute(re.sub(clone, index, text, flags=re.MULTILINE))


def differing() -> list[str]:
    """The guides that name another address than the setting, or lead elsewhere."""
    place = address()
    found = []
    for path in guides():
        link = colab(place, f"guides/{path.with_suffix('.ipynb').name}")
        links = re.findall(rf"{COLAB}/github[^)]*", path.read_text(encoding="utf-8"))
        if in_cell(path) != place or links != [link][: bool(link)]:
            found.append(path.name)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("address", nargs="?", help="where the repository lies")
    parser.add_argument("--readme", action="store_true", help="for the package index")
    options = parser.parse_args()
    if options.address is not None:
        say(options.address)
    if options.readme:
        README.write_text(for_index(README.read_text("utf-8")), encoding="utf-8")
    print(address() or "not said yet")
    if wrong := differing():
        sys.exit(f"Other addresses stand in {', '.join(wrong)}.")
