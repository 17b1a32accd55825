"""The API reference holds what the package exports, and the site builds."""

import inspect
import os
import re
import subprocess
import sys

import keras
import pytest
from helpers.places import ROOT

import keras_flix
from keras_flix.command_line.main import parser

PAGES = ROOT / "guides" / "reference"
TEXT = "\n".join(page.read_text() for page in sorted(PAGES.glob("*.md")))
DIRECTIVES = re.findall(r"^::: (keras_flix\S*)$", TEXT, re.MULTILINE)


def public_names():
    for name in keras_flix.__all__:
        value = getattr(keras_flix, name)
        if inspect.ismodule(value):
            yield from (f"{value.__name__}.{inner}" for inner in value.__all__)
        elif name != "__version__":
            yield f"keras_flix.{name}"


@pytest.mark.parametrize("name", public_names())
def test_everything_public_is_in_the_reference(name):
    assert name in DIRECTIVES or name.rpartition(".")[0] in DIRECTIVES


def test_every_guide_is_on_the_site():
    config = (PAGES / "mkdocs.yml").read_text()
    notebooks = {path.name for path in (ROOT / "guides").glob("*.ipynb")}
    assert notebooks == set(re.findall(r"\S+\.ipynb(?=$)", config, re.MULTILINE))


@pytest.mark.slow
@pytest.mark.skipif(keras.config.backend() != "torch", reason="it computes nothing")
def test_the_site_builds(tmp_path):
    command = ["-m", "mkdocs", "build", "--strict", "-q"]
    config = ["-f", PAGES / "mkdocs.yml", "-d", tmp_path]
    result = subprocess.run(
        [sys.executable, *command, *config],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-3000:]
    page = (tmp_path / "reference" / "adapting.html").read_text()
    # From the docstring: its text, its table of arguments and its example.
    for expected in ("The model is changed in place", "all-linear", "&gt;&gt;&gt;"):
        assert expected in page


def test_every_command_is_in_the_reference():
    text = (PAGES / "command_line.md").read_text()
    (commands,) = (
        action.choices for action in parser()._actions if action.dest == "command"
    )
    assert len(commands) >= 5
    for command in commands:
        assert f"`keras-flix {command}" in text
