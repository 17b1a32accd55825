"""The site builds, every link of it leads somewhere, and its address is said once."""

import json
import re
import shutil
import subprocess
import sys
import tomllib

import keras
import pytest
import yaml
from helpers.places import ROOT, TESTS

import keras_flix

pytestmark = pytest.mark.short("torch")
TOOLS = TESTS / "tools"
HERE = "https://github.com/me/keras_flix"


@pytest.fixture
def tools(monkeypatch):
    """The tools as they see each other when one of them is run."""
    monkeypatch.syspath_prepend(str(TOOLS))
    import build_site
    import repository

    yield build_site, repository
    for name in ("build_site", "repository"):
        del sys.modules[name]


@pytest.mark.slow
@pytest.mark.skipif(keras.config.backend() != "torch", reason="it computes nothing")
def test_the_site_builds_and_no_link_is_broken(tmp_path):
    pytest.importorskip("zensical", reason="extra `docs`")
    command = [sys.executable, TOOLS / "build_site.py", "--output", tmp_path / "site"]
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert result.returncode == 0, result.stdout[-3000:]
    site = tmp_path / "site" / "html"
    page = (site / "reference" / "adapting.html").read_text()
    # From the docstring: its text, its table of arguments and its example.
    for expected in ("The model is changed in place", "all-linear", "&gt;&gt;&gt;"):
        assert expected in page
    text = "".join(p.read_text() for p in sorted((site / "reference").glob("*.html")))
    places = set(re.findall(r'id="(keras_flix[^"]*)"', text))
    for package in (keras_flix.xtreme_up, keras_flix.analysis, keras_flix.mixtures):
        assert places >= {f"{package.__name__}.{name}" for name in package.__all__}
    # Of `evaluation.evaluate`, the function and nothing else of its module.
    functions = {place for place in places if ".evaluation.evaluate." in place}
    assert functions == {"keras_flix.evaluation.evaluate.evaluate"}
    inherited = ("mixtures.Mixture.hold_out", "mixtures.Mixture.from_jsonl")
    for name in (*inherited, "FlixDense.kernel_delta", "analysis.UpdateNorms.table"):
        assert f"keras_flix.{name}" in places
    # A tab leads to the first page of its section.
    home = (site / "index.html").read_text()
    for first in ("index", "guides", "how_to/mixtures", "reference/index", "evidence"):
        assert re.search(f'href="(./)?{first}.html" class="md-tabs__link', home), first
    # What a guide printed, apart from what it ran.
    assert '<div class="output highlight"' in (site / "quickstart.html").read_text()
    found = {
        item["title"]
        for item in json.loads((site / "search.json").read_text())["items"]
    }
    assert "hold_out" in found


def test_broken_links_are_told(tools, tmp_path):
    build_site, _ = tools
    text = '<h2 id="a"></h2><a href="{}"></a><img src="there.png">'
    (tmp_path / "page.html").write_text(text.format("other.html#b"))
    (tmp_path / "other.html").write_text(text.format("page.html#a"))
    assert build_site.broken(tmp_path) == [
        "other.html: there.png is not there",
        "page.html: other.html#b has no such place",
        "page.html: there.png is not there",
    ]


@pytest.mark.parametrize("address", ["", HERE])
def test_links_are_right_on_the_site(tools, address):
    build_site, _ = tools
    places = {"guides/support.md": "support.md", "README.md": "index.md"}
    places["benchmarks/README.md"] = "benchmarks/index.md"
    there = f"[the file]({address}/blob/main/pyproject.toml)"
    text = (
        "[a table](../guides/support.md#families) [the file](../pyproject.toml)\n"
        "`a` [home](../README.md) `b` [`afar`](https://keras.io) `[code](gone.md)`\n"
        "```python\n[code](gone.md)\n```\n"
    )
    assert build_site.linked(text, "benchmarks/README.md", places, address) == (
        f"[a table](../support.md#families) {there if address else 'the file'}\n"
        "`a` [home](../index.md) `b` [`afar`](https://keras.io) `[code](gone.md)`\n"
        "```python\n[code](gone.md)\n```\n"
    )
    with pytest.raises(ValueError, match="README.md links to gone.md, which is not"):
        build_site.linked("[gone](gone.md)", "README.md", places, address)


