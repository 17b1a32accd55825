"""The short form of the tests keeps every pair, and every backend's share of them."""

import itertools
from types import SimpleNamespace

import pytest
from helpers.places import TESTS
from tools import short_form


def pairs(rows):
    return {pair for row in rows for pair in itertools.combinations(enumerate(row), 2)}


@pytest.mark.parametrize("sizes", [(2, 3, 4), (2, 7, 1), (2, 2, 2, 3), (2, 5)])
def test_covering_has_every_pair_and_no_row_too_many(sizes):
    rows = list(itertools.product(*map(range, sizes)))
    chosen = short_form.covering(rows)
    assert chosen == sorted(set(chosen))
    assert pairs(rows[i] for i in chosen) == pairs(rows)
    if sizes == (2, 3, 4):
        # No fewer than 12 can have all pairs of the last two.
        assert len(chosen) == 12


def test_covering_keeps_to_the_rows_that_there_are():
    rows = [("jax", 0, "a"), ("jax", 1, "b"), ("torch", 0, "b")]
    assert short_form.covering(rows) == [0, 1, 2]
    assert short_form.covering([]) == []


def test_covering_shares_the_rows_out():
    rows = list(itertools.product(["jax", "tensorflow"], range(4), range(5)))
    chosen = [rows[i][0] for i in short_form.covering(rows)]
    assert abs(chosen.count("jax") - chosen.count("tensorflow")) <= 1


class Item(SimpleNamespace):
    __hash__ = object.__hash__
    __eq__ = object.__eq__

    def get_closest_marker(self, name):
        return self.marks.get(name)


def item(file, name="test_a", indices=None, **marks):
    marks = {key: SimpleNamespace(args=args) for key, args in marks.items()}
    callspec = SimpleNamespace(indices=indices or {})
    return Item(
        path=TESTS / file, name=name, originalname=name, marks=marks, callspec=callspec
    )


def test_what_depends_on_no_backend_runs_on_one():
    plain = item("mixtures/test_mixture.py")
    file = item("files/test_hub.py")
    kept = item("mixtures/test_mixture.py", short=("jax", "torch"))
    model = item("models/test_enable.py")
    elsewhere = item("models/test_enable.py", short=("torch",))
    items = [plain, file, kept, model, elsewhere]
    assert short_form.left_out(items, "torch", TESTS) == set()
    found = short_form.left_out(items, "jax", TESTS)
    assert found == {plain, file, elsewhere}
    assert short_form.left_out(items, "tensorflow", TESTS) == found | {kept}


def test_two_backends_share_the_pairs_of_a_test():
    items = [
        item("models/test_enable.py", pairs=(), indices={"a": a, "b": b})
        for a, b in itertools.product(range(4), range(3))
    ]
    left = {b: short_form.left_out(items, b, TESTS) for b in short_form.OTHERS}
    run = {backend: set(items) - out for backend, out in left.items()}
    assert run["jax"] | run["tensorflow"] == set(items)
    for chosen in run.values():
        assert len(chosen) <= 7
        assert {i.callspec.indices["a"] for i in chosen} == set(range(4))
        assert {i.callspec.indices["b"] for i in chosen} == set(range(3))


def test_a_named_file_is_run_whole():
    folder, file = str(TESTS), str(TESTS / "conftest.py")
    assert not short_form.names_files([folder])
    assert short_form.names_files([folder, file])
    assert short_form.names_files([f"{file}::test_a"])


@pytest.mark.parametrize("place", short_form.NO_BACKEND)
def test_what_depends_on_no_backend_is_there(place):
    assert (TESTS / place).exists()
