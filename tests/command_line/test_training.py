"""`train`: what it writes, how it goes on, and what it refuses."""

import json

import keras
import keras_hub
import numpy as np
import pytest
from helpers.runs import LANGUAGES, PRESET, TASKS, examples, write_lines

import keras_flix
from keras_flix.command_line import training
from keras_flix.command_line.main import main
from keras_flix.command_line.parts import read_parts
from keras_flix.files.adapter_file import read_adapters

STEPS, SIZE = 5, 3
OPTIONS = (
    *("--targets", "query", "--rank", "task=3", "shared=2", "--sequence-length", "24"),
    *("--batch-size", str(SIZE), "--steps", str(STEPS), "--backup-steps", "2"),
    *("--learning-rate", "0.05", "--score-examples", "1", "--seed", "3"),
    *("--hold-out", "task=month,language=en", "--validation-split", "0.3"),
)
FILES = ["README.md", "adapters.flix.safetensors", "run.yaml", "scores.json"]


def command(tmp_path, *more, output="out"):
    data = tmp_path / "data.jsonl"
    if not data.exists():
        write_lines(data)
    place = ("--preset", PRESET, "--output", str(tmp_path / output))
    return ["train", str(data), *place, *OPTIONS, *more]


def tables(folder):
    return read_adapters(folder / "adapters.flix.safetensors").tables


def assert_same_tables(found, expected):
    assert found.keys() == expected.keys()
    for name, table in expected.items():
        np.testing.assert_array_equal(found[name], table, err_msg=name)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the data and what an uninterrupted training wrote in `out`."""
    folder = tmp_path_factory.mktemp("trained")
    assert main(command(folder)) == 0
    return folder


def by_hand(folder):
    """The same training, in the library's own words."""
    mixture = keras_flix.mixtures.Mixture.from_jsonl(folder / "data.jsonl")
    features = [
        keras_flix.Feature("task", TASKS, rank=3),
        keras_flix.Feature("language", LANGUAGES),
        keras_flix.Feature("shared", always=True, rank=2),
    ]
    train, _ = mixture.split({"task": "month", "language": "en"})
    keras.utils.set_random_seed(3)
    model = keras_hub.models.CausalLM.from_preset(PRESET)
    model.preprocessor.sequence_length = 24
    keras_flix.enable_flix(model, features, rank=4, targets=["query"], seed=3)
    return model, train


def test_the_folder_has_adapters_scores_card_and_settings(trained):
    folder = trained / "out"
    assert sorted(path.name for path in folder.iterdir()) == FILES
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["validation"]["by"]["language"].keys() == {"de", "en"}
    assert scores["validation"]["count"] == 3
    assert [cell["features"] for cell in scores["held_out"]["cells"]] == [
        {"task": "month", "language": "en"}
    ]
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: keras-flix\n")
    assert "# out\n" in card and "### held out\n" in card
    assert "from_preset('cldr_gemma')" in card and str(trained) not in card
    assert "load_adapters(model, 'adapters.flix.safetensors')" in card
    assert f"| `steps` | `{STEPS}` |" in card
    adapters = read_adapters(folder / "adapters.flix.safetensors")
    ranks = {feature.name: set(feature.ranks) for feature in adapters.schema}
    assert ranks == {"task": {3}, "language": {4}, "shared": {2}}


def test_the_weights_are_those_of_the_library(trained):
    model, train = by_hand(trained)
    train, _ = train.validation_split(0.3, seed=3)
    training.compile_model(model, STEPS, 0.05)
    for epoch, steps in enumerate((2, 2, 1)):
        batches = train.batches(SIZE, steps, seed=3)
        batches.ends = epoch
        model.fit(batches, shuffle=False, verbose=0)
    keras_flix.save_adapters(model, trained / "own.flix.safetensors")
    own = read_adapters(trained / "own.flix.safetensors").tables
    assert_same_tables(tables(trained / "out"), own)


def test_it_is_one_fit_to_the_last_step(tmp_path, capsys):
    assert main(command(tmp_path, "--score-examples", "0")) == 0
    out, err = capsys.readouterr()
    features = f"task={TASKS[0]} language={LANGUAGES[0]}"
    assert out.endswith(
        f"\nnext: keras-flix chat {tmp_path / 'out'} --features {features}\n"
    )
    lines = err.splitlines()
    epochs = [line for line in lines if line.startswith("Epoch ")]
    assert epochs == ["Epoch 1/3", "Epoch 2/3", "Epoch 3/3"]
    steps = [line.split(" ")[0] for line in lines if " - loss: " in line]
    assert steps == ["2/2", "2/2", "1/1"]


