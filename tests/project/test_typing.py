"""What type checkers say of a script of a user."""

import json
import subprocess
import sys

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


def mypy(script, folder):
    command = ["-m", "mypy", "--strict", "--ignore-missing-imports"]
    # What is inside the package is checked elsewhere.
    command += ["--follow-imports=silent", "--config-file=", "--no-error-summary"]
    command += [f"--cache-dir={folder}", str(script)]
    run = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True
    )
    return [line for line in run.stdout.splitlines() if ": error:" in line]


def pyright(script, folder):
    command = ["-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    run = subprocess.run(
        [sys.executable, *command, str(script)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    start = run.stdout.find("{")
    assert start >= 0, run.stdout + run.stderr
    found = json.loads(run.stdout[start:])["generalDiagnostics"]
    return [one["message"] for one in found if one["severity"] == "error"]


@pytest.fixture(params=[mypy, pyright])
def check(request):
    pytest.importorskip(request.param.__name__, reason="extra `test`")
    return request.param


@pytest.mark.slow
def test_a_script_of_a_user(check, tmp_path):
    assert check(SCRIPT, tmp_path) == []


@pytest.mark.slow
def test_wrong_types_are_found(check, tmp_path):
    script = tmp_path / "wrong.py"
    script.write_text(WRONG)
    assert len(check(script, tmp_path)) >= 4
