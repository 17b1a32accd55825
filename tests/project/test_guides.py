"""The guides run, reach their numbers, and equal their notebooks.

Without `--full`, only the quickstart runs, and those of `QUICK` on one backend: the
others train, read and export adapters as other tests do.
"""

import doctest
import importlib.util
import os
import re
import subprocess
import sys

import keras
import keras_hub
import pytest
from helpers.places import GUIDES, ROOT

jupytext = pytest.importorskip("jupytext", reason="extra `guides`")

plt = pytest.importorskip("matplotlib.pyplot", reason="extra `guides`")

from benchmarks.quality import (  # noqa: E402
    evidence_figures,
    evidence_page,
)

# Each of these runs in about a minute, and starts from the stored adapters.
SHORT = (
    "own_tasks",
    "few_shot_languages",
    "many_users",
    "quantized",
    "many_devices",
    "serving",
    "reading_adapters",
)
# These are short, too, and most start from less.
QUICK = ("from_lora", "chat_template", "hugging_face_datasets", "troubleshooting")
RUN = ("quickstart", *SHORT, *QUICK, "does_flix_help")
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
    # No wall of lines, such as a progress bar leaves.
    assert max(str(text).count("\n") for text in texts) < 60
    assert "\u2501" not in str(texts)
    # Figures are shown, not only named.
    shown = [o.data for o in outputs if o.output_type != "stream"]
    assert all("image/png" in data for data in shown)
    assert bool(shown) == any(".savefig(" in cell.source for cell in code)


def test_guides_are_set_up_by_the_same_cell():
    def setup(name):
        notebook = jupytext.read(GUIDES / f"{name}.py")
        return next(c.source for c in notebook.cells if c.cell_type == "code")

    expected = setup("quickstart")
    assert '\nREPOSITORY = "' in expected
    # A checkout needs no other one, whatever the address.
    assert '\nif REPOSITORY and "google.colab" in sys.modules:\n' in expected
    for name in ALL:
        # What it reads takes other packages.
        extra = "evidence" if name == "does_flix_help" else "guides"
        assert setup(name) == expected.replace("[jax,guides]", f"[jax,{extra}]"), name


def test_every_guide_is_in_the_index():
    index = (GUIDES / "README.md").read_text()
    for name in ALL:
        assert f"({name}.ipynb)" in index


def test_presets_that_guides_name_are_there():
    named = {
        preset
        for path in GUIDES.glob("*.py")
        for preset in re.findall(r"[\"`](gemma\d_[a-z0-9_]+)[\"`]", path.read_text())
    }
    assert "gemma3_270m" in named
    assert named <= set(keras_hub.models.CausalLM.presets)


def test_one_section_says_what_to_start_with():
    section = (GUIDES / "does_flix_help.py").read_text()
    assert "# ## Settings to start with\n" in section
    for name in ("quickstart", "own_tasks", "from_lora", "chat_template"):
        # A link may be wrapped.
        text = re.sub(r"\n# ", " ", (GUIDES / f"{name}.py").read_text())
        link = "[Settings to start with](does_flix_help.ipynb#settings-to-start-with)"
        assert link in text, name


def test_preset_and_its_adapters_are_small():
    files = [f for f in (GUIDES / "cldr_gemma").rglob("*") if f.is_file()]
    assert 0 < sum(f.stat().st_size for f in files) <= 12e6
    assert (GUIDES / "cldr_adapters.flix.safetensors").stat().st_size <= 2e6


@pytest.mark.short("jax")
@pytest.mark.slow
@pytest.mark.guide
def test_quickstart_reaches_its_numbers(tmp_path):
    text = run("quickstart", tmp_path)
    found = dict(re.findall(r"Exact match on (seen|unseen) pairs:\s+([\d.]+) %", text))
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
def test_many_users_learn_in_one_run(tmp_path):
    text = run("many_users", tmp_path)
    users, count = re.search(r"(\d+) users, (\d+) examples", text).groups()
    # Nobody has more updates than examples, or fewer.
    assert f"{count} updates of {users} users in" in text
    assert len(list((tmp_path / "output" / "users").iterdir())) == int(users) == 1000
    scores = {
        name: [float(x) for x in found]
        for name, *found in re.findall(
            r"^(no user|another user|their own) +([\d.]+) % +([\d.]+) %$", text, re.M
        )
    }
    assert len(scores) == 3
    for own, none, other in zip(
        scores["their own"], scores["no user"], scores["another user"]
    ):
        assert own >= 25 + max(none, other)
    run_and_served = re.findall(r"the first update of user_0007: (\S+)", text)
    assert len(run_and_served) == 2 and len(set(run_and_served)) == 1


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
            "\n30 files of " in text and "{'lora': [{'id': 0, 'scale': 1.0}, " in text
        )