@pytest.mark.slow
def test_a_training_that_was_stopped_goes_on(trained, tmp_path, capsys, monkeypatch):
    begin, begun = training._Order.on_epoch_begin, []

    def stop(self, epoch, logs=None):
        begun.append(epoch)
        if len(begun) in (2, 4):
            raise KeyboardInterrupt
        begin(self, epoch, logs)

    monkeypatch.setattr(training._Order, "on_epoch_begin", stop)
    assert main(command(tmp_path)) == 130
    assert "the same command goes on" in capsys.readouterr().err
    folder = tmp_path / "out"
    assert [path.name for path in folder.iterdir()] == ["unfinished"]
    # Another training does not take its place.
    assert main(command(tmp_path, "--rank", "2", "--seed", "4")) == 2
    err = capsys.readouterr().err
    changed = "--rank 2 instead of {'task': 3, 'shared': 2}, --seed 4 instead of 3"
    assert f"goes on with what it began with. Received: {changed}, in" in err
    rows = (tmp_path / "data.jsonl").read_text()
    write_lines(tmp_path / "data.jsonl", examples(4))
    assert main(command(tmp_path)) == 2
    assert "Received: examples '" in capsys.readouterr().err
    (tmp_path / "data.jsonl").write_text(rows)
    assert begun == [0, 1]
    # Stopped once more, in the last epoch, which is shorter.
    assert main(command(tmp_path)) == 130
    assert main(command(tmp_path)) == 0
    assert begun == [0, 1, 1, 2, 2]
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert_same_tables(tables(folder), tables(trained / "out"))
    assert (folder / "scores.json").read_text() == (
        trained / "out" / "scores.json"
    ).read_text()


def test_what_a_training_wrote_is_exported_without_its_base_being_named(
    trained, tmp_path, capsys
):
    place = tmp_path / "values"
    words = ["export", str(trained / "out"), "--values", "--output", str(place)]
    assert main(words) == 0
    assert (place / "index.json").is_file()
    # Out of its folder, the file does not say where its base lies.
    alone = tmp_path / "alone.flix.safetensors"
    alone.write_bytes((trained / "out" / "adapters.flix.safetensors").read_bytes())
    words = ["merge", str(alone), "--features", "task=month", "language=en"]
    assert main([*words, "--output", str(tmp_path / "merged")]) == 2
    assert "Received: no --preset, and no folder" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def refuse(*_, **__):
    raise AssertionError("the base was loaded")


def test_what_is_there_stays_unless_told(trained, capsys, monkeypatch):
    before = {path: path.read_bytes() for path in (trained / "out").iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(training, "load_writer", refuse)
        assert main(command(trained)) == 2
    err = capsys.readouterr().err
    assert "must hold nothing that a training writes" in err and "--overwrite" in err
    assert {path: path.read_bytes() for path in (trained / "out").iterdir()} == before


@pytest.mark.slow
def test_overwrite_begins_anew_where_something_changed(trained, tmp_path, capsys):
    folder = tmp_path / "out"
    (folder / "unfinished").mkdir(parents=True)
    (folder / "unfinished" / "begun.json").write_text('{"seed": 4}')
    (folder / "notes.txt").write_text("mine")
    few = ("--steps", "1", "--score-examples", "0", "--overwrite", "--json")
    assert main(command(tmp_path, *few)) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["scores"] == {} and data["steps"] == 1
    assert data["examples"] == {"train": 6, "validation": 3, "held_out": 3}
    assert sorted(path.name for path in folder.iterdir()) == [
        *FILES[:2],
        "notes.txt",
        *FILES[2:],
    ]


@pytest.mark.parametrize(
    "more, message",
    [
        (["--prompt", "promt"], "'promt'"),
        (["--features", "task", "lang"], "'lang'"),
        (["--hold-out", "task=moth,language=en"], "must match a dataset"),
        (["--hold-out", "tusk=month"], "'tusk'"),
        (["--rank", "tusk=3"], "'tusk'"),
        (["--shared", "false", "--rank", "shared=3"], "'shared'"),
        (["--batch-size", "none"], "`batch_size` must be a positive whole number"),
        (["--output", "no/such"], "--output must be in an existing folder"),
        (["--template", "alpaca"], "`template` must be one of none, gemma, gemma4"),
    ],
)
def test_bad_input_fails_before_the_base_is_loaded(
    tmp_path, capsys, monkeypatch, more, message
):
    monkeypatch.setattr(training, "load_writer", refuse)
    assert main(command(tmp_path, *more)) == 2
    err = capsys.readouterr().err
    assert err.startswith("keras-flix: ") and message in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


def test_bad_lines_are_told_with_file_and_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training, "load_writer", refuse)
    rows = examples()
    del rows[4]["response"]
    place = write_lines(tmp_path / "data.jsonl", rows)
    assert main(command(tmp_path)) == 2
    assert f"{place}, line 5:" in capsys.readouterr().err
    write_lines(tmp_path / "data.jsonl", [{**r, "response": ["a"]} for r in examples()])
    assert main(command(tmp_path)) == 2
    assert "must be one text. Received: ['a']" in capsys.readouterr().err


def test_values_that_are_only_held_out_are_told(tmp_path):
    settings = {
        "data": write_lines(tmp_path / "data.jsonl"),
        **{"features": ["task", "language"], "prompt": "prompt"},
        **{"response": "response", "temperature": 2.0, "shared": True, "rank": 4},
        **{"hold_out": ["language=en"], "validation_split": 0.0},
        **{"template": "gemma", "seed": 0, "feature_settings": None},
    }
    parts, schema = read_parts(settings)
    assert parts.untrained() == ["language=en"]
    assert schema["language"].values == ("de", "en")
    assert parts.validation is None and parts.train.temperature == 2.0
    turns = parts.train.inputs()
    assert turns["prompts"][0] == (
        "<start_of_turn>user\n2024-03-05 0 =<end_of_turn>\n<start_of_turn>model\n"
    )
    assert turns["responses"][0] == "März<end_of_turn>"
