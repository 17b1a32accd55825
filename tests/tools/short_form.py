"""What the short form of the tests leaves out; `--full` runs everything.

PyTorch compiles nothing, so there the short form is nearly everything. On JAX and
TensorFlow, where compilation takes most of the time, it leaves out

- modules that depend on no backend (`NO_BACKEND`),
- tests that name other backends: `@pytest.mark.short("jax", "torch")` is left out on
  TensorFlow, and `@pytest.mark.short()` everywhere,
- cases of tests marked `@pytest.mark.pairs`: a backend runs every value of every
  parameter, and each with as many others as that leaves room for. PyTorch runs all
  cases, so that all pairs of backends, families and options are run,
- tests of modules that ask for no backend (`SHARED`): JAX runs one quarter, TensorFlow
  another. Of more than two cases of one test, one of them runs one at least.

Whoever names a file gets all of its tests.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path

import pytest

ALL_PAIRS = "torch"
"""The backend that runs all cases in the short form, too."""
OTHERS = ("jax", "tensorflow")
NO_BACKEND = (
    "analysis/test_plots.py",
    "analysis/test_updates.py",
    "command_line",
    "evaluation/test_metrics.py",
    "exports",
    "faults/test_fault_files.py",
    "faults/test_fault_saves.py",
    "features/test_columns.py",
    "features/test_encoding.py",
    "features/test_feature.py",
    "features/test_languages.py",
    "features/test_schema.py",
    "files/test_adapter_file.py",
    "files/test_hub.py",
    "files/test_hub_handles.py",
    "files/test_update_from.py",
    "layers/test_einsum_split.py",
    "mixtures",
    "models/adapted/test_text_lengths.py",
    "models/adapted/test_tokenizer_paths.py",
    "models/test_targets.py",
    "project",
)
"""Files and folders of `tests` whose subject is plain Python, numpy and files."""
SHARED = (
    "_utils",
    "analysis",
    "callbacks",
    "evaluation",
    "families/test_traps.py",
    "families/test_two_towers.py",
    "faults/test_fault_numerics.py",
    "faults/test_fault_reports.py",
    "faults/test_fault_threads.py",
    "features/test_dropout.py",
    "features/test_missing.py",
    "features/test_scaling.py",
    "features/test_tensor_ids.py",
    "features/test_values.py",
    "files",
    "layers/test_einsum_dense.py",
    "layers/test_expert_kernel.py",
    "layers/test_factors.py",
    "layers/test_low_rank_layer.py",
    "layers/test_quantized.py",
    "layers/test_tables.py",
    "layers/test_token_rows.py",
    "models/adapted/test_arguments.py",
    "models/adapted/test_bad_input.py",
    "models/adapted/test_cut_texts.py",
    "models/adapted/test_example_order.py",
    "models/adapted/test_generation.py",
    "models/adapted/test_integer_values.py",
    "models/adapted/test_keras_saving.py",
    "models/adapted/test_model.py",
    "models/adapted/test_optimizer_advice.py",
    "models/adapted/test_own_inputs.py",
    "models/adapted/test_row_probe.py",
    "models/adapted/test_score.py",
    "models/adapted/test_state_trees.py",
    "models/adapted/test_token_weights.py",
    "models/adapted/test_trained_base.py",
    "models/adapted/test_weighted_values.py",
    "models/growing",
    "models/test_disable.py",
    "models/test_enable.py",
    "models/test_layer_ranks.py",
    "models/test_optimizers.py",
    "models/test_places.py",
    "models/test_restore.py",
    "models/test_share.py",
    "models/test_summary.py",
    "models/test_trainable_tokens.py",
    "models/test_whole_layers.py",
)
"""Of modules that compute by Keras alone: what these do is the same on each backend.

