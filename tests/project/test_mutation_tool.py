"""The mutants of the mutation run: what is changed, what never is, what is drawn."""

import ast
import builtins
import collections
import importlib
import json
from pathlib import Path

import pytest
from tools.mutants import ROOMS, changes, draw, mutants_of, shares

import keras_flix

ROOT = Path(keras_flix.__file__).parents[1]


def mutations(source):
    """What each operator makes of a source, by operator."""
    made = collections.defaultdict(list)
    text = source.encode()
    for mutant in mutants_of("keras_flix/models/a.py", text):
        assert changes(mutant, text)
        made[mutant.operator].append(mutant.apply(text).decode())
    return dict(made)


@pytest.mark.parametrize(
    "operator, source, expected",
    [
        ("comparison", "a < b", ["a <= b"]),
        ("comparison", "a <= b < c", ["a < b < c", "a <= b <= c"]),
        ("comparison", "a > b", ["a >= b"]),
        ("comparison", "a >= b", ["a > b"]),
        ("comparison", "a == b", ["a != b"]),
        ("comparison", "a != (b)", ["a == (b)"]),
        ("comparison", "a is b", ["a is not b"]),
        ("comparison", "a is not b", ["a is b"]),
        ("comparison", "inner in b", ["inner not in b"]),
        ("comparison", "a not in b", ["a in b"]),
        ("and/or", "a and b and c", ["a or b and c", "a and b or c"]),
        ("and/or", "(a) or b", ["(a) and b"]),
        ("not", "a = not b", ["a = b"]),
        ("not", "a = not(b)", ["a = (b)"]),
        ("arithmetic", "a + b", ["a - b"]),
        ("arithmetic", "a - b", ["a + b"]),
        ("arithmetic", "a * b", ["a / b"]),
        ("arithmetic", "a / b", ["a * b"]),
        ("arithmetic", "a // b", ["a * b"]),
        ("arithmetic", "a % b", ["a * b"]),
        ("arithmetic", "a += b", ["a -= b"]),
        ("number + 1", "a = 2", ["a = 3"]),
        ("number - 1", "a = 0.5", ["a = -0.5"]),
        ("boolean", "a = True", ["a = False"]),
        ("return", "def f():\n    return g(\n        1)", None),
        ("call", "f(a)(\n    b)\nc = 1", ["pass\nc = 1"]),
        ("if True", "if a: b", ["if True: b"]),
        ("if False", "a if b else c", ["a if False else c"]),
        ("if True", "[a for a in b if c]", ["[a for a in b if True]"]),
        ("default", "def f(a='b'): pass", ['def f(a="mutant"): pass']),
        ("default", "def f(*, a=(b, c)): pass", ["def f(*, a=()): pass"]),
        ("keyword", "f(a, b=c, **d)", ["f(a, **d)"]),
        ("keyword", "f(a, b=c)", ["f(a)"]),
        ("keyword", "f(\n    b=(c),\n)", ["f(\n    \n)"]),
        ("slice", "a[b:c]", ["a[:c]", "a[b:]"]),
    ],
)
def test_what_an_operator_makes(operator, source, expected):
    if operator == "return":
        expected = ["def f():\n    return None"]
    assert mutations(source)[operator] == expected


@pytest.mark.parametrize(
    "source",
    [
        '"""One, 2 and not 3."""',
        "def f(a: Literal[1] = None) -> Literal[2]:\n    'a < b'",
        "class A(B, metaclass=C):\n    a: Literal[1]",
        "if TYPE_CHECKING:\n    a = 1",
        "if typing.TYPE_CHECKING:\n    a = 1",
        "@decorated(frozen=True)\ndef f(): pass",
        "raise ValueError(a + 1, b=not c)",
        "a = f'{b + 1} {c[1:]}'",
        "assert a, b + 1",
        "__all__ = sorted(a, key=b)",
        "a = 'b' + c",
        "def f():\n    return None",
        "return_ = zip(a, b, strict=c)",
    ],
)
def test_what_is_never_changed(source):
    assert mutations(source) == {}


def test_a_mutant_tells_its_place():
    source = "# é\ndef f(a):\n    é = 'é'; return a < 1\n".encode()
    by_operator = {m.operator: m for m in mutants_of("keras_flix/files/b.py", source)}
    mutant = by_operator["comparison"]
    assert mutant.id == "keras_flix/files/b.py:3:24:comparison"
    assert mutant.room == "files"
    assert mutant.statement == "keras_flix/files/b.py:3"
    assert mutant.diff(source) == "é = 'é'; return a < 1 -> é = 'é'; return a <= 1"


