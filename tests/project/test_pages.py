"""Every code block of README, the pages and the reference runs as printed.

That in Python of README does in `tests/project/test_readme.py`, with the files that it
names. A block goes on where those before it on its page ended. What a block cannot have
here (a large preset, a hub, eight devices) is stood in for, by `STAND_INS`.
"""

import doctest
import json
import re
import shlex
from pathlib import Path

import keras
import keras_hub
import pytest
import yaml
from helpers.gemma import FEATURES
from helpers.places import GUIDES, ROOT

import keras_flix
from keras_flix.command_line.main import main, parser

PAGES = [
    ROOT / "README.md",
    *sorted(GUIDES.glob("*.md")),
    *sorted((GUIDES / "how_to").glob("*.md")),
    *sorted((GUIDES / "reference").glob("*.md")),
]
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
DISTRIBUTED = "mesh = keras.distribution.DeviceMesh"
"""`guides/many_devices.py` runs these lines, in a process of its own with 8 devices."""


def blocks(kind):
    for page in PAGES:
        for position, (language, text) in enumerate(FENCED.findall(page.read_text())):
            if language == kind:
                yield page.relative_to(ROOT).as_posix(), position, text


def once(test):
    on_torch = keras.config.backend() == "torch"
    return pytest.mark.skipif(not on_torch, reason="once is enough")(test)


@pytest.fixture
def names(make_gemma, tmp_path, monkeypatch):
    """What blocks find: a fresh model, and files of other people."""
    monkeypatch.chdir(tmp_path)
    for name in ("GemmaCausalLM", "Gemma3CausalLM"):
        causal_lm = getattr(keras_hub.models, name)
        monkeypatch.setattr(causal_lm, "from_preset", lambda name: make_gemma())
    sample = keras_flix.mixtures.Mixture.sample
    few = lambda mixture, count, **kwargs: sample(mixture, min(count, 4), **kwargs)  # noqa: E731
    monkeypatch.setattr(keras_flix.mixtures.Mixture, "sample", few)
    return {"make_gemma": make_gemma}


def compiled(gemma):
    gemma.compile(optimizer=keras.optimizers.Adam(1e-3), sampler="greedy")
    return gemma


def adapted(make_gemma, **features):
    model = keras_flix.enable_flix(make_gemma(), {**FEATURES, **features}, rank=2)
    return compiled(model)


def before_any(names, monkeypatch):
    return {"gemma": compiled(names["make_gemma"]()), "keras_flix": keras_flix}


def before_jsonl(names, monkeypatch):
    pairs = [(task, name) for task in ("qa", "parse") for name in ("sw", "yo")]
    rows = [
        {"prompt": "a ", "response": "b", "task": t, "language": n} for t, n in pairs
    ]
    lines = [json.dumps(row) + "\n" for row in rows * 4]
    Path("examples.jsonl").write_text("".join(lines))
    return before_any(names, monkeypatch)


def before_growing(names, monkeypatch):
    return {"gemma": adapted(names["make_gemma"])}


def before_files(names, monkeypatch):
    theirs = adapted(names["make_gemma"], language=[*FEATURES["language"], "rw"])
    keras_flix.save_adapters(theirs, "theirs.flix.safetensors")
    monkeypatch.setattr(
        keras_flix, "push_adapters", lambda model, place, **kwargs: None
    )
    monkeypatch.setattr(
        "keras_flix.files.hub_handles.download",
        lambda place, suffix: Path("cldr.flix.safetensors"),
    )
    gemma = adapted(names["make_gemma"])
    return {"gemma": gemma, "another_gemma": names["make_gemma"]()}


def before_csv(names, monkeypatch):
    rows = [f"{task},sw,{i}?,{i}\n" for task in ("qa", "parse") for i in range(20)]
    Path("train.csv").write_text("task,language,question,answer\n" + "".join(rows))
    model = adapted(names["make_gemma"])
    fit, few = model.fit, {"steps_per_epoch": 1, "epochs": 1}
    model.fit = lambda data, **options: fit(data, **{**options, **few})
    return {"model": model}


