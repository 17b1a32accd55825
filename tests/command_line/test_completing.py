"""Completion: what shells run, and what they are told."""

import io
import json
import os
import subprocess
import sys

import keras
import pytest
from helpers.places import GUIDES, ROOT

from keras_flix.command_line import completing
from keras_flix.command_line.main import main
from keras_flix.command_line.parser import parser

if keras.config.backend() != "torch":
    reason = "completion knows no backend: tested once, with torch"
    pytest.skip(reason, allow_module_level=True)
pytest.importorskip("argcomplete", reason="extra `cli`")

ADAPTERS = str(GUIDES / "cldr_adapters.flix.safetensors")


class Ended(Exception):
    """Instead of the end of the process."""


def completed(monkeypatch, line):
    """What a shell is told for a line that ends at the cursor."""
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line.encode())))
    monkeypatch.setenv("_ARGCOMPLETE", "1")
    monkeypatch.setenv("_ARGCOMPLETE_IFS", "\n")
    monkeypatch.setenv("_ARGCOMPLETE_COMP_WORDBREAKS", " \t\n")
    out = io.BytesIO()

    def end(code):
        raise Ended

    with pytest.raises(Ended):
        completing.complete(
            parser(),
            output_stream=io.TextIOWrapper(out, write_through=True),
            exit_method=end,
        )
    return [text.strip() for text in out.getvalue().decode().split("\n")]


def test_commands_options_and_values_are_completed(monkeypatch):
    assert completed(monkeypatch, "keras-flix tra") == ["train"]
    assert completed(monkeypatch, "keras-flix train --hold") == ["--hold-out"]
    assert completed(monkeypatch, "keras-flix completion f") == ["fish"]
    line = f"keras-flix merge {ADAPTERS} --features language=s"
    assert completed(monkeypatch, line) == ["language=sv"]
    assert completed(monkeypatch, "keras-flix merge none --features x=") == [""]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_what_it_runs(capsys, shell):
    assert main(["completion", shell, "--json"]) == 0
    script = json.loads(capsys.readouterr().out)["script"]
    assert "keras-flix" in script and "_ARGCOMPLETE" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_a_shell_is_answered_without_keras(tmp_path):
    code = (
        "import sys; sys.modules['keras'] = None\n"
        "from keras_flix.command_line.main import main; main([])"
    )
    line = f"keras-flix chat {ADAPTERS} --features task=cu"
    told = tmp_path / "told"
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
    assert told.read_text().strip() == "task=currency"
