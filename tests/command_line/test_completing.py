"""Completion: what shells run, and what they are told."""

import json
import os
import subprocess
import sys

import keras
import pytest
from helpers.places import GUIDES, ROOT

from keras_flix.command_line.main import main

if keras.config.backend() != "torch":
    reason = "completion knows no backend: tested once, with torch"
    pytest.skip(reason, allow_module_level=True)
pytest.importorskip("argcomplete", reason="extra `cli`")

ADAPTERS = str(GUIDES / "cldr_adapters.flix.safetensors")


def completed(line, folder):
    """What a shell is told for a line that ends at the cursor, without Keras.

    By a process of its own: argcomplete takes the file descriptor 9, whose it may be.
    """
    code = (
        "import sys; sys.modules['keras'] = None\n"
        "from keras_flix.command_line.main import main; main([])"
    )
    told = folder / "told"
    variables = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(told),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **variables},
        check=True,
    )
    return [text.strip() for text in told.read_text().split("\n")]


def test_commands_options_and_values_are_completed(tmp_path):
    assert completed("keras-flix tra", tmp_path) == ["train"]
    assert completed("keras-flix train --hold", tmp_path) == ["--hold-out"]
    assert completed("keras-flix completion f", tmp_path) == ["fish"]
    line = f"keras-flix chat {ADAPTERS} --features task=cu"
    assert completed(line, tmp_path) == ["task=currency"]
    line = f"keras-flix merge {ADAPTERS} --features language=s"
    assert completed(line, tmp_path) == ["language=sv"]
    assert completed("keras-flix merge none --features x=", tmp_path) == [""]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_what_it_runs(capsys, shell):
    assert main(["completion", shell, "--json"]) == 0
    script = json.loads(capsys.readouterr().out)["script"]
    assert "keras-flix" in script and "_ARGCOMPLETE" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
