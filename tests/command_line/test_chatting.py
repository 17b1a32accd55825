"""`chat`: lines from a pipe, features that switch, templates."""

import io
import json
import sys

import keras
import keras_hub
import pytest
from helpers.runs import PRESET, write_adapters

from keras_flix.command_line import answering, bases, chatting
from keras_flix.command_line.main import main

if keras.config.backend() != "torch":
    reason = "the command line adds no computation: tested once, with torch"
    pytest.skip(reason, allow_module_level=True)

# Answers of all lengths are alike.
LENGTH = 24
START = (
    *("--preset", PRESET, "--features", "task=month,language=en"),
    *("--sequence-length", str(LENGTH), "--json"),
)
PROMPT = "2024-03-05 2 = "


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    model = keras_hub.models.CausalLM.from_preset(PRESET)
    file = write_adapters(tmp_path_factory.mktemp("adapted"), model)
    model.compile(sampler="greedy")
    return model, file


def said(model, prompt=PROMPT, **features):
    entries = {name: [value] for name, value in features.items()}
    options = {"strip_prompt": True, "max_length": LENGTH}
    return model.generate({"prompts": [prompt], **entries}, **options)[0]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def chat(capsys, monkeypatch, lines, *arguments):
    stdin = io.StringIO("\n".join(lines)) if isinstance(lines, list) else lines
    monkeypatch.setattr(sys, "stdin", stdin)
    code = main(["chat", *arguments])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()


@pytest.mark.slow
def test_features_switch_within_a_session(adapted, capsys, monkeypatch):
    model, file = adapted
    lines = [
        PROMPT,
        "",
        "/features language=de",
        PROMPT,
        "/features task=,language=en:0.5,de:0.5",
        PROMPT + "\r",
        "/features",
        f"//{PROMPT}",
        "/quit",
        PROMPT,
    ]
    code, out, err = chat(capsys, monkeypatch, lines, file, *START)
    answers = [json.loads(line) for line in out]
    blend = {"task": None, "language": {"en": 0.5, "de": 0.5}}
    expected = [
        (PROMPT, {"task": "month", "language": "en"}),
        (PROMPT, {"task": "month", "language": "de"}),
        (PROMPT, blend),
        (f"/{PROMPT}", blend),
    ]
    assert [(one["prompt"], one["features"]) for one in answers] == expected
    for one, (prompt, features) in zip(answers, expected):
        assert one["answer"] == said(model, prompt, **features)
    assert len({one["answer"] for one in answers}) > 1
    assert code == 0
    assert err.count("task=None language={'en': 0.5, 'de': 0.5}") == 2


def test_a_line_that_cannot_be_answered_does_not_end_the_chat(
    adapted, capsys, monkeypatch
):
    model, file = adapted
    lines = ["/features language=De", "/fetures", "/features 'task", "/help", PROMPT]
    code, out, err = chat(capsys, monkeypatch, lines, file, *START[:-1])
    # The features are as they were, and who reads the answers is told.
    assert out == [said(model, task="month", language="en")] and code == 2
    text = "\n".join(err)
    assert "The nearest known value is 'de'" in text
    assert "The nearest is '/features'." in text
    assert "No closing quotation" in text and chatting.HELP in text


@pytest.mark.parametrize(
    "features, message",
    [
        (["task=month"], "Received: no entry 'language'"),
        (["task=month,lang=en"], "'lang'"),
        ([], "Received: no entry 'task'"),
    ],
)
def test_features_are_checked_before_the_base_is_loaded(
    adapted, capsys, monkeypatch, features, message
):
    monkeypatch.setattr(bases, "load_writer", lambda *_: 1 / 0)
    arguments = (adapted[1], "--preset", PRESET, "--features", *features)
    code, out, err = chat(capsys, monkeypatch, [PROMPT], *arguments)
    assert (code, out, len(err)) == (2, [], 1) and message in err[0]


def test_a_terminal_is_asked_for_lines(adapted, capsys, monkeypatch):
    model, file = adapted
    typed = iter([PROMPT, "/features language=ed"])

    def ask(mark):
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", ask)
    code, out, err = chat(capsys, monkeypatch, Terminal(), file, *START[:-1])
    assert out == [said(model, task="month", language="en")]
    assert (code, err[1]) == (0, chatting.HELP)


class Tokenizer:
    end_token_id = 1

    def token_to_id(self, token):
        return {"<end_of_turn>": 107}[token]


class Gemma:
    """What a tuned Gemma is asked, and how it may answer."""

    def __init__(self):
        self.preprocessor = self
        self.tokenizer = Tokenizer()

    def generate(self, inputs, **options):
        self.asked = inputs, options
        return ["Nairobi<end_of_turn>"]


def test_a_turn_of_gemma(adapted, capsys):
    parsed = chatting.argparse.Namespace(
        file=adapted[1],
        preset="gemma",
        template="gemma",
        sequence_length=None,
        any_base=False,
    )
    model = Gemma()
    session = chatting.Session(
        model, answering.Adapted.of(parsed), {"task": "month", "language": "en"}, False
    )
    assert session.take("Which city?")
    assert capsys.readouterr().out == "Nairobi\n"
    inputs, options = model.asked
    turn = "<start_of_turn>user\nWhich city?<end_of_turn>\n<start_of_turn>model\n"
    assert inputs == {"prompts": [turn], "task": ["month"], "language": ["en"]}
    assert options["stop_token_ids"] == [1, 107]
