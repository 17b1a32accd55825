"""Settings of a training: typed, in a YAML file, by default, and written again."""

import re

import keras
import pytest
from helpers.places import GUIDES

from keras_flix.command_line.configuration import (
    configuration,
    read_config,
    write_config,
)
from keras_flix.command_line.options import OPTIONS
from keras_flix.command_line.parser import parser
from keras_flix.models.recommended import RECOMMENDED

if keras.config.backend() != "torch":
    reason = "settings are read without a backend: tested once, with torch"
    pytest.skip(reason, allow_module_level=True)
pytest.importorskip("yaml", reason="extra `cli`")

GIVEN = ("a.jsonl", "--preset", "base", "--output", "out")


def settings(*arguments):
    return configuration(parser().parse_args(["train", *arguments]))


def config(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_defaults_are_the_recommended_settings():
    found = settings(*GIVEN)
    same = ("rank", "shared", "dropout", "targets", "learning_rate", "batch_size")
    for name in (*same, "epochs"):
        assert found[name] == getattr(RECOMMENDED, name), name
    assert found["features"] == ["task", "language"] and found["steps"] is None
    assert (found["data"], found["preset"], found["output"]) == (
        "a.jsonl",
        "base",
        "out",
    )


def test_a_file_is_read_as_it_would_be_typed(tmp_path):
    path = config(
        tmp_path,
        """
# Norway's code, and what other readers take for a text.
hold_out:
  - {task: qa, language: no}
  - task=parse,language=sw
learning_rate: 1e-3
rank: {task: 8, language: 2}
features: [task, language]
targets: all-linear
shared: no
dtype:
steps: 20
""",
    )
    typed = (
        *("--hold-out", "task=qa,language=no", "task=parse,language=sw"),
        *("--learning-rate", "1e-3", "--rank", "task=8,language=2", "--shared", "no"),
        *("--features", "task,language", "--targets", "all-linear", "--steps", "20"),
    )
    found = settings(*GIVEN, "--config", path)
    assert found == settings(*GIVEN, *typed)
    assert found["hold_out"] == ["task=qa,language=no", "task=parse,language=sw"]
    assert found["rank"] == {"task": 8, "language": 2}
    assert (found["learning_rate"], found["shared"], found["epochs"]) == (
        1e-3,
        False,
        None,
    )


def test_the_command_line_wins_over_the_file(tmp_path):
    path = config(tmp_path, "rank: 8\nseed: 3\nsteps: 5\ndata: other\npreset: b\n")
    found = settings(*GIVEN, "--config", path, "--rank", "2", "--epochs", "7")
    assert (found["rank"], found["seed"], found["data"]) == (2, 3, "a.jsonl")
    # Of two names of one setting, too.
    assert (found["epochs"], found["steps"], found["preset"]) == (7, None, "base")


NESTED = (
    *("--alpha", "8", "--scale", "sqrt", "--experts", "each", "--seed", "1"),
    *("--expert-rank", "task=2", "language=1", "--train", "head", ".*_0/query"),
    *("--trainable-tokens", "7", "<unused0>", "--rows", '{"head": ["batch", "tile"]}'),
    *("--layer-ranks", '{"query": 8, ".*_[01]/\\\\w: #": {"task": 2}}'),
    *("--feature-settings", '{"language": {"rank": {"no": 2, "*": 4}, "alpha": 0.5}}'),
    *("--learning-rates", '{"factors": {"language": {"7": 2}}, "b": 16}'),
)


def test_nested_values_are_yaml_in_a_file(tmp_path):
    path = config(
        tmp_path,
        r"""
alpha: 8
scale: sqrt
experts: each
seed: 1
expert_rank: {task: 2, language: 1}
train: [head, .*_0/query]
trainable_tokens:
  - 7
  - <unused0>
rows: {head: [batch, tile]}
layer_ranks:
  query: 8
  '.*_[01]/\w: #': {task: 2}
feature_settings:
  language:
    rank: {no: 2, "*": 4}
    alpha: 5e-1
learning_rates:
  factors: {language: {7: 2}}
  b: 16
""",
    )
    found = settings(*GIVEN, "--config", path)
    assert found == settings(*GIVEN, *NESTED)
    assert found["layer_ranks"] == {"query": 8, r".*_[01]/\w: #": {"task": 2}}
    assert found["trainable_tokens"] == [7, "<unused0>"]
    assert found["expert_rank"] == {"task": 2, "language": 1}
    assert found["train"] == ["head", ".*_0/query"]
    # One alone, quoted or not, is a list, too; quotes make a text of a number.
    one = config(tmp_path, "train: head\ntrainable_tokens: '7'\nexpert_rank: 3")
    found = settings(*GIVEN, "--config", one)
    assert (found["train"], found["trainable_tokens"]) == (["head"], ["7"])
    assert found["expert_rank"] == 3
    for typed in (
        "task=2,language=1",
        "[task=2, language=1]",
        "{task: 2, language: 1}",
    ):
        path = config(tmp_path, f"expert_rank: {typed}")
        found = settings(*GIVEN, "--config", path)
        assert found["expert_rank"] == {"task": 2, "language": 1}
    assert settings(*GIVEN, "--trainable-tokens", '"7"')["trainable_tokens"] == ["7"]


def test_what_is_written_is_read_again(tmp_path):
    texts = ("--hold-out", 'task="q: #a",language=日本', "--prompt", "- 'x': y\t#")
    texts += NESTED
    found = settings(*GIVEN, *texts, "--rank", "task=8", "--targets", ".*query", "v:")
    write_config(found, tmp_path / "run.yaml", "about")
    assert (tmp_path / "run.yaml").read_text(encoding="utf-8")[:8] == "# about\n"
    assert settings("--config", str(tmp_path / "run.yaml")) == found


@pytest.mark.parametrize(
    "text, message",
    [
        ("preset: p\nrnak: 8", "line 2: 'rnak'. The nearest is 'rank'."),
        ("zzz: 8", "line 1: 'zzz'. Those are data, preset, output, features,"),
        ("rank: 8\n\nrank: 4", "line 3: 'rank' again"),
        (
            "seed: 1\nrank: x",
            "`rank` must be a positive whole number, or one by feature",
        ),
        ("seed: 1\nrank: x", "Received: .*run.yaml, line 2: rank: 'x'. Correct it."),
        ("rank: {task: 0}", "line 1: rank: 'task=0'"),
        ("learning_rate: .inf", "`learning_rate` must be a positive number."),
        ("dropout: 1", "`dropout` must be at least 0 and below 1."),
        ("shared: maybe", "`shared` must be true or false."),
        ("template: gema", "`template` must be one of none, gemma, gemma4."),
        ("features: [a, a]", "`features` must be different names of columns"),
        ("targets: [all-linear, query]", "`targets` must be attention, all-linear, or"),
        (
            "seed: [1, 2]",
            "`seed` must be a whole number, 0 or more. Received: .* '1 2'",
        ),
        (
            "epochs: 1\nsteps: 2",
            "either `epochs` or `steps`. Received: .*line 1.*line 2",
        ),
        ("alpha: x", "`alpha` must be a number. Received: .*line 1: alpha: 'x'"),
        ("scale: cube", "`scale` must be one of rank, sqrt."),
        ("experts: all", "`experts` must be one of shared, each."),
        ("expert_rank: {task: 0}", "`expert_rank` must be a positive whole number,"),
        (
            "layer_ranks: 8",
            "`layer_ranks` must be a mapping from layers to ranks, such",
        ),
        ("layer_ranks: {[1]: 8}", "must be a mapping whose keys are texts. Received"),
        (
            "layer_ranks: {q: 8, q: 4}",
            "must be a mapping that has 'q' once. Received: .*1",
        ),
        ("expert_rank: {task: {qa: 1}}", "`expert_rank` must be a positive whole"),
        ("rows: batch", "`rows` must be a mapping from layers to orders of rows"),
        ("train: [{a: b}]", "`train` must be names of layers or regexes."),
        ("trainable_tokens: [1.5]", "`trainable_tokens` must be ids or names of"),
        ("feature_settings: 1", "`feature_settings` must be a mapping from features"),
        (
            "learning_rates: {c: 1}",
            "from some of factors, a, b, weight_decay. Received",
        ),
        ("rank: [", "must be YAML. Received: .*run.yaml, line 1: "),
        ("- rank", "must be lines 'name: value'. Received: .*line 1: a sequence"),
        ("rank: [[[1]]]", "line 1: a sequence inside of those"),
        ("rank: &a [{b: *a}]", "line 1: a sequence inside of those"),
        ("layer_ranks: &a {b: *a}", "must be of few levels, none within itself. Rec"),
        pytest.param("rank: " + "[" * 5000, "must have few levels. Rec", id="deep"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        settings(*GIVEN, "--config", config(tmp_path, text))


def test_what_is_missing_is_told(tmp_path):
    with pytest.raises(
        ValueError, match="must be told its data. Received: neither DATA"
    ):
        settings("--preset", "base", "--output", "out")
    with pytest.raises(ValueError, match="its preset. Received: neither --preset nor"):
        settings("a.jsonl", "--output", "out")
    with pytest.raises(ValueError, match="must be an existing file"):
        settings(*GIVEN, "--config", str(tmp_path / "none.yaml"))
    with pytest.raises(ValueError, match="`batch_size` .* Received: --batch-size '0'"):
        settings(*GIVEN, "--batch-size", "0")
    with pytest.raises(ValueError, match="and JSON where it begins with { or \\[. Rec"):
        settings(*GIVEN, "--layer-ranks", "{query: 8}")
    with pytest.raises(ValueError, match="and JSON where it begins with { or \\[. Rec"):
        settings(*GIVEN, "--layer-ranks", "[" * 100_000)
    with pytest.raises(ValueError, match="a mapping that has 'q' once. Received: --la"):
        settings(*GIVEN, "--layer-ranks", '{"q": 8, "q": 4}')
    assert read_config(config(tmp_path, "# nothing\n")) == {}


def test_the_page_has_every_option_and_its_default():
    page = (GUIDES / "reference" / "command_line.md").read_text()
    rows = dict(re.findall(r"^\| `--([\w-]+)` \| (.*?) \|", page, re.MULTILINE))
    shown = {name: option for name, option in OPTIONS.items() if name != "data"}
    assert rows.keys() == {option.flag[2:] for option in shown.values()}
    defaults = {
        **{n: o.default for n, o in shown.items()},
        "epochs": RECOMMENDED.epochs,
    }
    for name, value in defaults.items():
        row = rows[OPTIONS[name].flag[2:]]
        if value not in (None, []):
            texts = value if isinstance(value, list) else [str(value).lower()]
            assert row == f"`{' '.join(texts)}`", name
