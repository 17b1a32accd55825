"""The tables of a mutation run, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable

from mutants import ROOMS

EQUIVALENT = "equivalent: "
"""Begins why a mutant survived that no test could kill, as it changes nothing."""
KILLED = ("the nearest tests", "others of the room", "all others", "tests added")
COLUMNS = ("room", "faults", "equivalent", *KILLED, "killed, but for equivalent ones")


def report(results: dict) -> str:
    """The score by room, and the survivors, as Markdown."""
    # Those that were run.
    mutants = [m for m in results["mutants"] if m["survived"] or m["killed_by"]]
    lines = [_row(COLUMNS), _row(["---"] * len(COLUMNS))]
    for room in [*ROOMS, "all"]:
        mine = [m for m in mutants if room in ("all", m["room"])]
        same = sum(is_equivalent(m) for m in mine)
        killed = [_killed_by(m) for m in mine if m["killed_by"]]
        share = f"{len(killed)} ({len(killed) / max(len(mine) - same, 1):.0%})"
        lines.append(_row([room, len(mine), same, *map(killed.count, KILLED), share]))
    lines += ["", _row(["survivor", "change", "why"]), _row(["---"] * 3)]
    for m in mutants:
        if not m["killed_by"]:
            name = m["id"].partition(":")[0].rpartition("/")[2]
            lines.append(_row([f"`{name}`", f"`{m['diff']}`", m.get("why", "")]))
    return "\n".join(lines) + "\n"


def is_equivalent(mutant: dict) -> bool:
    """Whether it was read and found to change nothing."""
    return mutant.get("why", "").startswith(EQUIVALENT)


def _killed_by(mutant: dict) -> str:
    by = mutant["killed_by"]
    if by.get("added"):
        return KILLED[3]
    return {"near": KILLED[0], "room": KILLED[1]}.get(by["stage"], KILLED[2])


def _row(cells: Iterable[object]) -> str:
    shown = [str(cell).replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(shown)} |"