def test_the_statement_that_has_to_be_reached():
    source = (
        b"A = 1\nclass B:\n    c = 2\n    def d(e=3):\n        if 4:\n            5\n"
    )
    found = {
        source[m.start : m.end]: m.statement for m in mutants_of("a/b/c.py", source)
    }
    # A default is used where the function is entered; what runs on import, always.
    line = "a/b/c.py:{}".format
    assert found == {
        **{b"1": None, b"2": None},
        **{b"3": line(4), b"4": line(5), b"5": line(6)},
    }


@pytest.fixture
def part(monkeypatch):
    """Imports a part of the tool as it does itself, which runs as a script."""
    monkeypatch.syspath_prepend(ROOT / "tests" / "tools")
    return importlib.import_module


@pytest.fixture
def entered(part):
    return part("entered")


def test_what_a_statement_tells(entered, monkeypatch):
    source = b"def f(a):\n    'Text.'\n    if a:\n        return 1\n    return 2\n"
    watched = {"a/b.py:4": ["one"], "a/b.py:1": ["entered"], "a/b.py": ["file"]}
    told = []
    monkeypatch.setattr(
        builtins, "__entered__", lambda *k: told.extend(k), raising=False
    )
    space = {}
    exec(compile(entered.telling("a/b.py", source, watched), "b.py", "exec"), space)
    assert space["f"].__doc__ == "Text."
    assert (space["f"](True), told) == (1, ["file", "entered", "one"])


@pytest.mark.parametrize(
    "source",
    [
        "from a.b import c",
        "def f():\n    from a import b",
        "import a.b",
        "from a.b.c import d, e",
    ],
)
def test_what_a_file_imports_from(entered, source):
    file = "a/b/c.py" if "c import" in source else "a/b.py"
    assert file in entered.imported(ast.parse(source))


@pytest.mark.parametrize("count", [20, 90, 160, 1000])
def test_every_room_has_its_share(count):
    lines = {"a": 1000, "b": 10, "c": 100}
    found = shares(lines, count)
    assert sum(found.values()) == count
    assert min(found.values()) >= min(15, count // 3)
    assert found["a"] >= found["c"] >= found["b"]


@pytest.fixture(scope="module")
def drawn():
    return draw(ROOT, 160, seed=0)


def test_all_rooms_are_drawn_from(drawn):
    by_room = collections.Counter(mutant.room for mutant in drawn)
    assert sum(by_room.values()) == len({mutant.id for mutant in drawn}) == 160
    assert set(by_room) == set(ROOMS)
    assert min(by_room.values()) >= 15


@pytest.mark.slow
def test_drawn_mutants_are_other_programs(drawn):
    for mutant in drawn:
        before = (ROOT / mutant.path).read_bytes()
        after = mutant.apply(before)
        compile(after, mutant.path, "exec")
        assert ast.dump(ast.parse(after)) != ast.dump(ast.parse(before))


@pytest.mark.slow
def test_a_seed_draws_the_same():
    first, again, other = (draw(ROOT, 18, seed) for seed in (0, 0, 1))
    assert first == again
    assert {m.id for m in first} != {m.id for m in other}


def test_equivalent_mutants_need_not_be_killed(part):
    def mutant(stage=None, **more):
        by = stage and {"stage": stage, "test": "t", **more.pop("by", {})}
        shown = {"id": "a/files/b.py:1:0:call", "room": "files", "diff": "f(a | b)"}
        return {**shown, "killed_by": by, "survived": ["near"], **more}

    mutants = [
        *(mutant("near"), mutant("room"), mutant("rooms"), mutant("fast")),
        *(mutant("room", by={"added": True}), mutant()),
        *(mutant(why="equivalent: the same"), mutant(survived=[])),
    ]
    lines = part("mutation_report").report({"mutants": mutants}).splitlines()
    assert "| files | 7 | 1 | 1 | 1 | 2 | 1 | 5 (83%) |" in lines
    assert lines[-2:] == [
        "| `b.py` | `f(a \\| b)` |  |",
        "| `b.py` | `f(a \\| b)` | equivalent: the same |",
    ]


def test_the_stored_run_is_whole_and_shown(part):
    path = ROOT / "benchmarks" / "results" / "mutation.json"
    results = json.loads(path.read_text())
    assert len(results["mutants"]) == results["count"]
    for mutant in results["mutants"]:
        assert mutant["killed_by"] or mutant["why"], mutant["id"]
    guide = (ROOT / ".github" / "CONTRIBUTING.md").read_text()
    assert part("mutation_report").report(results) in guide
