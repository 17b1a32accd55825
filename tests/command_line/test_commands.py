"""The command `keras-flix`: answers, exit codes and one-line errors."""

import io
import json
import re
import shlex
import subprocess
import sys
import time

import keras
import keras_hub
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from helpers.gemma import FEATURES, make_backbone, randomize, to_numpy
from helpers.models import make_mlp
from helpers.runs import PRESET, write_lines

import keras_flix
from keras_flix.command_line import output
from keras_flix.command_line.combinations import parse_features
from keras_flix.command_line.main import main
from keras_flix.files.adapter_file import read_adapters
from keras_flix.files.hub_handles import parse_handle
from keras_flix.files.model_card import adapter_card

if keras.config.backend() != "torch":
    reason = "the command line adds no computation: tested once, with torch"
    pytest.skip(reason, allow_module_level=True)

WITH_RANKS = [
    keras_flix.Feature("task", ["qa", "[red]parse"], rank={"qa": 1, "*": 2}),
    keras_flix.Feature("domain", ["web", "news"], multiple=True, alpha=4),
    keras_flix.Feature("shared", always=True),
]


def saved(folder, name="one", features=FEATURES, seed=0, base=0, **options):
    options = {"targets": "all-linear", "rank": 2, **options}
    model = keras_flix.enable_flix(make_mlp(base), features, **options)
    path = folder / f"{name}.flix.safetensors"
    keras_flix.save_adapters(randomize(model, seed=seed), path)
    return str(path)


def run(capsys, *arguments):
    code = main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def answer(capsys, *arguments, code=0):
    found, out, err = run(capsys, *arguments, "--json")
    assert (found, err) == (code, ""), err
    return json.loads(out)


def test_inspect_as_json(capsys, tmp_path):
    path = saved(tmp_path, features=WITH_RANKS)
    data = answer(capsys, "inspect", path)
    assert data["file"] == path
    assert data["base"] == keras_flix.base_fingerprint(make_mlp()).digest
    assert data["alpha"] is None
    assert [f["name"] for f in data["features"]] == ["task", "domain", "shared"]
    assert data["layers"] == {"hidden": [8, 6], "head": [6, 4]}
    assert data["parameters"] == {"task": 96, "domain": 96, "shared": 48}
    assert data["bytes"] == 4 * (96 + 96 + 48)
    model = keras_flix.load_adapters(make_mlp(), path)
    layers = [model.get_layer(name) for name in ("hidden", "head")]
    combination = {"task": None, "domain": ["news"]}
    keras_flix.merge_features(model, combination)
    for layer in layers:
        layer._tables.variables["shared"][1].assign(np.zeros((1, 2, layer.units)))
    deltas = [to_numpy(layer.kernel_delta(combination)) for layer in layers]
    norm = np.sqrt(sum((delta**2).sum() for delta in deltas))
    ((_, _), (value, found)) = data["norms"]["domain"]
    assert value == "news"
    np.testing.assert_allclose(found, norm, rtol=1e-5)


def test_inspect_as_text(capsys, tmp_path):
    path = saved(tmp_path, features=WITH_RANKS, dropout=0.5)
    code, out, err = run(capsys, "inspect", path)
    digest = keras_flix.base_fingerprint(make_mlp()).digest
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[:6] == [
        f"{path}: 0.0 MB of adapter weights",
        f"base: {digest} (4 variables)",
        "alpha: None",
        "layers: 2",
        "  hidden (8, 6)",
        "  head (6, 4)",
    ]
    assert "task: one per example, dropout 0.5, 96 parameters" in lines
    title = "domain: several per example, dropout 0.5, scale 4 / rank, 96 parameters"
    assert title in lines
    assert "shared: always active, dropout 0.5, 48 parameters" in lines
    start = lines.index("task: one per example, dropout 0.5, 96 parameters")
    assert lines[start + 1].split() == ["value", "rank", "norm"]
    assert lines[start + 3].split()[:2] == ["[red]parse", "2"]


def test_a_folder_of_a_training_is_its_adapter_file(capsys, tmp_path):
    folder = tmp_path / "qa"
    folder.mkdir()
    path = saved(folder, "adapters")
    assert answer(capsys, "inspect", str(folder))["file"] == path
    assert not answer(capsys, "diff", str(folder), path)["different"]