@pytest.mark.short()
@pytest.mark.slow
@pytest.mark.guide
def test_reading_adapters_finds_families(tmp_path):
    text = run("reading_adapters", tmp_path)
    # The adapters are stored, so this is no matter of chance.
    assert number(r"(\d+) of 18 nearest values are of the same family", text) == 11
    assert (tmp_path / "output" / "reading_adapters.html").stat().st_size > 10_000


@pytest.mark.short("jax")
@pytest.mark.slow
@pytest.mark.guide
def test_from_lora_finds_the_same_numbers(tmp_path):
    # It ends with an error where a factor, an output or PEFT's count is another.
    text = run("from_lora", tmp_path)
    assert "A: 64 numbers, all equal" in text
    assert number(r"Keras and PEFT differ by (\S+)", text) < 1e-3
    assert number(r"without the LoRA by (\S+)", text) > 0.1


@pytest.mark.short("jax")
@pytest.mark.slow
@pytest.mark.guide
def test_chat_template_learns_its_turns(tmp_path):
    text = run("chat_template", tmp_path)
    assert "gemma3_instruct_270m" in text
    assert "['Guten Tag!<end_of_turn>', 'Asante.<end_of_turn>'" in text
    assert number(r"\nall +36 +([\d.]+)", text) >= 90


@pytest.mark.short("jax")
@pytest.mark.slow
@pytest.mark.guide
def test_hugging_face_datasets_become_a_mixture(tmp_path):
    text = run("hugging_face_datasets", tmp_path)
    assert "Mixture(12 datasets, 288 examples" in text
    assert "The nearest is 'question'" in text
    assert number(r"\nall +48 +([\d.]+)", text) > 0


@pytest.mark.short("torch")
@pytest.mark.slow
@pytest.mark.guide
def test_errors_that_troubleshooting_shows_are_those_of_the_library(tmp_path):
    def messages(text):
        found = re.findall(r"^\w*(?:Error|Warning): .*", text, re.MULTILINE)
        # Floats in messages differ between backends.
        return [re.sub(r"\d+\.\d+", "", message) for message in found]

    notebook = jupytext.read(GUIDES / "troubleshooting.ipynb")
    outputs = [o for c in notebook.cells for o in c.get("outputs", ())]
    stored = messages("".join(output.text for output in outputs))
    assert len(stored) >= 15
    assert messages(run("troubleshooting", tmp_path)) == stored


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


@pytest.mark.slow
def test_figures_and_tables_of_the_docs_are_those_of_the_results():
    old = evidence_page.README.read_text()
    assert len(evidence_page.BLOCK.findall(old)) >= 10
    assert evidence_page.page() == old
    for name in evidence_figures.FIGURES:
        assert (evidence_figures.FOLDER / f"{name}.png").stat().st_size > 10_000


def test_what_to_start_with_is_what_the_command_starts_with():
    module = pytest.importorskip(
        "keras_flix.models.recommended", reason="it comes with `keras-flix train`"
    )
    start = module.RECOMMENDED
    guide = (GUIDES / "does_flix_help.py").read_text()
    section = guide.split("# ## Settings to start with\n")[1].split("\n# ## ")[0]
    assert start.shared and 'Feature("shared", always=True)' in section
    assert f'| `targets` | `"{start.targets}"`' in section
    assert f"| `rank` | {start.rank} for every feature" in section
    assert f"| `dropout` | {start.dropout:g} |" in section
    rate = f"{start.learning_rate:.0e}".replace("e-0", "e-")
    assert f"Adam with {rate}, up in a tenth of the steps" in section
    assert start.warmup == 0.1
    assert f"`global_clipnorm={start.clipnorm}`" in section
    batch = f"{start.batch_size} examples, {start.epochs} times as many as there are"
    assert batch in section


def test_error_bars_are_what_their_examples_say():
    spec = importlib.util.spec_from_file_location("intervals", GUIDES / "intervals.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    failed, tried = doctest.testmod(module)
    assert not failed and tried >= 3


def test_figures_can_be_read_on_a_dark_page():
    paths = [*GUIDES.glob("figures/**/*.png"), *ROOT.glob("benchmarks/**/*.png")]
    assert len(paths) > 20
    for path in paths:
        pixels = plt.imread(path)
        assert pixels.shape[2] == 3 or pixels[..., 3].min() == 1, path
        assert pixels[0, 0, :3].min() > 0.9, path
