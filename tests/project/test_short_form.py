"""The short form of the tests keeps every pair, and every backend's share of them."""

import importlib
import itertools
import re
from types import SimpleNamespace

import pytest
from helpers.places import ROOT, TESTS
from tools import short_form


def product(**axes):
    """All rows of the given values."""
    return [dict(zip(axes, values)) for values in itertools.product(*axes.values())]


def by_backend(rows):
    return {(row["backend"], entry) for row in rows for entry in row.items()}


@pytest.mark.parametrize("sizes", [(3, 4), (7, 1), (2, 2, 3), (5,)])
def test_covering_has_every_value_for_every_backend_and_no_row_too_many(sizes):
    axes = {"abc"[i]: range(size) for i, size in enumerate(sizes)}
    rows = product(backend=["jax", "tensorflow"], **axes)
    chosen = [rows[i] for i in short_form.covering(rows, "backend")]
    assert by_backend(chosen) == by_backend(rows)
    assert len(chosen) == 2 * max(sizes)


def test_covering_keeps_to_the_rows_that_there_are():
    rows = [
        {"backend": "jax", "a": 0, "b": 0},
        {"backend": "jax", "a": 1, "b": 1},
        {"backend": "jax", "a": 0, "b": 1},
        {"backend": "torch", "a": 0},
    ]
    assert short_form.covering(rows, "backend") == [0, 1, 3]
    assert short_form.covering([], "backend") == []


def test_covering_gives_backends_different_pairs_and_shares_values_out():
    rows = product(backend=["jax", "tensorflow"], number=range(6), letter="abc")
    chosen = [rows[i] for i in short_form.covering(rows, "backend")]
    assert len(chosen) == len({(row["number"], row["letter"]) for row in chosen}) == 12
    for backend in ("jax", "tensorflow"):
        letters = [row["letter"] for row in chosen if row["backend"] == backend]
        assert sorted(letters) == list("aabbcc")


class Item(SimpleNamespace):
    """A test, as far as pytest's tests are looked at."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__

    def iter_markers(self, name):
        return iter([self.marks[name]] if name in self.marks else [])

    def get_closest_marker(self, name):
        return self.marks.get(name)


def item(file, name="test_a", params=None, group=None, **marks):
    return Item(
        path=TESTS / file,
        name=name,
        originalname=group or name,
        callspec=SimpleNamespace(params=params or {}),
        marks={
            key: SimpleNamespace(
                args=tuple(x for x in values if not isinstance(x, dict)),
                kwargs=dict(
                    x for d in values if isinstance(d, dict) for x in d.items()
                ),
            )
            for key, values in marks.items()
        },
    )


def test_what_depends_on_no_backend_runs_on_one():
    plain = item("mixtures/test_mixture.py")
    file = item("files/test_hub.py")
    kept = item("mixtures/test_mixture.py", short=("jax", "torch"))
    model = item("models/adapted/test_train_step.py")
    elsewhere = item("models/adapted/test_train_step.py", short=("torch",))
    in_full = item("models/adapted/test_train_step.py", short=())
    items = [plain, file, kept, model, elsewhere, in_full]
    assert short_form.left_out(items, "torch", TESTS) == {in_full}
    found = short_form.left_out(items, "jax", TESTS)
    assert found == {plain, file, elsewhere, in_full}
    assert short_form.left_out(items, "tensorflow", TESTS) == found | {kept}


def test_backends_share_the_cases_of_a_test():
    items = [
        item("models/test_enable.py", pairs=(), params={"a": a, "b": b})
        for a, b in itertools.product(range(4), range(3))
    ]
    assert short_form.left_out(items, "torch", TESTS) == set()
    run = [set(items) - short_form.left_out(items, b, TESTS) for b in short_form.OTHERS]
    assert not run[0] & run[1]
    for chosen in run:
        assert {i.callspec.params["a"] for i in chosen} == set(range(4))
        assert {i.callspec.params["b"] for i in chosen} == set(range(3))
        assert len(chosen) == 4


def test_tests_of_a_group_are_shared_by_the_parameters_that_they_name():
    families = "ABCDEF"
    items = [
        item("models/test_enable.py", name, pairs=("families", {"family": family}))
        for name in ("test_a", "test_b", "test_c")
        for family in families
    ]
    run = [set(items) - short_form.left_out(items, b, TESTS) for b in short_form.OTHERS]
    assert not run[0] & run[1]
    for chosen in run:
        found = [i.marks["pairs"].kwargs["family"] for i in chosen]
        assert sorted(found) == list(families)
        names = [i.originalname for i in chosen]
        assert sorted(names) == sorted(["test_a", "test_b", "test_c"] * 2)


def test_backends_share_the_tests_of_what_asks_for_no_backend():
    items = [
        item("models/growing/test_blend.py", f"test_{i}", {"a": i}) for i in range(200)
    ]
    two = item("models/growing/test_blend.py", short=("jax", "tensorflow"))
    own = item("models/adapted/test_train_step.py")
    assert short_form.left_out([*items, two, own], "torch", TESTS) == {two}
    run = [
        {*items, two, own} - short_form.left_out([*items, two, own], b, TESTS)
        for b in short_form.OTHERS
    ]
    assert run[0] & run[1] == {two, own}
    assert all(35 < len(chosen) < 65 for chosen in run)
    # Others that come or go change nothing.
    half = items[::2]
    again = set(half) - short_form.left_out(half, "jax", TESTS)
    assert again == run[0] & set(half)


def test_of_many_cases_each_backend_runs_some():
    items = [
        item("models/growing/test_blend.py", f"test[{i}]", {"a": i}, group="test")
        for i in range(300)
    ]
    run = [set(items) - short_form.left_out(items, b, TESTS) for b in short_form.OTHERS]
    assert not run[0] & run[1]
    assert all(55 < len(chosen) < 95 for chosen in run)
    # Not even of few cases are all left to PyTorch.
    for i in range(0, 300, 3):
        few = items[i : i + 3]
        out = [short_form.left_out(few, b, TESTS) for b in short_form.OTHERS]
        assert out[0] & out[1] < set(few)


def test_modules_with_a_way_of_their_own_per_backend_are_not_shared():
    asks = re.compile(
        r"config\.backend\(\)|^\s+(?:import|from) (?:jax|tensorflow)\b", re.M
    )
    package = ROOT / "keras_flix"
    found = [p for p in package.rglob("*.py") if asks.search(p.read_text())]
    paths = [path.relative_to(package) for path in found]
    tests = [path.with_name(f"test_{path.name}").as_posix() for path in paths]
    assert len(tests) > 10
    assert [name for name in tests if name.startswith(short_form.SHARED)] == []


def test_a_named_file_is_run_whole():
    folder, file = str(TESTS), str(TESTS / "conftest.py")
    assert not short_form.names_files([folder])
    assert short_form.names_files([folder, file])
    assert short_form.names_files([f"{file}::test_a"])


def test_core_tests_of_other_versions_are_shared_out_by_backend(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "tools")
    tool = importlib.import_module("next_versions")
    monkeypatch.chdir(ROOT)
    new = [chosen[: chosen.index("-k")] for chosen in tool.NEW.values()]
    for folders in (tool.core_tests.CORE, *new):
        assert folders and not short_form.names_files(folders)


@pytest.mark.parametrize("place", [*short_form.NO_BACKEND, *short_form.SHARED])
def test_what_depends_on_no_backend_is_there(place):
    assert (TESTS / place).exists()
