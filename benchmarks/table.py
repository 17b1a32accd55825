"""Prints the results as a table, or writes it into the README.

python benchmarks/table.py [--write]
"""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

HERE = pathlib.Path(__file__).parent
README = HERE / "README.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
COLUMNS = (
    ("FLix / LoRA, time", "flix_over_lora", 1.0),
    ("512 / 8 values, time", "flix_many_over_flix", 1.15),
)
MEMORY = ("FLix / LoRA, peak memory", 1.1)


def ratio(result: dict[str, Any], clock: str, name: str) -> str:
    """A ratio and its quartiles, or a dash."""
    found = result["time"].get(clock, {}).get("ratios", {}).get(name)
    if found is None:
        return "–"
    low, high = found["quartiles"]
    return f"{found['median']:.3f} ({low:.2f}–{high:.2f})"


def row(path: pathlib.Path) -> list[str]:
    """The table row of one result file."""
    result = json.loads(path.read_text())
    cells = [f"`{path.name}`", str(result["workload"]["intermediate"])]
    for _, name, _ in COLUMNS:
        cells += [ratio(result, clock, name) for clock in ("wall", "cpu")]
    cells.append(ratio(result, "cpu_without_optimizer", "flix_many_over_flix"))
    memory = result.get("memory")
    cells.append(f"{memory['flix_over_lora']['step']:.3f}" if memory else "–")
    return cells


def table() -> str:
    """All results as a Markdown table."""
    head = ["Result", "FFN"]
    for title, _, goal in COLUMNS:
        head += [f"{title} (goal ≤ {goal})", "in CPU time"]
    head += ["512 / 8 without Adam", f"{MEMORY[0]} (goal ≤ {MEMORY[1]})"]
    rows = [row(path) for path in sorted((HERE / "results").glob("train_step_*.json"))]
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def environments() -> str:
    """One line per result on what it was measured with."""
    lines = []
    for path in sorted((HERE / "results").glob("train_step_*.json")):
        header = json.loads(path.read_text())["environment"]
        versions = ", ".join(f"{k} {v}" for k, v in header["versions"].items())
        lines.append(
            f"- `{path.name}`: {header['date'][:10]}, commit {header['commit']}, "
            f"{header['cpu']}, {len(header['cores_used'])} of {header['cores']} "
            f"cores, load {header['load_average'][0]}, {versions}\n"
        )
    return "".join(lines)


def main() -> None:
    """Prints the table or writes it between the README's markers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="update the README")
    text = f"{table()}\n{environments()}"
    if not parser.parse_args().write:
        print(text)
        return
    before, _, rest = README.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(before + BEGIN + text + END + after)


if __name__ == "__main__":
    main()
