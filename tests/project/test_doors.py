"""What people meet first names what is there: recipes, forms, workflows, versions."""

import ast
import contextlib
import importlib
import os
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest
import yaml
from helpers.places import ROOT
from tools import built_wheel, changelog, known_failures, versions

import keras_flix

GITHUB = ROOT / ".github"
PAGES = sorted(GITHUB.glob("*.md"))
FORMS = sorted(GITHUB.rglob("*.yml")) + [ROOT / ".pre-commit-config.yaml"]
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
TOP = "|".join(["keras_flix", "tests", "guides", "benchmarks", r"\.github"])
PATH = re.compile(rf"(?<![\w/.])(?:{TOP})/[\w./-]*\w|(?<=`)\w+\.toml(?=`)")
CONTRIBUTING = (GITHUB / "CONTRIBUTING.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TOOLS = ROOT / "tests" / "tools"
KNOWN = [TOOLS / f"{name}_versions.toml" for name in ("oldest", "next")]


@pytest.mark.parametrize("page", [*PAGES, *WORKFLOWS], ids=lambda path: path.name)
def test_paths_that_are_named_are_there(page):
    named = set(PATH.findall(page.read_text()))
    # What users will name themselves, as `tests/exports/test_<format>.py`.
    named -= {"tests/exports/test_"}
    assert not [path for path in sorted(named) if not (ROOT / path).exists()]


def test_recipes_name_their_files():
    for title, at_least in (("family", 8), ("export", 9), ("metric", 4)):
        (recipe,) = re.findall(rf"^## Recipe: a new .*{title}\n(.+?)^## ", *_recipes())
        assert len(set(PATH.findall(recipe))) >= at_least, title


def _recipes():
    return CONTRIBUTING, re.MULTILINE | re.DOTALL


def test_names_in_recipes_are_in_the_files_beside_them():
    """Defined there: a file that imports a name is not where it is changed."""
    constants = set(re.findall(r"`([A-Z][A-Z_]+)`", CONTRIBUTING))
    functions = set(re.findall(r"`(test_\w+|build_\w+|_check)[`(]", CONTRIBUTING))
    wanted = {name: rf"^{name}\b[^=\n]*=" for name in constants}
    wanted |= {name: rf"^def {name}\(" for name in functions}
    paths = [ROOT / path for path in set(PATH.findall(CONTRIBUTING))]
    texts = [path.read_text() for path in paths if path.suffix == ".py"]
    texts += [path.read_text() for path in (ROOT / "tests/families").glob("*.py")]
    whole = "\n".join(texts)
    missing = [n for n, form in wanted.items() if not re.search(form, whole, re.M)]
    assert len(wanted) > 8 and missing == []


def test_the_floors_are_those_that_are_tested():
    source = (ROOT / "tests" / "project" / "test_architecture.py").read_text()
    (floors,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "FLOORS"
    )
    (block,) = re.findall(r"^```\n(10 .+?)^```", *_recipes())
    lines = [re.sub(r"^\d+|\(.*", "", line) for line in block.splitlines()]
    told = [set(re.findall(r"\w+", line.replace(".py", ""))) for line in lines]
    assert told[::-1] == [set(rooms) for rooms in floors[:-1]] + [
        {*floors[-1], "__init__"}
    ]


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.name)
def test_forms_are_yaml(form):
    assert isinstance(yaml.safe_load(form.read_text()), dict)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_have_steps_that_do_one_thing(workflow):
    read = yaml.safe_load(workflow.read_text())
    # YAML takes the key `on` for a boolean.
    assert {"name", True, "permissions", "jobs"} <= read.keys()
    for job in read["jobs"].values():
        assert job["runs-on"] and job["timeout-minutes"]
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
    for needed in (
        name for job in read["jobs"].values() for name in [job.get("needs")]
    ):
        assert needed is None or needed in read["jobs"]


def test_an_issue_says_backend_keras_and_keras_hub():
    form = yaml.safe_load((GITHUB / "ISSUE_TEMPLATE" / "bug.yml").read_text())
    required = {
        part["id"]
        for part in form["body"]
        if part.get("validations", {}).get("required")
    }
    assert {"backend", "keras", "keras_hub"} <= required


def test_the_changelog_has_this_version_first():
    entries = changelog.entries(changelog.CHANGELOG.read_text())
    assert next(iter(entries)) == keras_flix.__version__
    assert all(entries.values())


def test_no_extra_names_what_kerashub_brings():
    needed = {r for extra in PROJECT["optional-dependencies"].values() for r in extra}
    names = {re.match(r"[\w-]+", requirement).group() for requirement in needed}
    assert not names & {"kagglehub", "kagglesdk", "keras", "keras-hub"}


def test_every_extra_is_resolved_or_has_a_reason():
    extras = PROJECT["optional-dependencies"]
    assert versions.OTHER_ENVIRONMENT.keys() <= extras.keys()
    wanted = versions.installations()
    assert wanted[""] == PROJECT["dependencies"]
    assert {"", *extras} - versions.OTHER_ENVIRONMENT.keys() <= wanted.keys()
    # And what the README tells people to install.
    assert any("," in name for name in wanted)
    assert wanted["hub"] == [*PROJECT["dependencies"], *extras["hub"]]


