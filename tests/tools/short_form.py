"""What the short form of the tests leaves out; `--full` runs everything.

PyTorch compiles nothing, so it runs every test in either form. On JAX and TensorFlow,
where compilation takes most of the time, a run of whole folders leaves out

- modules that depend on no backend (`NO_BACKEND`),
- tests marked for other backends: `@pytest.mark.short("jax")` runs on PyTorch and JAX,
- of a test marked `@pytest.mark.pairs`, cases whose pairs of parameters others cover.

Whoever names a file gets all of its tests.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

import pytest

ALL_TESTS = "torch"
"""The backend that runs every test in the short form, too."""
OTHERS = ("jax", "tensorflow")
NO_BACKEND = (
    "command_line",
    "evaluation/test_metrics.py",
    "features/test_encoding.py",
    "features/test_feature.py",
    "features/test_schema.py",
    "files/test_hub.py",
    "files/test_hub_handles.py",
    "mixtures",
    "project",
    "tools",
)
"""Files and folders of `tests` whose subject is plain Python, numpy and files."""


def names_files(arguments: Iterable[str]) -> bool:
    """Whether a command line asks for more particular tests than whole folders."""
    return any(not Path(argument).is_dir() for argument in arguments)


def covering(rows: Sequence[tuple[Hashable, ...]]) -> list[int]:
    """Positions of rows that together have every pair of entries that any row has.

    Greedy: the row with most pairs that are new; of equals, one whose first entry was
    chosen less often, then the first.
    """
    pairs = [set(itertools.combinations(enumerate(row), 2)) for row in rows]
    missing = set().union(*pairs)
    chosen: list[int] = []
    of_first: Counter[Hashable] = Counter()
    while missing:
        best = max(
            range(len(rows)),
            key=lambda i: (len(pairs[i] & missing), -of_first[rows[i][0]], -i),
        )
        missing -= pairs[best]
        of_first[rows[best][0]] += 1
        chosen.append(best)
    return sorted(chosen)


def _without_backend(item: pytest.Item, tests: Path) -> bool:
    path = item.path.relative_to(tests)
    places = {path.as_posix(), *(parent.as_posix() for parent in path.parents)}
    return not places.isdisjoint(NO_BACKEND)


def _one_of_pairs(items: list[pytest.Item], backend: str) -> set[pytest.Item]:
    """Cases of one test that run on a backend, so that the others cover the rest."""
    cases = [(of, item) for item in items for of in OTHERS]
    rows = [(of, *sorted(item.callspec.indices.items())) for of, item in cases]
    return {cases[i][1] for i in covering(rows) if cases[i][0] == backend}


def left_out(items: list[pytest.Item], backend: str, tests: Path) -> set[pytest.Item]:
    """Which tests of a run the short form leaves out on a backend."""
    if backend == ALL_TESTS:
        return set()
    found: set[pytest.Item] = set()
    by_test: dict[tuple[Path, str], list[pytest.Item]] = {}
    for item in items:
        mark = item.get_closest_marker("short")
        if mark is None and _without_backend(item, tests):
            found.add(item)
        elif mark is not None and backend not in mark.args:
            found.add(item)
        elif item.get_closest_marker("pairs") is not None:
            by_test.setdefault((item.path, item.originalname), []).append(item)
    for cases in by_test.values():
        found |= set(cases) - _one_of_pairs(cases, backend)
    return found
