"""The README of this folder, with the tables of all stored results."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.quality import evidence_tables, plan, recipe_tables, recipes
from benchmarks.quality.smollm import real_plan, real_tables

README = Path(__file__).parent / "README.md"
BLOCK = re.compile(r"(<!-- table: (\w+) (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
OTHERS = {recipes.SIZE: recipe_tables.TABLES, real_plan.SIZE: real_tables.TABLES}
"""By size, then by name: tables that are not those of a `plan.Size`."""


def page() -> str:
    """The README with the tables of the stored results between their markers."""

    def filled(match: re.Match[str]) -> str:
        begin, size, name, end = match.groups()
        if size in OTHERS:
            return f"{begin}{OTHERS[size][name]()}{end}"
        return f"{begin}{evidence_tables.table(plan.SIZES[size], name)}{end}"

    return BLOCK.sub(filled, README.read_text())


def write() -> None:
    """Writes the tables into the README."""
    README.write_text(page())