def test_guides_lead_to_colab_once_the_address_is_known(tools):
    build_site, repository = tools
    text = "# Title\n\nText."
    assert build_site.opened(text, "guides/a.ipynb", "") == text
    page = build_site.opened(text, "guides/a.ipynb", HERE)
    colab = "https://colab.research.google.com/github/me/keras_flix/blob/main"
    assert f"# Title\n\n[Open in Colab]({colab}/guides/a.ipynb) · [The" in page
    assert "Colab" not in build_site.opened(text, "guides/a.ipynb", "https://it.org/a")
    # The site has no pictures of others.
    badge = repository.BADGE.format(repository.colab(HERE, "guides/a.ipynb"))
    with_badge = f"# Title\n\n{badge}\n\nText."
    assert build_site.opened(with_badge, "guides/a.ipynb", HERE) == page


def test_the_address_is_said_once(tools, tmp_path, monkeypatch):
    _, repository = tools
    assert repository.differing() == []
    (tmp_path / "guides").mkdir()
    for name in ("pyproject.toml", "guides/serving.py", "guides/serving.ipynb"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    monkeypatch.setattr(repository, "ROOT", tmp_path)
    monkeypatch.setattr(repository, "PYPROJECT", tmp_path / "pyproject.toml")
    # Colab opens what is on GitHub; a badge goes where nothing can be opened.
    for address, opened in (
        ("https://github.com/you/flix", 1),
        (HERE, 1),
        ("https://codeberg.org/us/flix", 0),
    ):
        repository.say(address)
        assert repository.address() == address
        assert repository.differing() == []
        cells = json.loads((tmp_path / "guides/serving.ipynb").read_text())["cells"]
        title, _, *text = "".join(cells[0]["source"]).split("\n")
        assert title.startswith("# ")
        place = f"/github/{address[19:]}/blob/main/guides/serving.ipynb)"
        assert [line.endswith(place) for line in text].count(True) == opened
        assert text[0].startswith("[![Open in Colab](https://colab.") == bool(opened)
        assert "In Colab, run the next cell first." in text
        source = (tmp_path / "guides/serving.py").read_text()
        source = re.sub("^# ?", "", source, flags=re.MULTILINE)
        assert "\n".join([title, "", *text]) in source
        assert f'REPOSITORY = "{address}"' in "".join(cells[1]["source"])
        project = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]
        changes = f"{address}/blob/main/guides/changelog.md"
        urls = {"Changelog": changes, "Issues": f"{address}/issues"}
        urls |= {"Repository": address, "Paper": "https://arxiv.org/abs/2402.17934"}
        assert project["urls"] == urls
        text = repository.absolute("![a](b.png) [c](d.md#e) [f](https://g)")
        picture, page = f"{address}/raw/main/b.png", f"{address}/blob/main/d.md#e"
        assert text == f"![a]({picture}) [c]({page}) [f](https://g)"
    page = repository.for_index((ROOT / "README.md").read_text())
    install = 'pip install "keras-flix[jax]"  # or another of jax, tensorflow, torch'
    assert page.count(install) == 1 and "# in a clone" not in page
    links = re.findall(r"\]\(([^)]*)\)", page)
    assert [link for link in links if not link.startswith("https://")] == []
    with pytest.raises(SystemExit, match="Received: 'here'"):
        repository.say("here")


def test_nothing_stands_in_for_an_address_that_is_missing():
    placeholder = "<" + "owner" + ">"
    command = ["git", "grep", "-lF", placeholder]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 1 and found.stdout == ""


def test_every_page_is_in_the_navigation(tools):
    build_site, _ = tools
    places = build_site.sources()
    settings = yaml.safe_load(build_site.CONFIG.read_text())

    def pages(entry):
        if isinstance(entry, str):
            return {entry}
        parts = entry.values() if isinstance(entry, dict) else entry
        return set().union(*map(pages, parts))

    listed = pages(build_site.navigation(settings["nav"], places))
    assert listed == {place for place in places.values() if place.endswith(".md")}
