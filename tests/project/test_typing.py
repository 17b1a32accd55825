"""What type checkers say of a script of a user."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.places import ROOT, TESTS

SCRIPT = TESTS / "helpers" / "user_script.py"
WRONG = """
import keras_flix

schema = keras_flix.FeatureSchema({"task": ["qa"]})
keras_flix.FlixDense(8, features=schema, rank="four")
keras_flix.FlixDense(8, features=schema, dropout="often")
schema.resolve(alpha=[1.0])
keras_flix.no_such_name
"""
"""Four lines that must not pass."""
UNREAD = """
[mypy]
[mypy-jax.*,tensorflow.*,torch.*]
follow_imports = skip
"""
"""Backends, none of whose types a user of Keras meets: mypy takes 20 s to read them."""


def mypy(scripts, folder):
    """What it says of scripts: pairs of a file and an error."""
    command = ["-m", "mypy", "--strict", "--ignore-missing-imports"]
    config = folder / "mypy.ini"
    config.write_text(UNREAD)
    # What is inside the package is checked elsewhere.
    command += ["--follow-imports=silent", f"--config-file={config}"]
    command += ["--no-error-summary", f"--cache-dir={folder / 'cache'}"]
    command += map(str, scripts)
    run = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True
    )
    lines = [line for line in run.stdout.splitlines() if ": error:" in line]
    return [(line.partition(":")[0], line) for line in lines]


def pyright(scripts, folder):
    """As `mypy` does."""
    command = ["-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    run = subprocess.run(
        [sys.executable, *command, *map(str, scripts)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    start = run.stdout.find("{")
    assert start >= 0, run.stdout + run.stderr
    found = json.loads(run.stdout[start:])["generalDiagnostics"]
    return [
        (one["file"], one["message"]) for one in found if one["severity"] == "error"
    ]


@pytest.fixture(scope="module", params=[mypy, pyright])
def errors(request, tmp_path_factory):
    """Of both scripts: what is around them is read once, which takes nearly all."""
    pytest.importorskip(request.param.__name__, reason="extra `test`")
    folder = tmp_path_factory.mktemp("types")
    wrong = folder / "wrong.py"
    wrong.write_text(WRONG)
    found = request.param([SCRIPT, wrong], folder)
    return {
        script: [error for name, error in found if Path(name).name == script.name]
        for script in (SCRIPT, wrong)
    }


@pytest.mark.slow
def test_a_script_of_a_user(errors):
    assert errors[SCRIPT] == []


@pytest.mark.slow
def test_wrong_types_are_found(errors):
    (wrong,) = errors.keys() - {SCRIPT}
    assert len(errors[wrong]) >= 4