def before_ddp(names, monkeypatch):
    import torch

    store = torch.distributed.FileStore("store", 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    return {**before_any(names, monkeypatch), "torch": torch}


STAND_INS = {
    "keras_flix.enable_flix(\n    gemma,\n    features=[": before_any,
    "from keras_flix.evaluation import": before_jsonl,
    "keras_flix.add_values": before_growing,
    "keras_flix.set_learning_rates": before_growing,
    "keras_flix.save_adapters": before_files,
    "keras_flix.export_base": before_files,
    "from keras_flix.mixtures import Mixture\n\ntrain = ": before_csv,
    "gemma.backbone.quantize": before_any,
    'keras_flix.enable_flix(gemma, {"task": ["qa", "parse"]})\nddp': before_ddp,
}
"""By the beginning of a block, what makes the names that it goes on with."""


@once
@pytest.mark.slow
@pytest.mark.parametrize(
    "page", sorted({page for page, *_ in blocks("python")} - {"README.md"})
)
def test_python_blocks_run(page, names, monkeypatch):
    torch = pytest.importorskip("torch", reason="extra `torch`")
    pytest.importorskip("matplotlib", reason="extra `plots`").use("Agg")
    found = {"keras": keras, "keras_hub": keras_hub, "keras_flix": keras_flix}
    for at, position, text in blocks("python"):
        if at != page or text.startswith(DISTRIBUTED):
            continue
        for beginning, prepare in STAND_INS.items():
            if text.startswith(beginning):
                found |= prepare(names, monkeypatch)
        try:
            exec(compile(text, f"{page}, block {position}", "exec"), found)
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


@once
def test_lines_for_eight_devices_are_those_of_a_guide():
    (text,) = [text for _, _, text in blocks("python") if text.startswith(DISTRIBUTED)]
    guide = (GUIDES / "many_devices.py").read_text()
    for name in re.findall(r"[\w.]+(?=\()", text):
        assert name.rpartition(".")[2] in guide, name


@once
def test_commands_can_be_typed(capsys):
    count = 0
    sessions = "".join(text for _, _, text in blocks("console"))
    typed = re.findall(r"^\$ ((?:.*\\\n)*.*)$", sessions, re.MULTILINE)
    for text in [*(text for _, _, text in blocks("bash")), *typed]:
        for line in text.replace("\\\n", " ").splitlines():
            words = re.split(r" [|<>] ", line)[0] if "keras-flix" in line else line
            words = shlex.split(words, comments=True)
            if words and words[0] == "keras-flix":
                parser().parse_args(words[1:])
                count += 1
            for word in words:
                if re.fullmatch(r"(guides|tests|benchmarks)/\S+", word):
                    assert (ROOT / word).exists(), word
            for module in re.findall(r"-m (benchmarks\S+)", line):
                assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
    assert count >= 4


@once
def test_what_commands_print_is_shown(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    for _, _, text in blocks("console"):
        if not text.startswith("$ keras-flix inspect"):
            continue  # It would train or ask a real Gemma; what is typed is checked.
        line, _, shown = text.partition("\n")
        assert line.startswith("$ keras-flix ")
        assert main(shlex.split(line)[2:]) == 0
        printed = capsys.readouterr().out
        check = doctest.OutputChecker().check_output
        assert check(shown, printed, doctest.ELLIPSIS), printed


def test_settings_are_yaml():
    for _, _, text in blocks("yaml"):
        assert isinstance(yaml.safe_load(text), dict)


def test_blocks_are_found():
    kinds = ("python", "bash", "console", "yaml")
    kinds = {kind: len(list(blocks(kind))) for kind in kinds}
    assert kinds["python"] >= 9 and kinds["bash"] >= 5 and kinds["console"] >= 1
    # Each kind of block is checked by a test here, or is no code.
    all_kinds = {k for page in PAGES for k, _ in FENCED.findall(page.read_text())}
    assert all_kinds <= {*kinds, "bibtex"}