What is not, in such a file, names its backends by `@pytest.mark.short`.
"""


def names_files(arguments: Iterable[str]) -> bool:
    """Whether a command line asks for more particular tests than whole folders."""
    return any(not Path(argument).is_dir() for argument in arguments)


def covering(rows: Sequence[Mapping[str, Hashable]], first: str) -> list[int]:
    """Positions of rows that have all values next to all of `first` they occur with.

    Greedy: the row with most of these pairs that are new; of equals, the one with most
    new pairs of other values, then the one whose values were chosen least often.
    """
    # By name, since values of all kinds are not sorted.
    pairs = [
        {((a, row[a]), (b, row[b])) for a, b in itertools.combinations(sorted(row), 2)}
        for row in rows
    ]
    needed = [{p for p in found if first in (p[0][0], p[1][0])} for found in pairs]
    missing = set().union(*needed)
    new = set().union(*pairs)
    times: Counter[Hashable] = Counter()
    chosen: list[int] = []
    while missing:
        best = max(
            range(len(rows)),
            key=lambda i: (
                len(needed[i] & missing),
                len(pairs[i] & new),
                -sum(times[entry] for entry in rows[i].items()),
                -i,
            ),
        )
        missing -= needed[best]
        new -= pairs[best]
        times.update(rows[best].items())
        chosen.append(best)
    return sorted(chosen)


def left_out(items: list[pytest.Item], backend: str, tests: Path) -> set[pytest.Item]:
    """Which tests of a run the short form leaves out on a backend."""
    found: set[pytest.Item] = set()
    groups: dict[object, list[pytest.Item]] = {}
    shared: dict[object, list[pytest.Item]] = {}
    for item in items:
        short = item.get_closest_marker("short")
        pairs = item.get_closest_marker("pairs")
        if short is not None:
            if backend not in short.args:
                found.add(item)
        elif backend == ALL_PAIRS:
            continue
        elif _is_in(item, tests, NO_BACKEND):
            found.add(item)
        elif pairs is not None:
            group = pairs.args or (item.path, item.originalname)
            groups.setdefault(group, []).append(item)
        elif _is_in(item, tests, SHARED):
            shared.setdefault((item.path, item.originalname), []).append(item)
    for cases in groups.values():
        found |= set(cases) - _share(cases, backend)
    for cases in shared.values():
        found |= {case for case in cases if _runs_on(case, cases) != backend}
    return found


def _is_in(item: pytest.Item, tests: Path, chosen: Sequence[str]) -> bool:
    path = item.path.relative_to(tests)
    places = {path.as_posix(), *(parent.as_posix() for parent in path.parents)}
    return not places.isdisjoint(chosen)


def _runs_on(item: pytest.Item, cases: Sequence[pytest.Item]) -> str:
    """Where a case of a shared test runs: by its name, and by how many there are."""
    number = _number(item)
    # A test is not left to PyTorch with all of its many cases.
    alone = len(cases) > 2 and item is cases[0] and all(_number(c) & 2 for c in cases)
    return ALL_PAIRS if number & 2 and not alone else OTHERS[number & 1]


def _number(item: pytest.Item) -> int:
    """One that a test keeps."""
    place = f"{item.path.name}::{item.name}"
    return hashlib.blake2b(place.encode(), digest_size=1).digest()[0]


def _share(items: list[pytest.Item], backend: str) -> set[pytest.Item]:
    """Cases that a backend runs: others than the other one, as far as that goes."""
    cases = [(other, item) for item in items for other in OTHERS]
    rows = [{**_parameters(item), " backend": other} for other, item in cases]
    chosen = (cases[i] for i in covering(rows, " backend"))
    return {item for other, item in chosen if other == backend}


def _parameters(item: pytest.Item) -> dict[str, Hashable]:
    """The test, and its parameters: as the marker names them, or as pytest does."""
    found: dict[str, Hashable] = {" test": item.originalname}
    for marker in item.iter_markers("pairs"):
        found |= marker.kwargs
    if len(found) == 1:
        for name, value in item.callspec.params.items():
            found[name] = value if isinstance(value, Hashable) else id(value)
    return found
