"""Which promises the tests keep: from their results to the table in the docs.

A test that proves a line of the table carries a marker,

    @pytest.mark.support("Paths", "Rematerialization")

and one that proves a refusal says so:

    @pytest.mark.support("State", "`clone_model`", "refused")

Every run with `--support-report FILE` writes what came out, by backend;
`tests/tools/all_backends.py` makes `guides/support.md` of the three files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

BACKENDS = {"jax": "JAX", "tensorflow": "TensorFlow", "torch": "PyTorch"}
SECTIONS = (
    "Families",
    "Tasks",
    "Paths",
    "State",
    "Life of an adapter",
    "Devices",
)
VERDICTS = ("works", "refused")
HEADER = """\
# What is supported

Generated from the results of the tests, never by hand:
`python tests/tools/all_backends.py --write-support` runs them on the three backends and
writes this page, and CI fails where it is not what the tests say.

*works*: exact, by the tests of the line. *refused*: raises an error that states the
remedy. *no*: cannot work there, for the reason given below.
"""


class SupportReport:
    """A pytest plugin that collects the outcomes of marked tests."""

    def __init__(self, path: str, backend: str) -> None:
        self.path = Path(path)
        self.backend = backend
        self.results: list[dict[str, str]] = []

    def add(self, item, report) -> None:
        """Takes in the report of one phase of one test."""
        decisive = report.when == "call" or report.outcome != "passed"
        if report.when == "teardown" or not decisive:
            return
        reason = ""
        if report.skipped and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2].removeprefix("Skipped: ")
        note = dict(report.user_properties).get("support_note", "")
        for marker in item.iter_markers("support"):
            section, row, *verdict = marker.args
            assert section in SECTIONS, section
            assert not verdict or verdict[0] in VERDICTS, verdict
            self.results.append(
                {
                    "section": section,
                    "row": row,
                    "verdict": verdict[0] if verdict else "works",
                    "outcome": report.outcome,
                    "backend": self.backend,
                    "reason": reason,
                    "note": note,
                }
            )

    def write(self) -> None:
        self.path.write_text(json.dumps(self.results, indent=1) + "\n")


def cell(results: Iterable[dict[str, str]]) -> str:
    """What a row says of one backend."""
    results = list(results)
    outcomes = {r["outcome"] for r in results}
    if "failed" in outcomes:
        return "**fails**"
    passed = [r["verdict"] for r in results if r["outcome"] == "passed"]
    if not passed:
        return "no" if results else "not tested"
    return " / ".join(v for v in VERDICTS if v in passed)


def page(results: list[dict[str, str]]) -> str:
    """The page of all results."""
    lines = [HEADER]
    reasons: list[str] = []
    for section in SECTIONS:
        mine = [r for r in results if r["section"] == section]
        if not mine:
            continue
        notes = any(r["note"] for r in mine)
        head = [section, *BACKENDS.values()]
        if notes:
            head.append("what is adapted" if section == "Families" else "note")
        lines += [f"## {section}", "", _row(head), _row(["---"] * len(head))]
        for row in sorted({r["row"] for r in mine}, key=lambda r: r.strip("`").lower()):
            of_row = [r for r in mine if r["row"] == row]
            cells = [row]
            for backend, name in BACKENDS.items():
                here = [r for r in of_row if r["backend"] == backend]
                text = cell(here)
                why = {r["reason"] for r in here if r["reason"]}
                for reason in sorted(why):
                    reasons.append(f"{row}, {name}: {reason}")
                    text += f" [{len(reasons)}]"
                cells.append(text)
            if notes:
                cells.append("; ".join(sorted({r["note"] for r in of_row} - {""})))
            lines.append(_row(cells))
        lines.append("")
    if reasons:
        lines += ["## Reasons", ""]
        lines += [f"{i}. {reason}" for i, reason in enumerate(reasons, 1)]
        lines.append("")
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
