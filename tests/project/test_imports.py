"""What importing the package imports, and that nothing is lost by importing late."""

import importlib
import json
import os
import subprocess
import sys

import keras
import pytest
from helpers.places import GUIDES, ROOT, TESTS

import keras_flix

HEAVY = ("keras", "keras_hub", "jax", "tensorflow", "torch")
LAZY = ("", ".analysis", ".files", ".layers", ".mixtures")
"""Packages whose names come out of their modules on first use."""
STORED = TESTS / "files" / "saved_by_0_1"


def python(code, *arguments):
    """What a fresh process printed last."""
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return run.stdout.splitlines()[-1]


REPORT = (
    "import json, sys, time; "
    f"print(json.dumps([[m for m in {HEAVY} if m in sys.modules], "
    "time.process_time()]))"
)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--version"],
        ["--help"],
        ["inspect", "--help"],
        ["train", "--help"],
        ["chat", "--help"],
        ["inspect", str(GUIDES / "cldr_adapters.flix.safetensors")],
        ["diff", *[str(STORED / f"{n}.flix.safetensors") for n in ("mlp", "gemma")]],
    ],
)
def test_the_command_line_needs_no_keras_for_files(arguments):
    code = (
        "import sys; sys.argv[0] = 'keras-flix'\n"
        "from keras_flix.command_line.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
    )
    heavy, seconds = json.loads(python(code + REPORT, *arguments))
    assert heavy == []
    assert seconds < 1.0


def test_what_is_wrong_is_told_without_keras(tmp_path):
    adapters = str(GUIDES / "cldr_adapters.flix.safetensors")
    examples = str(GUIDES / "cldr_examples.jsonl")
    base = ["--preset", str(GUIDES / "cldr_gemma")]
    new = ["--output", str(tmp_path / "new")]
    other = ["--features", "task=full_date", "language=xx"]
    wrong = [
        ["train", examples, *base, *new, "--prompt", "promt"],
        ["train", examples, *base, *new, "--hold-out", "language=xx"],
        ["evaluate", adapters, examples, *base, "--features", "languages"],
        ["chat", adapters, *base, *other],
        ["merge", adapters, *base, *new, *other],
        ["export", adapters, *base, *new, *other],
    ]
    code = (
        "import sys, json; from keras_flix.command_line.main import main\n"
        "for arguments in json.loads(sys.argv[1]):\n    assert main(arguments) == 2\n"
    )
    heavy, _ = json.loads(python(code + REPORT, json.dumps(wrong)))
    assert heavy == []


def test_requests_need_no_keras(tmp_path):
    adapter = {"feature": "task", "value": "qa", "always": False, "scale": 1.0}
    index = {
        "format": "keras_flix.values",
        "version": 1,
        "files": "gguf",
        "features": [{"name": "task", "values": ["qa"], "multiple": False}],
        "adapters": [{**adapter, "file": "task-qa.gguf", "rank": 4}],
    }
    (tmp_path / "index.json").write_text(json.dumps(index))
    # Not even where these cannot be imported, and GGUF's reader neither.
    code = (
        "import sys\n"
        f"for name in {(*HEAVY, 'gguf')}:\n    sys.modules[name] = None\n"
        "from keras_flix.command_line.main import main\n"
    )
    for more in (["--features", "task=qa"], ["--server-arguments"]):
        arguments = ["request", str(tmp_path), *more]
        report = "import time; print(time.process_time())"
        seconds = python(f"{code}assert not main({arguments})\n{report}")
        assert float(seconds) < 1.0


@pytest.mark.parametrize("name", ["keras_flix", "keras_flix.serving"])
def test_importing_the_package_imports_no_keras(name):
    heavy, _ = json.loads(python(f"import {name}; {REPORT}"))
    assert heavy == []


@pytest.mark.parametrize("name", LAZY)
def test_names_are_those_of_the_modules(name):
    package = importlib.import_module(f"keras_flix{name}")
    assert dir(package) == sorted(package.ORIGINS) == package.__all__
    for public, origin in package.ORIGINS.items():
        module = importlib.import_module(origin)
        expected = getattr(module, public, module)
        assert getattr(package, public) is expected
        # A module of the same name would take the place of what is in it.
        assert expected is module or origin != f"{package.__name__}.{public}"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = package.nothing


@pytest.mark.parametrize("name", LAZY)
def test_type_checkers_see_the_same_names(name):
    package = importlib.import_module(f"keras_flix{name}")
    with open(package.__file__) as file:
        text = file.read()
    for public, origin in package.ORIGINS.items():
        assert f"{public} as {public}" in text, public
        if not origin.endswith(f".{public}"):
            assert f"from {origin} import" in text


def test_the_public_names_stand_at_their_places():
    names = ("analysis", "callbacks", "evaluation", "mixtures", "plots", "serving")
    for name in (*names, "text_metrics", "xtreme_up", "files"):
        assert getattr(keras_flix, name).__name__ == f"keras_flix.{name}"
    hub = importlib.import_module("keras_flix.files.hub")
    # Model cards that were published name it.
    assert callable(hub.download)


@pytest.mark.slow
@pytest.mark.parametrize(
    "file, order",
    [
        ("layer.keras", "keras_flix, keras"),
        # Each starts a process that imports all.
        pytest.param("mlp.keras", "keras, keras_flix", marks=pytest.mark.short()),
        pytest.param("mlp.keras", "keras_flix, keras", marks=pytest.mark.short()),
        pytest.param("layer.keras", "keras, keras_flix", marks=pytest.mark.short()),
    ],
)
def test_saved_models_load_whatever_was_imported_first(order, file):
    code = (
        f"import {order}; import sys; "
        "model = keras.models.load_model(sys.argv[1]); "
        "print([type(layer).__name__ for layer in model.layers])"
    )
    assert "Flix" in python(code, STORED / file)


@pytest.mark.short("torch")
def test_an_unknown_backend_is_told_which_there_are():
    code = "import keras_flix; keras_flix.enable_flix"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": "pytroch"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    last = run.stderr.splitlines()[-2:]
    assert "pytroch" in last[0]
    assert last[1].startswith("Adapters need one of the backends 'jax', 'tensorflow' ")


@pytest.mark.slow
def test_classes_that_are_imported_stand_for_themselves():
    name = "keras_flix>FlixDense"
    keras_flix.FlixDense  # noqa: B018
    assert keras.saving.get_registered_object(name) is keras_flix.FlixDense
    code = (
        "import keras_flix, keras; "
        f"found = keras.saving.get_registered_object({name!r}); "
        "config = keras_flix.FlixDense(3, features={'task': ['qa']}).get_config(); "
        "print(type(found.from_config(config)) is keras_flix.FlixDense)"
    )
    assert python(code) == "True"
