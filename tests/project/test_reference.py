"""The API reference holds what the package exports, and the site the guides."""

import ast
import importlib
import inspect
import re

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


def directive_of(name):
    """The directive that shows a name: its own one, or that of its module."""
    place, _, last = name.rpartition(".")
    # What is called like the module that it is in has another name there.
    places = (f"{name}.{last}", name, place)
    return next((one for one in places if one in DIRECTIVES), None)


def written_out(module):
    """The names of `__all__`, if it is written out, as the site's builder reads it."""
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__":
            if isinstance(node.value, ast.List):
                return ast.literal_eval(node.value)
    return []


@pytest.mark.parametrize("name", public_names())
def test_everything_public_is_in_the_reference(name):
    place, _, last = name.rpartition(".")
    directive = directive_of(name)
    assert directive is not None
    if directive == place:
        assert last in written_out(importlib.import_module(place))


def test_methods_that_users_need_are_in_the_reference_if_inherited():
    for name in public_names():
        place, _, last = name.rpartition(".")
        cls = getattr(importlib.import_module(place), last)
        if not inspect.isclass(cls):
            continue
        block = TEXT.partition(f"::: {name}\n")[2].partition("\n\n")[0]
        listed = set(re.findall(r"^ +- (\w+)$", block, re.MULTILINE))
        bases = [one for one in cls.__mro__[1:] if "keras_flix." in one.__module__]
        inherited = {
            own: value
            for base in bases
            for own, value in vars(base).items()
            if own not in vars(cls) and not own.startswith("_")
        }
        assert listed <= inherited.keys()
        # Those that have an example.
        shown = {n for n, v in inherited.items() if ">>>" in str(inspect.getdoc(v))}
        assert shown <= listed, name


def documented(module):
    """The constants of a module that a text follows: the site leaves out others."""
    body = ast.parse(inspect.getsource(module)).body
    for node, after in zip(body, body[1:]):
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            for target in getattr(node, "targets", [getattr(node, "target", None)]):
                yield getattr(target, "id", None)


def test_public_constants_say_what_they_are():
    rooms = ("evaluation", "mixtures")
    modules = [importlib.import_module(f"keras_flix.{r}.xtreme_up") for r in rooms]
    said = {name for module in modules for name in documented(module)}
    constants = {name for name in keras_flix.xtreme_up.__all__ if name.isupper()}
    assert len(constants) == 7
    assert constants <= said


def test_the_glossary_is_short_and_has_the_words():
    page = (ROOT / "guides" / "concepts.md").read_text()
    words = page.partition("\n## Words\n")[2].partition("\n## ")[0]
    lines = words.strip().splitlines()
    assert len(lines) <= 10
    assert [line.split("**")[1] for line in lines] == [
        "feature",
        "value",
        "combination",
        "absent",
        "adapter weights",
        "rank",
        "alpha",
        "cell",
        "mixture",
        "base",
    ]


def test_every_guide_is_on_the_site():
    config = (PAGES / "mkdocs.yml").read_text()
    notebooks = {path.name for path in (ROOT / "guides").glob("*.ipynb")}
    assert notebooks == set(re.findall(r"\S+\.ipynb(?=$)", config, re.MULTILINE))


def test_every_command_is_in_the_reference():
    text = (PAGES / "command_line.md").read_text()
    (commands,) = (
        action.choices for action in parser()._actions if action.dest == "command"
    )
    assert len(commands) == 10
    for command in commands:
        assert f"`keras-flix {command}" in text
