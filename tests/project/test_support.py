"""The support table says what the tests found, and nothing better."""

import json
from types import SimpleNamespace

import pytest
from tools.support import SupportReport, page


def result(row, backend, outcome="passed", verdict="works", **more):
    texts = {"reason": "", "note": "", **more}
    return {
        "section": "Paths",
        "row": row,
        "backend": backend,
        "outcome": outcome,
        "verdict": verdict,
        **texts,
    }


def row_of(results):
    lines = [line for line in page(results).splitlines() if line.startswith("| a")]
    assert len(lines) == 1
    return [cell.strip() for cell in lines[0].strip("|").split("|")]


def test_every_outcome_has_its_word():
    results = [
        result("a", "jax"),
        result("a", "tensorflow", verdict="refused"),
        result("a", "torch", "failed"),
    ]
    assert row_of(results) == ["a", "works", "refused", "**fails**"]
    assert row_of(results[:1]) == ["a", "works", "not tested", "not tested"]


def test_one_failure_outweighs_all_else():
    results = [result("a", "jax"), result("a", "jax", "failed"), result("a", "jax")]
    assert row_of(results)[1] == "**fails**"


def test_reasons_become_notes():
    reason = "It is not there."
    results = [result("a", "jax", "skipped", reason=reason), result("a", "torch")]
    assert row_of(results) == ["a", "no [1]", "not tested", "works"]
    assert "1. a, JAX: It is not there." in page(results)


@pytest.mark.parametrize("phase", ["setup", "call"])
def test_failures_of_both_phases_are_collected(tmp_path, phase):
    marker = pytest.mark.support("Paths", "a").mark
    item = SimpleNamespace(iter_markers=lambda name: [marker])
    plugin = SupportReport(tmp_path / "r.json", "jax")
    for when in ("setup", "call", "teardown"):
        outcome = "failed" if when == phase else "passed"
        report = SimpleNamespace(
            when=when,
            outcome=outcome,
            skipped=False,
            longrepr=None,
            user_properties=[("support_note", "b")],
        )
        plugin.add(item, report)
        if when == phase == "setup":
            break
    plugin.write()
    (found,) = json.loads((tmp_path / "r.json").read_text())
    assert found == result("a", "jax", "failed", note="b")
