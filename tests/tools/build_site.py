"""Builds the site, and checks every link of it.

    python tests/tools/build_site.py          # into build/site
    python tests/tools/build_site.py --serve  # and shows it on http://localhost:8000

Pages lie where they are read on GitHub as well. From there they are copied into one
folder: notebooks become Markdown, links to pages become links within the site, and
links to other files lead to where the repository lies (`tests/tools/repository.py`), or
are plain text while nobody has said it. `guides/reference/mkdocs.yml` has the settings.
"""

import argparse
import functools
import html.parser
import http.server
import os
import posixpath
import re
import shutil
import subprocess
import sys
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import repository
import yaml

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "guides" / "reference" / "mkdocs.yml"
FOLDER = ROOT / "build" / "site"
LINK = re.compile(r"(!?)\[((?:[^][]|\[[^]]*\])*)\]\(([^()\s]+)\)")
CODE = re.compile(r"^(```+|~~~+).*?^\1 *$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
OUTSIDE = ("http://", "https://", "mailto:", "data:")
CELLS = """{% extends "markdown/index.md.j2" %}
{% macro block(text) %}
~~~~{ .text .output }
{{ text.rstrip("\\n") }}
~~~~
{% endmacro %}
{% block stream %}{{ block(output.text) }}{% endblock stream %}
{% block data_text scoped %}
{{ block(output.data["text/plain"]) }}
{% endblock data_text %}
"""
"""What a cell printed is a block that the style sheet knows."""


def sources() -> dict[str, str]:
    """By path in the repository, where a page or a picture lies on the site."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed += ["guides", "benchmarks"]
    output = subprocess.run(
        listed, cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    found = {
        "README.md": "index.md",
        "guides/README.md": "guides.md",
        ".github/CONTRIBUTING.md": "contributing.md",
        ".github/SECURITY.md": "security.md",
    }
    for path in output.splitlines():
        if path.endswith((".md", ".png", ".svg", ".css")):
            # No index: a section's first index is where its tab leads.
            place = path.removeprefix("guides/").replace("/README.md", ".md")
            found.setdefault(path, place)
        elif path.endswith(".ipynb"):
            found[path] = path.removeprefix("guides/").replace(".ipynb", ".md")
    return {path: place for path, place in found.items() if (ROOT / path).is_file()}


def notebook(path: Path, folder: Path) -> str:
    """A notebook as Markdown; its pictures go into the folder."""
    import nbconvert
    from jinja2 import DictLoader

    exporter = nbconvert.MarkdownExporter(
        extra_loaders=[DictLoader({"cells.md.j2": CELLS})], template_file="cells.md.j2"
    )
    pictures = f"{path.stem}_files"
    text, resources = exporter.from_filename(
        str(path), resources={"output_files_dir": pictures, "unique_key": path.stem}
    )
    for name, data in resources["outputs"].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return text


def opened(text: str, path: str, address: str) -> str:
    """A notebook's page with the ways to open it, below its title."""
    # The badge is a picture of another place, which the site has none of.
    text = re.sub(f"^{repository.BADGES}\n\n", "", text, flags=re.MULTILINE)
    if not address:
        return text
    ways = [f"[The notebook]({address}/blob/main/{path})"]
    if link := repository.colab(address, path):
        ways.insert(0, f"[Open in Colab]({link})")
    title, _, rest = text.partition("\n\n")
    return f"{title}\n\n{' · '.join(ways)}\n\n{rest}"


def linked(text: str, path: str, places: dict[str, str], address: str) -> str:
    """The text of a page, with links as they are right on the site."""

    def link(match: re.Match[str]) -> str:
        picture, words, target = match.groups()
        if target.startswith((*OUTSIDE, "#")):
            return match.group()
        name, mark, anchor = target.partition("#")
        if name.startswith(f"{Path(path).stem}_files"):
            return match.group()  # a figure of a notebook
        at = posixpath.normpath(posixpath.join(posixpath.dirname(path), name))
        if at in places:
            here = posixpath.dirname(places[path])
            to = posixpath.relpath(places[at], here or ".")
            return f"{picture}[{words}]({to}{mark}{anchor})"
        if not (ROOT / at).exists():
            raise ValueError(f"{path} links to {target}, which is not there.")
        kind = "tree" if (ROOT / at).is_dir() else "blob"
        return f"[{words}]({address}/{kind}/main/{at})" if address else words

    # No link begins or ends within code, but its words may be code.
    codes = [code.group() for code in CODE.finditer(text)]
    text = LINK.sub(link, CODE.sub("\0", text))
    return re.sub("\0", lambda _: codes.pop(0), text)


def assemble(folder: Path, address: str) -> Path:
    """Copies all pages into `folder / "pages"`; returns the settings for them."""
    places = sources()
    pages = folder / "pages"
    for old in (pages, folder / "html"):
        shutil.rmtree(old, ignore_errors=True)
    for path, place in places.items():
        if path == "README.md":
            continue
        target = pages / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith((".md", ".ipynb")):
            if path.endswith(".ipynb"):
                text = opened(notebook(ROOT / path, target.parent), path, address)
            else:
                text = (ROOT / path).read_text(encoding="utf-8")
            target.write_text(linked(text, path, places, address), encoding="utf-8")
        else:
            shutil.copyfile(ROOT / path, target)
    settings = yaml.safe_load(CONFIG.read_text())
    settings |= {"docs_dir": "pages", "site_dir": "html"}
    settings["nav"] = navigation(settings["nav"], places)
    if address:
        settings["repo_url"] = address
        settings["repo_name"] = urllib.parse.urlsplit(address).path.strip("/")
    [handlers] = [p["mkdocstrings"] for p in settings["plugins"] if isinstance(p, dict)]
    python = handlers["handlers"]["python"]
    python["paths"] = [str(ROOT)]
    python["options"]["extensions"] = [str(CONFIG.parent / "docstrings.py")]
    target = folder / "mkdocs.yml"
    target.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    return target


def navigation(entry: object, places: dict[str, str]) -> object:
    """The pages of the settings, by where they lie on the site."""
    if isinstance(entry, list):
        return [navigation(part, places) for part in entry]
    if isinstance(entry, dict):
        return {title: navigation(part, places) for title, part in entry.items()}
    return places[posixpath.normpath(f"guides/{entry}")]


class Page(html.parser.HTMLParser):
    """What a page links to, and what can be linked to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, found: list[tuple[str, str | None]]) -> None:
        attributes = dict(found)
        self.names |= {attributes[n] or "" for n in ("id", "name") if n in attributes}
        self.links += [attributes[n] or "" for n in ("href", "src") if n in attributes]


def broken(site: Path) -> list[str]:
    """The links within the site that lead nowhere."""
    pages = {p: Page(p.read_text(encoding="utf-8")) for p in site.rglob("*.html")}
    found = []
    for path, page in pages.items():
        if path.name == "404.html":
            # Its links are of the place where a site is put.
            continue
        for link in page.links:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            name = urllib.parse.unquote(parts.path)
            to = Path(os.path.normpath(path.parent / name)) if name else path
            to = to / "index.html" if to.is_dir() else to
            anchor = urllib.parse.unquote(parts.fragment)
            if not to.is_file():
                found.append(f"{path.relative_to(site)}: {link} is not there")
            elif anchor and to in pages and anchor not in pages[to].names:
                found.append(f"{path.relative_to(site)}: {link} has no such place")
    return sorted(set(found))


def build(folder: Path = FOLDER, address: str | None = None) -> Path:
    """Builds and checks the site; returns the folder of its HTML."""
    settings = assemble(folder, repository.address() if address is None else address)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    subprocess.run([*command, "-f", settings.name], cwd=folder, check=True)
    site = folder / "html"
    if wrong := broken(site):
        raise ValueError("Links must lead somewhere. Received:\n" + "\n".join(wrong))
    return site


def serve(site: Path, port: int = 8000) -> None:
    """Shows the site on this machine, until it is interrupted."""
    handler: Callable[..., http.server.SimpleHTTPRequestHandler] = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=str(site)
    )
    print(f"http://localhost:{port}")
    http.server.ThreadingHTTPServer(("localhost", port), handler).serve_forever()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--serve", action="store_true", help="show it afterwards")
    arguments.add_argument("--output", type=Path, default=FOLDER)
    options = arguments.parse_args()
    built = build(options.output)
    print(built)
    if options.serve:
        serve(built)
