"""The guides run, reach their numbers, and equal their notebooks.

Without `--full`, only the quickstart runs: the others train, read and export adapters
as other tests do.
"""

import importlib.util
import os
import re
import subprocess
import sys

import keras
import pytest
from helpers.places import GUIDES, ROOT

jupytext = pytest.importorskip("jupytext", reason="extra `guides`")

pytest.importorskip("matplotlib", reason="extra `guides`")

from benchmarks.quality import (  # noqa: E402
    evidence_figures,
    evidence_page,
)

# Each of these runs in about a minute, and starts from the stored adapters.
SHORT = (
    "own_tasks",
    "few_shot_languages",
    "quantized",
    "many_devices",
    "serving",
    "reading_adapters",
)
RUN = ("quickstart", *SHORT, "does_flix_help")
"""The guides whose notebooks hold the outputs of a run."""
ALL = (*RUN, "xtreme_up")
PLACES = re.compile(
    rf"{re.escape(str(ROOT))}|/root/|/home/|/tmp/|/usr/|[A-Z]:\\\\Users"
)


def cells(notebook):
    return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]


def run(name, folder):
    """What a guide prints, in a process of its own."""
    environment = {**os.environ, "FLIX_OUTPUT": str(folder / "output")}
    environment.pop("FLIX_PRESET", None)
    result = subprocess.run(
        [sys.executable, GUIDES / f"{name}.py"],
        cwd=folder,
        env={**environment, "MPLBACKEND": "Agg"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(result.stdout[-6000:])
    assert result.returncode == 0
    return result.stdout


def number(pattern, text):
    """The one group of a pattern, as a number."""
    return float(re.search(pattern, text).group(1))


@pytest.mark.parametrize("name", RUN)
def test_notebook_equals_its_source(name):
    source = jupytext.read(GUIDES / f"{name}.py")
    notebook = jupytext.read(GUIDES / f"{name}.ipynb")
    assert cells(source) == cells(notebook)


@pytest.mark.parametrize("name", RUN)
def test_notebook_holds_the_outputs_of_one_run(name):
    notebook = jupytext.read(GUIDES / f"{name}.ipynb")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code]
    assert counts == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs
    kinds = {output.get("name", output.output_type) for output in outputs}
    assert kinds <= {"stdout", "display_data", "execute_result"}
    texts = [o.get("text", o.get("data", {}).get("text/plain")) for o in outputs]
    assert not PLACES.search(str(texts))
    # Figures are shown, not only named.
    shown = [o.data for o in outputs if o.output_type != "stream"]
    assert all("image/png" in data for data in shown)


def test_guides_are_set_up_by_the_same_cell():
    def setup(name):
        notebook = jupytext.read(GUIDES / f"{name}.py")
        return next(c.source for c in notebook.cells if c.cell_type == "code")

    expected = setup("quickstart")
    assert expected.startswith('REPOSITORY = "')
    for name in ALL:
        # What it reads takes other packages.
        extra = "evidence" if name == "does_flix_help" else "guides"
        assert setup(name) == expected.replace("[jax,guides]", f"[jax,{extra}]"), name


def test_every_guide_is_in_the_index():
    index = (GUIDES / "README.md").read_text()
    for name in ALL:
        assert f"({name}.ipynb)" in index


def test_preset_and_its_adapters_are_small():
    files = [f for f in (GUIDES / "cldr_gemma").rglob("*") if f.is_file()]
    assert 0 < sum(f.stat().st_size for f in files) <= 12e6
    assert (GUIDES / "cldr_adapters.flix.safetensors").stat().st_size <= 2e6


@pytest.mark.short("jax")
@pytest.mark.slow
@pytest.mark.guide
def test_quickstart_reaches_its_numbers(tmp_path):
    text = run("quickstart", tmp_path)
    found = dict(re.findall(r"Exact match on (seen|unseen) cells:\s+([\d.]+) %", text))
    assert float(found["seen"]) >= 70
    assert float(found["unseen"]) >= 40
    for name in ("heatmap.png", "cldr.flix.safetensors"):
        assert (tmp_path / "output" / name).stat().st_size > 10_000


@pytest.mark.short()
@pytest.mark.slow
@pytest.mark.guide
def test_own_tasks_reaches_its_numbers(tmp_path):
    text = run("own_tasks", tmp_path)
    assert number(r"\nall +\d+ +([\d.]+)", text) >= 60
    assert "Received: task='full_dates'" in text


@pytest.mark.short()
@pytest.mark.slow
@pytest.mark.guide
def test_few_shot_languages_reaches_its_numbers(tmp_path):
    text = run("few_shot_languages", tmp_path)
    assert number(r"([\d.]+) % on pairs that were never seen", text) >= 75
    relative = number(r"([\d.]+)  as Portuguese", text)
    assert number(r"([\d.]+)  40 examples: update from Portuguese", text) > relative
    before, after = re.search(r"([\d.]+) % before, ([\d.]+) % after", text).groups()
    assert before == after


@pytest.mark.short()
@pytest.mark.slow
@pytest.mark.guide
def test_quantized_reaches_its_numbers(tmp_path):
    text = run("quantized", tmp_path)
    rows = re.findall(r"(.+): ([\d.]+) MB of base weights, ([\d.]+) %", text)
    sizes = {name: float(size) for name, size, _ in rows}
    assert sizes["int4"] < sizes["int8"] < sizes["floating point"] / 2
    assert min(float(score) for _, _, score in rows) >= 70
    assert "a model must compute its logits in floating point" in text
    assert "Only floating-point kernels can be merged" in text


@pytest.mark.short()
@pytest.mark.slow
@pytest.mark.guide
def test_many_devices_compute_the_same(tmp_path):
    text = run("many_devices", tmp_path)
    assert "8 devices of kind cpu" in text
    for name in ("DataParallel", "ModelParallel"):
        found = rf"{name}: losses differ by up to (\S+), weights by up to (\S+)\n"
        assert max(map(float, re.search(found, text).groups())) < 1e-4
    assert "ModelParallel: (18, 1, 128), a device holds (18, 1, 64)" in text
    assert "under the same distribution" in text


@pytest.mark.short()
@pytest.mark.slow
@pytest.mark.guide
def test_serving_writes_what_peft_reads(tmp_path):
    text = run("serving", tmp_path)
    assert number(r"Keras and PEFT differ by (\S+)", text) < 1e-3
    assert number(r"without the LoRA they would differ by (\S+)", text) > 1
    assert (tmp_path / "output" / "serving" / "loras" / "index.json").is_file()
    if all(importlib.util.find_spec(name) for name in ("gguf", "xllamacpp")):
        # Its answers are those of the model, or the guide ends with an error.
        assert (
            "\n29 files of " in text and "{'lora': [{'id': 0, 'scale': 1.0}, " in text
        )


@pytest.mark.short()
@pytest.mark.slow
@pytest.mark.guide
def test_reading_adapters_finds_families(tmp_path):
    text = run("reading_adapters", tmp_path)
    # The adapters are stored, so this is no matter of chance.
    assert number(r"(\d+) of 18 nearest values are of the same family", text) == 11
    assert (tmp_path / "output" / "reading_adapters.html").stat().st_size > 10_000


@pytest.mark.short()
@pytest.mark.skipif(keras.config.backend() != "jax", reason="it computes nothing")
def test_does_flix_help_says_what_the_stored_results_say(tmp_path):
    result = subprocess.run(
        [sys.executable, GUIDES / "does_flix_help.py"],
        cwd=tmp_path,
        env={**os.environ, "FLIX_OUTPUT": str(tmp_path), "MPLBACKEND": "Agg"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-3000:]
    assert "not run" not in result.stdout
    for name in evidence_figures.FIGURES:
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_figures_and_tables_of_the_docs_are_those_of_the_results():
    old = evidence_page.README.read_text()
    assert len(evidence_page.BLOCK.findall(old)) >= 10
    assert evidence_page.page() == old
    for name in evidence_figures.FIGURES:
        assert (evidence_figures.FOLDER / f"{name}.png").stat().st_size > 10_000
