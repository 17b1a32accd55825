"""`evaluate`: scores of adapters by feature value, as the library gives them."""

import importlib
import json

import keras
import keras_hub
import pytest
from helpers.runs import LANGUAGES, PRESET, examples, write_adapters, write_lines

import keras_flix
from keras_flix.command_line import bases, scoring
from keras_flix.command_line.configuration import write_config
from keras_flix.command_line.data_files import wrapped
from keras_flix.command_line.main import main
from keras_flix.command_line.templates import TEMPLATES
from keras_flix.evaluation import Scores, evaluate
from keras_flix.mixtures import Mixture

if keras.config.backend() != "torch":
    reason = "the command line adds no computation: tested once, with torch"
    pytest.skip(reason, allow_module_level=True)

ENOUGH = ("--sequence-length", "24")


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A model, its adapters' file, and a file of examples that it answers rightly."""
    folder = tmp_path_factory.mktemp("adapted")
    model = keras_hub.models.CausalLM.from_preset(PRESET)
    file = write_adapters(folder, model)
    model.compile(sampler="greedy")
    rows = examples(2)
    mixture = Mixture.from_records(rows)
    answers = evaluate(model, mixture, max_length=24).predictions
    for row, answer in zip(rows, answers, strict=True):
        if row["language"] == "de":
            row["response"] = answer
    return model, file, write_lines(folder / "test.jsonl", rows), folder


def run(capsys, *arguments):
    code = main(["evaluate", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.slow
def test_scores_are_those_of_the_library(adapted, capsys):
    model, file, data, _ = adapted
    common = (file, data, "--preset", PRESET, *ENOUGH, "--batch-size", "4")
    code, out, _ = run(capsys, *common, "--json", "--examples")
    expected = evaluate(model, Mixture.from_jsonl(data), max_length=24)
    assert (code, json.loads(out)) == (0, expected.to_dict(examples=True))
    assert json.loads(out)["by"]["language"]["de"] == {"exact_match": 100.0}
    code, out, _ = run(capsys, *common, "--metrics", "exact_match", "token_f1")
    lines = [line.split() for line in out.splitlines()]
    assert ["language", "examples", "exact_match", "token_f1"] in lines
    assert ["de", "4", "100.0", "100.0"] in lines and ["by", "task"] in lines


@pytest.mark.slow
def test_a_folder_of_a_training_says_how_it_was_trained(adapted, capsys, monkeypatch):
    _, _, data, folder = adapted
    settings = {"preset": PRESET, "prompt": "prompt", "sequence_length": 24}
    write_config({**settings, "data": "gone"}, folder / "run.yaml", "about")
    code, out, err = run(capsys, str(folder), data, "--limit", "1", "--json")
    assert (code, json.loads(out)["count"]) == (0, 4)
    assert "answering 4 prompts" in err
    # What is typed wins.
    monkeypatch.setattr(bases, "load_writer", lambda preset, dtype: 1 / 0)
    code, _, err = run(capsys, str(folder), data, "--preset", "another")
    assert code == 2 and "loading another" in err


@pytest.mark.parametrize(
    "more, message",
    [
        (["--metrics", "exact_mach"], "The nearest is 'exact_match'."),
        (["--features", "language"], "no entry 'task'"),
        (["--prompt", "promt"], "'promt'"),
        (["--template", "gemma"], "a tokenizer with the token '<end_of_turn>'"),
        (["--template", "gemma4"], "a tokenizer with the token '<turn|>'"),
    ],
)
def test_what_does_not_fit_is_refused(adapted, capsys, more, message):
    _, file, data, _ = adapted
    code, _, err = run(capsys, file, data, "--preset", PRESET, *more)
    assert code == 2 and message in err


def test_unknown_values_and_bases_are_refused_at_once(
    adapted, tmp_path, capsys, monkeypatch
):
    _, file, data, _ = adapted
    monkeypatch.setattr(bases, "load_writer", lambda *_: 1 / 0)
    rows = [{**row, "language": "sw"} for row in examples(1)]
    unknown = write_lines(tmp_path / "unknown.jsonl", rows)
    code, _, err = run(capsys, file, unknown, "--preset", PRESET)
    assert code == 2 and "must be one of" in err and "'sw'" in err
    assert all(language in err for language in LANGUAGES)
    code, _, err = run(capsys, file, data)
    assert code == 2 and "Received: no --preset, and no folder" in err
    code, _, err = run(capsys, file, str(tmp_path), "--preset", PRESET)
    assert code == 2 and "a folder of neither" in err


def test_the_end_of_a_turn_is_not_scored(monkeypatch):
    template, asked = TEMPLATES["gemma"], []

    def answer(model, mixture, metrics, *_):
        asked.append(mixture.inputs())
        said = ["März<end_of_turn>", "May", "June<end_of_turn>"]
        texts = asked[0]["responses"]
        return Scores({"task": ["month"] * 3}, said, texts, metrics)

    module = importlib.import_module("keras_flix.evaluation.evaluate")
    monkeypatch.setattr(module, "evaluate", answer)
    responses = ["März", "May", ["Juni", "June"]]
    rows = [{"task": "month", "prompt": " ? ", "response": x} for x in responses]
    mixture = wrapped(Mixture.from_records(rows, features=["task"]), template)
    found = scoring.scored(
        None,
        mixture,
        template,
        metrics=scoring.metrics_of(scoring.METRICS),
        batch_size=4,
    )
    turn = "<start_of_turn>user\n?<end_of_turn>\n<start_of_turn>model\n"
    assert asked[0]["prompts"] == [turn] * 3
    assert found.references == ("März", "May", ["Juni", "June"])
    assert found.predictions == ("März", "May", "June")


@pytest.mark.slow
def test_examples_without_a_value_are_scored(adapted, tmp_path, capsys):
    _, file, _, _ = adapted
    rows = [{**row, "language": None} for row in examples(1)[:1]]
    data = write_lines(tmp_path / "absent.jsonl", rows)
    common = (file, data, "--preset", PRESET, *ENOUGH, "--json")
    code, out, _ = run(capsys, *common)
    assert code == 0 and json.loads(out)["by"]["language"].keys() == {""}
    schema = keras_flix.files.read_adapters(file).schema
    assert schema["language"].values == LANGUAGES
