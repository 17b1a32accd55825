"""The benchmarks: their rooms; the cost report's arms, arithmetic and tables."""

import ast
import collections
import graphlib
import json
import re
import sys

import keras
import pytest
from helpers.places import ROOT

from benchmarks.cost import (
    cost_tables,
    step_flops,
    stored_results,
    timing,
    train_step,
    two_versions,
)
from benchmarks.cost.arm import ArmSpec
from benchmarks.cost.build_arm import build_arm
from benchmarks.cost.peer_arms import available_peers
from benchmarks.cost.workload import Workload

BENCHMARKS = ROOT / "benchmarks"
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(
        ".__init__"
    ): path
    for path in sorted(BENCHMARKS.rglob("*.py"))
}
ROOMS = {"cost", "quality", "robustness", "shared"}

TINY = Workload(
    layers=2,
    width=32,
    heads=4,
    head_dim=8,
    intermediate=64,
    vocabulary=64,
    batch=4,
    length=8,
)


def imports(name):
    """The files of `benchmarks` that one of them imports, on top or further inside."""
    found = set()
    for node in ast.walk(ast.parse(SOURCES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {n if n in SOURCES else node.module for n in names}
    return {n for n in found if n.partition(".")[0] == "benchmarks"}


def test_stored_results_say_a_command_that_everyone_has():
    commands = {
        str(file): re.findall(r'"command": "([^"]*)"', file.read_text())
        for file in (BENCHMARKS / "results").rglob("*.json")
    }
    assert sum(map(len, commands.values())) > 100
    here = re.compile(r"KERAS_BACKEND=\w+ python (-m benchmarks\.|tests/)[^~]*")
    wrong = {f: c for f, c in commands.items() if not all(map(here.fullmatch, c))}
    assert wrong == {}


def test_a_room_imports_from_itself_and_from_shared():
    for name in SOURCES:
        _, room, *_ = name.split(".")
        assert room in ROOMS
        for other in imports(name):
            assert other in SOURCES, f"{name} imports {other}"
            assert other.split(".")[1] in {room, "shared"}, f"{name} imports {other}"


def test_no_two_files_import_each_other():
    graph = {name: imports(name) for name in SOURCES}
    assert sum(map(len, graph.values())) > len(graph)
    graphlib.TopologicalSorter(graph).prepare()  # It raises if there is a circle.


def test_no_name_is_that_of_two_files():
    names = collections.Counter(path.name for path in SOURCES.values())
    assert {name for name, count in names.items() if count > 1} == set()


on_torch = pytest.mark.skipif(
    keras.config.backend() != "torch", reason="only PyTorch has peers outside of Keras"
)


@pytest.mark.slow
@on_torch
def test_one_command_times_all_arms_from_the_same_loss(tmp_path, monkeypatch):
    output = tmp_path / "result.json"
    options = [*TINY.as_arguments(), "--rounds=2", "--warm-up=0", f"--output={output}"]
    monkeypatch.setattr(sys, "argv", ["train_step", *options])
    train_step.main()
    result = json.loads(output.read_text())
    assert {"floor", "lora", "flix", *available_peers()} == set(result["arms"])
    assert {"hf_floor", "peft_lora", "peft_poly"} <= set(result["arms"])
    losses = result["first_loss"].values()
    assert max(losses) - min(losses) < 1e-4
    assert set(result["time"]["wall"]["ratios"]) >= {
        "flix_over_floor",
        "flix_over_lora",
        "flix_over_peft_poly",
        "flix_over_peft_poly_over_floors",
    }


@on_torch
def test_arms_that_adapt_other_layers_are_no_comparison():
    arms = {name: build_arm(ArmSpec(name), TINY) for name in ("lora", "peft_lora")}
    train_step.check_arms(arms, TINY.layers)
    for parameter in arms["peft_lora"].model.model.model.layers[0].parameters():
        parameter.requires_grad_(False)
    with pytest.raises(RuntimeError, match="adapt different layers"):
        train_step.check_arms(arms, TINY.layers)


@on_torch
def test_counted_flops_are_those_of_the_formula_for_any_number_of_values():
    floor, few, many = (
        step_flops.count(build_arm(ArmSpec.parse(name), TINY))["flops"]
        for name in ("floor", "flix:2", "flix:200")
    )
    width, query, value = TINY.width, TINY.heads * TINY.head_dim, TINY.head_dim
    # Forwards, the gradients of the tables, and that of the input.
    update = 3 * TINY.rank * (2 * width + query + value)
    # In the first layer, nothing below the adapters trains, nor does the key. In the
    # floor, the norm below all of them does.
    saved = 2 * TINY.rank * width + width * (query + 2 * value) + query * TINY.length
    assert few - floor == 2 * TINY.tokens * (TINY.layers * update - saved)
    assert many == few


@pytest.mark.slow
@pytest.mark.short()
@on_torch
def test_two_checkouts_step_in_turns(tmp_path):
    options = ["--serve", "--warm-up=1", *TINY.as_arguments()]
    found = two_versions.run(ROOT, 2, options)
    assert found["seconds"].keys() >= {"flix this", "flix other"}
    assert all(one["median"] > 0 for one in found["ratios"].values())
    # What is installed must not be measured in the place of a checkout.
    with pytest.raises(RuntimeError, match="Expected keras_flix in"):
        two_versions.serve(tmp_path, TINY, 0)


def test_ratios_are_paired_by_round():
    times = {"flix": [2.0, 6.0], "floor": [1.0, 2.0], "peer": [4.0, 4.0]}
    assert timing.paired(times, ("flix",), ("floor",)) == [2.0, 3.0]
    assert timing.paired(times, ("flix", "peer"), ("floor", "peer")) == [2.0, 3.0]


@pytest.mark.parametrize("accelerator", [None, "NVIDIA Nothing"])
def test_a_missed_goal_is_bold_and_a_gpu_is_named(tmp_path, monkeypatch, accelerator):
    def ratio(median):
        return {"median": median, "quartiles": [median - 0.1, median + 0.1]}

    result = {
        "environment": {"backend": "torch", "accelerator": accelerator},
        "workload": {"batch": 2, "length": 5},
        "arms": {"floor": {"what": "base"}, "flix": {"what": "ours"}},
        "time": {
            "wall" if accelerator else "cpu": {
                "seconds": {"floor": 1.0, "flix": 1.2},
                "ratios": {"flix_over_floor": ratio(1.2)},
            }
        },
    }
    (tmp_path / "train_step_torch.json").write_text(json.dumps(result))
    monkeypatch.setattr(stored_results, "RESULTS", tmp_path)
    here = cost_tables.training_steps(on_accelerator=accelerator is not None)
    assert "| ours | 1.200 | 8 | **1.200** (1.10–1.30) |" in here
    assert ("NVIDIA Nothing" in here) == (accelerator is not None)
    assert cost_tables.training_steps(on_accelerator=accelerator is None) == ""