def test_older_versions_are_told():
    expected = {"keras": "3.15.1", "keras-hub": "0.32.0"}
    assert (
        versions.older({"keras": "3.15.1", "keras-hub": "0.33.0.dev1"}, expected) == []
    )
    assert versions.older({"keras": "3.9.0"}, expected) == [
        "keras 3.9.0, not 3.15.1",
        "keras-hub is missing, not 0.32.0",
    ]


@pytest.mark.parametrize("keras_version, ran", [("3.14.0", 1), ("3.15.1", 0)])
def test_the_oldest_versions_are_not_tested_twice(monkeypatch, keras_version, ran):
    monkeypatch.syspath_prepend(TOOLS)
    oldest_versions = importlib.import_module("oldest_versions")
    here = {"keras": keras_version, "keras-hub": "0.32.0"}
    bounds = {"keras": "3.15.1", "keras-hub": "0.32.0"}
    runs = []

    @contextlib.contextmanager
    def environment(pins):
        runs.append(pins)
        yield "python"

    monkeypatch.setattr(oldest_versions, "lower_bounds", lambda: bounds)
    monkeypatch.setattr(oldest_versions.importlib.metadata, "version", here.get)
    tools = oldest_versions.core_tests
    monkeypatch.setattr(tools, "environment", environment)
    monkeypatch.setattr(tools, "versions", lambda *_: "")
    monkeypatch.setattr(tools, "run", lambda *_: 7)
    for arguments, expected in ((["--unless-here"], 7 * ran), ([], 7)):
        monkeypatch.setattr("sys.argv", ["oldest_versions.py", *arguments])
        assert oldest_versions.main() == expected
    assert runs == [["keras==3.15.1", "keras-hub==0.32.0"]] * (1 + ran)


def test_what_is_under_test_is_told():
    line = versions.under_test()
    for name in ("commit ", "Python 3.", "keras 3.", "keras-hub 0.", "numpy "):
        assert name in line


@pytest.mark.parametrize("offline", [True, False])
def test_no_answer_is_no_success(monkeypatch, capsys, offline):
    def silent(*_):
        raise RuntimeError("no route to it")

    monkeypatch.setattr(versions, "pip", silent)
    monkeypatch.setattr("sys.argv", ["versions.py", *["--offline"] * offline])
    assert versions.main() == (0 if offline else 1)
    printed = capsys.readouterr().out
    assert ("not checked" if offline else "Not checked, the registry") in printed


def test_known_failures_have_a_reason_and_a_link(tmp_path):
    for known in [entry for path in KNOWN for entry in known_failures.read(path)]:
        for test in known.tests:
            path, _, name = test.partition("::")
            name = name.partition("[")[0]
            assert f"def {name}(" in (ROOT / path).read_text(), test
    path = tmp_path / "known.toml"
    path.write_text('[[failures]]\ntests = ["a"]\nbackends = ["jax"]\nreason = "x"\n')
    with pytest.raises(ValueError, match="must have backends, link, reason, tests"):
        known_failures.read(path)


def test_only_listed_failures_are_let_off(tmp_path):
    tests = "def test_known(): assert 0\n\ndef test_mended(): pass\n\n"
    tests += "def test_new(): assert 0\n\ndef test_elsewhere(): assert 0\n"
    (tmp_path / "test_it.py").write_text(tests)
    entry = '[[failures]]\nreason = "R."\nlink = "https://it"\nbackends = ["{}"]\n'
    listed = [f"test_it.py::test_{name}" for name in ("known", "mended", "gone")]
    known = entry.format("jax") + f"tests = {listed}\n"
    known += entry.format("torch") + 'tests = ["test_it.py::test_elsewhere"]\n'
    (tmp_path / "known.toml").write_text(known)
    (tmp_path / "pytest.ini").touch()
    plugin = ["-p", "known_failures", "--known-failures", "known.toml", "-rx"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin],
        cwd=tmp_path,
        env={**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": str(TOOLS)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "2 failed, 1 xfailed, 1 xpassed" in result.stdout
    assert "test_known - R. https://it" in result.stdout
    assert "test_it.py::test_mended passes\n" in result.stdout
    assert "test_it.py::test_gone is not there\n" in result.stdout


@pytest.mark.parametrize("change", ["missing", "more"])
def test_a_wheel_of_other_files_is_told(tmp_path, change):
    names = {n for n in built_wheel.sources() if n.startswith("keras_flix/")}
    name = "keras_flix/py.typed" if change == "missing" else "keras_flix/old.py"
    wheel = tmp_path / "keras_flix-0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for held in names ^ {name}:
            archive.writestr(held, "")
    told = "is not in the wheel" if change == "missing" else "is in the wheel"
    assert built_wheel.check_files(wheel) == [f"{name} {told}"]