def test_many_layers_are_cut(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("keras_flix.command_line.file_commands.SHOWN", 1)
    path = saved(tmp_path)
    _, out, _ = run(capsys, "inspect", path)
    assert "  ... (--all-layers lists 1 more)" in out and "head (6, 4)" not in out
    _, out, _ = run(capsys, "inspect", path, "--all-layers")
    assert "head (6, 4)" in out and "..." not in out


def test_the_same_file_does_not_differ(capsys, tmp_path):
    path = saved(tmp_path)
    assert run(capsys, "diff", path, path) == (0, "", "")
    data = answer(capsys, "diff", path, saved(tmp_path, "two"))
    assert data == {
        "different": False,
        "notes": [],
        "values": {"task": [], "language": []},
    }


def test_what_trained_besides_and_other_settings_are_told(capsys, tmp_path):
    def saved_with(name, activation, bias):
        x = keras.Input((8,), name="x")
        hidden = keras.layers.Dense(6, name="hidden", kernel_initializer="ones")(x)
        head = keras.layers.Dense(4, activation, name="head", kernel_initializer="ones")
        model = keras.Model({"x": x}, head(hidden))
        keras_flix.enable_flix(model, FEATURES, rank=2, targets=["hidden"], seed=0)
        head.trainable = True
        head.bias.assign(np.full(4, bias))
        path = str(tmp_path / f"{name}.flix.safetensors")
        keras_flix.save_adapters(model, path)
        return path

    one, two = saved_with("one", "relu", 0), saved_with("two", "tanh", 1)
    shapes = {"head/kernel": [6, 4], "head/bias": [4]}
    assert answer(capsys, "inspect", one)["trained"] == shapes
    _, out, _ = run(capsys, "inspect", one)
    assert "trained besides: head/kernel, head/bias" in out.splitlines()
    assert answer(capsys, "diff", one, two, code=1)["notes"] == [
        "base: other settings: head: activation='relu' for activation='tanh'",
        "trained besides: another head/bias",
    ]
    assert answer(capsys, "diff", one, one)["different"] is False
    handle = parse_handle("hf://me/x/one.flix.safetensors")
    card = adapter_card(read_adapters(one), handle)
    assert "is in the file, too:\n\n`head/kernel`, `head/bias`\n" in card


def test_tokens_that_train_are_told(capsys, tmp_path):
    def saved_with(name, tokens):
        inputs = keras.Input((4,), dtype="int32", name="x")
        x = keras.layers.Embedding(10, 8, "ones", name="words")(inputs)
        head = keras.layers.Dense(4, name="head", kernel_initializer="ones")
        model = keras.Model({"x": inputs}, head(x))
        options = {"targets": ["head"], "rank": 2, "trainable_tokens": tokens}
        keras_flix.enable_flix(model, FEATURES, seed=0, **options)
        path = str(tmp_path / f"{name}.flix.safetensors")
        keras_flix.save_adapters(model, path)
        return path

    one, two = saved_with("one", [2, 3]), saved_with("two", [2, 4])
    data = answer(capsys, "inspect", one)
    assert data["trained"] == {"words/flix_token_rows": [2, 8]}
    assert data["tokens"] == {"words": [2, 3]}
    assert answer(capsys, "diff", one, two, code=1)["notes"] == [
        "tokens that train: {'words': [2, 3]} -> {'words': [2, 4]}"
    ]
    assert answer(capsys, "diff", one, one)["different"] is False


def test_diff_measures_updates(capsys, tmp_path):
    model = keras_flix.enable_flix(make_mlp(), FEATURES, rank=2, targets="all-linear")
    one, two = (str(tmp_path / f"{n}.flix.safetensors") for n in "ab")
    keras_flix.save_adapters(randomize(model), one)
    for layer in model._adaptation.layers.values():
        a, b = layer._tables.variables["language"]
        # The same update from other factors, and one that is a tenth larger.
        a.assign(to_numpy(a) * np.array([1, 2, 1.1])[:, None, None])
        b.assign(to_numpy(b) / np.array([1, 2, 1])[:, None, None])
    keras_flix.save_adapters(model, two)
    values = answer(capsys, "diff", one, two, code=1)["values"]
    assert values["task"] == []
    ((sw, small), (yo, tenth)) = values["language"]
    assert (sw, yo) == ("sw", "yo")
    assert small < 1e-7
    np.testing.assert_allclose(tenth, 0.1, rtol=1e-5)
    loose = answer(capsys, "diff", one, two, "--tolerance", "1e-6", code=1)
    assert [value for value, _ in loose["values"]["language"]] == ["yo"]
    assert answer(capsys, "diff", one, two, "--tolerance=0.2")["different"] is False
    code, out, _ = run(capsys, "diff", one, two)
    assert code == 1 and out.splitlines()[-1].split() == ["language=yo", "0.1"]


def test_diff_names_what_else_differs(capsys, tmp_path):
    features = [
        keras_flix.Feature("task", ["parse", "qa", "sum"], rank={"qa": 1, "*": 2}),
        keras_flix.Feature("domain", ["web"], alpha=3),
    ]
    one = saved(tmp_path)
    two = saved(tmp_path, "two", features, base=1, dropout=0.5, targets=["hidden"])
    assert answer(capsys, "diff", one, two, code=1)["notes"] == [
        "- task=list",
        "- feature language",
        "+ task=sum",
        "+ feature domain",
        "task: the values are in another order",
        "task=qa: rank 2 -> 1",
        "task: dropout 0.0 -> 0.5",
        "- layer head",
        "base: other weights at head/kernel, hidden/kernel",
    ]
    with_alpha = saved(tmp_path, "alpha", alpha=8)
    found = answer(capsys, "diff", one, with_alpha, code=1)
    assert found["notes"] == [
        "task: alpha None -> 8.0",
        "language: alpha None -> 8.0",
    ]
    by_root = saved(tmp_path, "root", alpha=8, scale="sqrt")
    assert answer(capsys, "diff", with_alpha, by_root, code=1)["notes"] == [
        "task: scale rank -> sqrt",
        "language: scale rank -> sqrt",
    ]
    assert answer(capsys, "inspect", by_root)["scale"] == "sqrt"
    # Alpha 8 at rank 2 is a scale of 4 for 1.
    for pairs in found["values"].values():
        np.testing.assert_allclose([x for _, x in pairs], 3.0, rtol=1e-6)


def preset(folder):
    keras.utils.set_random_seed(0)
    model = keras_hub.models.GemmaCausalLM(
        backbone=make_backbone(head_dim=4), preprocessor=None
    )
    model.save_to_preset(str(folder / "base"))
    features = [keras_flix.Feature("task", ["qa", "parse"]), WITH_RANKS[-1]]
    model = keras_flix.enable_flix(model, features, rank=2)
    path = folder / "gemma.flix.safetensors"
    keras_flix.save_adapters(randomize(model), path)
    return model, str(path), ("--preset", str(folder / "base"))


TOKENS = {
    "token_ids": np.arange(10).reshape(2, 5).astype("int32"),
    "padding_mask": np.ones((2, 5), "int32"),
}


def test_merge(capsys, tmp_path):
    model, path, base = preset(tmp_path)
    out = str(tmp_path / "merged")
    backbone = ("--class", "Backbone")
    data = answer(
        capsys,
        "merge",
        path,
        *base,
        *backbone,
        "--features",
        "task=qa",
        "--output",
        out,
    )
    assert data == {"output": out, "features": {"task": "qa"}}
    merged = keras_hub.models.Backbone.from_preset(out)
    expected = to_numpy(model.backbone({**TOKENS, "task": "qa"}))
    np.testing.assert_allclose(to_numpy(merged(TOKENS)), expected, atol=1e-5)
    # Not over what is there.
    code, _, err = run(
        capsys, "merge", path, *base, "--features", "task=qa", "--output", out
    )
    assert code == 2 and err.startswith("keras-flix: `directory` must be new or empty")


def test_export(capsys, tmp_path):
    _, path, base = preset(tmp_path)
    one, every = (str(tmp_path / name) for name in ("one", "every"))
    common = ("export", path, *base, "--base-model", "me/gemma", "--output")
    code, out, _ = run(capsys, *common, one, "--features", "task=")
    assert (code, out) == (0, f"exported task=None into {one}\n")
    config = json.loads((tmp_path / "one/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "me/gemma"
    answer(capsys, *common, every, "--all")
    assert len(json.loads((tmp_path / "every/index.json").read_text())["adapters"]) == 2
    takes = "`export` takes one of --features, --all and --values. Received: "
    for extra, text in (
        ((), f"{takes}none."),
        (("--all", "--features", "task=qa"), f"{takes}--features and --all."),
        (("--all", "--format", "gguf"), "--format is of --values: combinations are"),
    ):
        code, _, err = run(capsys, *common, str(tmp_path / "none"), *extra)
        assert code == 2
        assert err.startswith(f"keras-flix: {text}")
        assert not (tmp_path / "none").exists()


def test_values_and_what_a_server_is_asked(capsys, tmp_path):
    _, path, base = preset(tmp_path)
    values = tmp_path / "values"
    out = ("--output", str(values))
    code, text, _ = run(capsys, "export", path, *base, *out, "--values")
    asked = f"keras-flix request {values} --features task=qa"
    assert (code, text) == (
        0,
        f"exported all values into {values}\n\nnext:\n  {asked}\n",
    )
    features = ("--features", "task=qa")
    asked = answer(capsys, "request", str(values), *features)
    assert asked == keras_flix.serving.read_index(values).request({"task": "qa"})
    code, text, _ = run(capsys, "request", str(values), *features)
    assert (code, json.loads(text)) == (0, asked)
    for extra, message in (
        (("--server-arguments",), "Arguments are of llama.cpp's server and vLLM's."),
        (("--features", "task=Qa"), "A value of feature 'task' must be one of"),
        ((), "`request` takes either --features or --server-arguments. Received: nei"),
    ):
        code, _, err = run(capsys, "request", str(values), *extra)
        assert code == 2 and err.startswith(f"keras-flix: {message}")


def test_gguf(capsys, tmp_path, monkeypatch):
    from helpers.llama_cpp import Server, assert_same, make_task

    task = make_task("GPT2", num_layers=1)
    task.save_to_preset(str(tmp_path / "base"))
    keras_flix.enable_flix(task, FEATURES, targets=["query"])
    path = str(tmp_path / "a.flix.safetensors")
    keras_flix.save_adapters(randomize(task), path)
    base = ("--preset", str(tmp_path / "base"))
    file, values = tmp_path / "base.gguf", tmp_path / "values"
    out = ("--output", str(file), "--context-length", "20")
    code, text, _ = run(capsys, "export-base", *base, *out)
    assert (code, text) == (0, f"exported the base into {file}\n")
    keras_flix.export_base(task, tmp_path / "same.gguf", context_length=20)
    assert file.read_bytes() == (tmp_path / "same.gguf").read_bytes()
    out = ("--output", str(values), "--values", "--format", "gguf")
    code, text, _ = run(capsys, "export", path, *base, *out)
    assert code == 0 and text.startswith(
        f"exported all values into {values}\n\nnext:\n"
    )
    # What it says to type next can be typed, also what a shell fills in.
    monkeypatch.chdir(tmp_path)
    typed = re.findall(r"keras-flix ([^)\n]+)", text)
    first, second, third = [run(capsys, *shlex.split(words)) for words in typed]
    assert first == (0, "exported the base into base.gguf\n", "")
    assert second[0] == 0 and second[1].startswith("--lora-scaled ")
    assert json.loads(third[1])["lora"] == [
        {"id": 0, "scale": 1},
        {"id": 3, "scale": 1},
    ]
    blend = ("--features", "task=", "language=sw:0.5,yo:0.25")
    asked = answer(capsys, "request", str(values), *blend)
    assert asked["lora"] == [{"id": 4, "scale": 0.5}, {"id": 5, "scale": 0.25}]
    arguments = answer(capsys, "request", str(values), "--server-arguments")
    assert arguments["arguments"][0] == "--lora-scaled"
    code, text, _ = run(capsys, "request", str(values), "--server-arguments")
    assert text.startswith(f"--lora-scaled {values}/task-qa.gguf:0,")
    # With these, a server answers that request as the model does.
    files = arguments["arguments"][1].split(",")
    server = Server(file, [one.removesuffix(":0") for one in files])
    features = {"task": [None], "language": [{"sw": 0.5, "yo": 0.25}]}
    assert_same(task, [server.answer(task, asked)], 8e-3, features)


def test_another_base_is_refused_unless_told(capsys, tmp_path):
    _, path, base = preset(tmp_path)
    other = keras_hub.models.GemmaCausalLM(
        backbone=make_backbone(head_dim=4), preprocessor=None
    )
    randomize(other, seed=7).save_to_preset(str(tmp_path / "other"))
    out = str(tmp_path / "merged")
    common = ("merge", path, "--preset", str(tmp_path / "other"))
    common += ("--features", "task=qa", "--output", out)
    code, _, err = run(capsys, *common)
    assert code == 2 and "must be loaded into the base model" in err
    assert not (tmp_path / "merged").exists()
    assert run(capsys, *common, "--any-base")[0] == 0


def test_entries_of_combinations():
    schema = keras_flix.FeatureSchema(
        [*WITH_RANKS, keras_flix.Feature("year", [2023, 2024])]
    )
    entries = ["task=[red]parse", "domain=web,news", "year=2024"]
    assert parse_features(schema, entries) == {
        "task": "[red]parse",
        "domain": ["web", "news"],
        "year": 2024,
    }
    blends = ["task=qa:0.5,[red]parse:-0.25", "domain=web:1", "year=2024:0.5"]
    assert parse_features(schema, blends) == {
        "task": {"qa": 0.5, "[red]parse": -0.25},
        "domain": {"web": 1.0},
        "year": {2024: 0.5},
    }
    colons = keras_flix.FeatureSchema({"time": ["12:30", "a:b"]})
    assert parse_features(colons, ["time=12:30"]) == {"time": "12:30"}
    assert parse_features(colons, ["time=a:b"]) == {"time": "a:b"}
    empty = {"task": None, "domain": [], "year": None}
    assert parse_features(schema, ["task=", "domain=", "year="]) == empty
    joined = [",".join(entries), "year=2024,domain=web,news,task=[red]parse"]
    for one in joined:
        assert parse_features(schema, [one]) == parse_features(schema, entries)
    assert parse_features(schema, [",".join(blends)]) == parse_features(schema, blends)
    assert parse_features(schema, ["task=,domain=", "year="]) == empty
    # The longest text that is a value is meant.
    commas = keras_flix.FeatureSchema(
        [
            keras_flix.Feature("task", ["a", "a,b", "a,b=c"]),
            keras_flix.Feature("domain", ["x", "x,y", "z=1"], multiple=True),
        ]
    )
    for text, task, domain in (
        ("task=a,domain=x,y", "a", ["x,y"]),
        ("task=a,b,domain=x,x,y", "a,b", ["x", "x,y"]),
        ("task=a,b=c,domain=x,z=1", "a,b=c", ["x", "z=1"]),
        (
            "domain=x,y:0.5,x:2,task=a,b:0.5,a:1",
            {"a,b": 0.5, "a": 1},
            {"x,y": 0.5, "x": 2},
        ),
    ):
        found = parse_features(commas, [text])
        assert found == {"task": task, "domain": domain}
    for entries, text in (
        (["task=qa,task=qa"], "one of each feature. Received: 'task=qa'"),
        (["task=qa,tusk=qa"], "Received: 'tusk'"),
        (["task"], "--features must be entries 'feature=value'"),
        (["task=qa", "task=qa"], "one of each feature. Received: 'task=qa'"),
        (["task=Qa", "domain=", "year="], "The nearest known value is 'qa'"),
        (
            ["task=qa", "domain="],
            "feature: task, domain, year. Received: no entry 'year'. Write such as "
            "year=2023, and year= where",
        ),
        (["tusk=qa"], "Received: 'tusk'"),
        (None, "Received: no entry 'task'"),
    ):
        with pytest.raises(ValueError, match=text):
            parse_features(schema, entries)


@pytest.mark.parametrize(
    "arguments", [(), ("none",), ("inspect",), ("merge", "file"), ("diff", "a")]
)
def test_usage_errors_exit_with_2(capsys, arguments):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert "usage: keras-flix" in capsys.readouterr().err


def test_errors_are_one_line(capsys, tmp_path):
    path = str(tmp_path / "none.flix.safetensors")
    code, out, err = run(capsys, "inspect", path)
    text = f"`path` must be an existing file. Received: path='{path}', which is none."
    assert (code, out, err) == (2, "", f"keras-flix: {text} Check the path.\n")
    with pytest.raises(ValueError, match="must be an existing file"):
        main(["inspect", path, "--traceback"])
    bad = tmp_path / "bad.flix.safetensors"
    bad.write_bytes(b"\x80\x04N.")
    for command in (("inspect", str(bad)), ("diff", saved(tmp_path), str(bad))):
        code, out, err = run(capsys, *command)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "must have been written by `save_adapters`" in err
    code, _, err = run(capsys, "inspect", "hf://../name")
    assert code == 2 and "Names in a handle must consist of" in err


def test_tables_that_are_not_what_the_header_says(capsys, tmp_path):
    path = saved(tmp_path)
    with safetensors.safe_open(path, framework="numpy") as file:
        header = file.metadata()
    tensors = safetensors.numpy.load_file(path)
    del tensors["head/flix_task_b"]
    safetensors.numpy.save_file(tensors, path, header)
    code, _, err = run(capsys, "inspect", path)
    assert code == 2
    assert "7 tensors are not two for each of its 4 pairs" in err


def test_a_terminal_gets_tables_and_progress(capsys, tmp_path, monkeypatch):
    pytest.importorskip("rich", reason="extra `cli`")
    path = saved(tmp_path, features=WITH_RANKS)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    code, out, _ = run(capsys, "inspect", path)
    # A value that looks like markup is shown as it is.
    assert code == 0 and "[red]parse" in out and "━" in out
    with output.progress(2) as begin:
        begin("one")
        begin("two")
    monkeypatch.setitem(sys.modules, "rich.table", None)
    code, out, _ = run(capsys, "inspect", path)
    assert code == 0 and "[red]parse" in out and "━" not in out


@pytest.mark.slow
def test_as_a_program():
    result = subprocess.run(
        [sys.executable, "-m", "keras_flix", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == f"keras-flix {keras_flix.__version__}"


def program(*arguments):
    command = [sys.executable, "-m", "keras_flix", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_from_a_file_to_a_chat(tmp_path, capsys, monkeypatch):
    """Killed by the system and started again, then evaluated and asked."""
    data = write_lines(tmp_path / "data.jsonl")
    # Many short rounds, of which the kill meets some.
    sizes = ("--steps", 20, "--backup-steps", 2, "--batch-size", 2)
    options = (*sizes, "--targets", "query", "--rank", 2, "--score-examples", 1)
    train = ("train", data, "--preset", PRESET, "--validation-split", 0, *options)
    train = [str(x) for x in train]
    folder = tmp_path / "killed"
    process = program(*train, "--output", folder)
    while not list(folder.glob("unfinished/backups/epoch-*.weights.h5")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.communicate()
    left = [path.name for path in folder.iterdir()]
    assert left == ["unfinished"]
    # What follows needs no process of its own, each of which imports Keras.
    code, out, err = run(capsys, *train, "--output", str(folder), "--json")
    assert code == 0 and "going on where it was stopped" in err
    assert json.loads(out)["steps"] == 20
    # As one that nobody stopped.
    assert main([*train, "--output", str(tmp_path / "whole")]) == 0
    found, expected = (
        read_adapters(path / "adapters.flix.safetensors").tables
        for path in (folder, tmp_path / "whole")
    )
    for name, table in expected.items():
        np.testing.assert_array_equal(found[name], table, err_msg=name)
    capsys.readouterr()
    code, out, err = run(capsys, "evaluate", str(folder), data, "--json")
    assert code == 0, err
    scores = json.loads(out)
    assert scores["count"] == 12 and scores["by"]["task"].keys() == {"month", "weekday"}
    start = ("chat", str(folder), "--features", "task=month,language=de", "--json")
    lines = "2024-03-05 2 = \n/features language=en\n2024-03-05 2 = \n/quit\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    code, out, err = run(capsys, *start)
    assert code == 0, err
    answers = [json.loads(line) for line in out.splitlines()]
    assert [one["features"]["language"] for one in answers] == ["de", "en"]
    assert all(one["answer"] for one in answers)
