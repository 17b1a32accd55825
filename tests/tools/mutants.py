"""Mutants: small changes of the package's sources that some test should notice.

`draw` picks them by seed. What no test is meant to hold is never changed: docstrings
and all other texts, annotations, decorators, what a `raise` says, `__all__`.
"""

from __future__ import annotations

import ast
import bisect
import dataclasses
import functools
import random
import re
from pathlib import Path

ROOMS = ("features", "layers", "models", "files", "exports", "mixtures")
LEAST = 15
"""Mutants of each room, at least."""
COMPARISONS = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: (r"is\s+not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: (r"not\s+in", "in"),
}
ARITHMETIC = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
}
HARMLESS = {"maxsize", "stacklevel", "strict"}
"""Keyword arguments that change nothing that a test should hold."""
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        path: The file, from the root of the project.
        line: Where the change begins, from 1.
        column: Where in that line, in bytes from 0.
        operator: What is changed.
        start: Where in the file, in bytes.
        end: Where the old text ends.
        new: The new text.
        statement: The innermost statement of a function that has to be reached for
            the change to have an effect, see `key_of`; of a default, the function;
            None for what runs on import.
    """

    path: str
    line: int
    column: int
    operator: str
    start: int
    end: int
    new: str
    statement: str | None

    @property
    def id(self) -> str:
        return f"{self.path}:{self.line}:{self.column}:{self.operator}"

    @property
    def room(self) -> str:
        return self.path.split("/")[1]

    def apply(self, source: bytes) -> bytes:
        """The changed source."""
        return source[: self.start] + self.new.encode() + source[self.end :]

    def diff(self, source: bytes) -> str:
        """The first line of the change, before and after."""
        before = source.splitlines()[self.line - 1].decode().strip()
        after = self.apply(source).splitlines()[self.line - 1].decode().strip()
        return f"{before} -> {after}"


def key_of(path: str, node: ast.AST) -> str:
    """Names a statement, or a function, by where it begins."""
    return f"{path}:{node.lineno}"


def mutants_of(path: str, source: bytes) -> list[Mutant]:
    """All mutants of a file, in its order."""
    finder = _Finder(path, source)
    finder.visit(ast.parse(source))
    distinct = {(m.start, m.end, m.new): m for m in reversed(finder.found)}
    order = {mutant: i for i, mutant in enumerate(finder.found)}
    return sorted(distinct.values(), key=lambda m: (m.start, order[m]))


def changes(mutant: Mutant, source: bytes) -> bool:
    """Whether a mutant can be compiled, and means something else."""
    after = mutant.apply(source)
    try:
        compile(after, mutant.path, "exec")
    except SyntaxError:
        return False
    return ast.dump(ast.parse(after)) != _meaning(source)


def draw(root: Path, count: int, seed: int) -> list[Mutant]:
    """Draws mutants from all rooms, in proportion to their lines.

    Of every room at least `LEAST`, or as many as `count` has for each. Their order is
    drawn, too: where a run is ended early, those that it has met are a fair sample.
    """
    files = {
        room: {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in sorted((root / "keras_flix" / room).rglob("*.py"))
        }
        for room in ROOMS
    }
    lines = {
        room: sum(len(source.splitlines()) for source in sources.values())
        for room, sources in files.items()
    }
    chosen = []
    for room, share in shares(lines, count).items():
        sources = files[room]
        all_of_room = [m for path in sources for m in mutants_of(path, sources[path])]
        random.Random(f"{seed} {room}").shuffle(all_of_room)
        valid = (m for m in all_of_room if changes(m, sources[m.path]))
        chosen += [mutant for mutant, _ in zip(valid, range(share))]
    random.Random(f"{seed} order").shuffle(chosen)
    return chosen


def shares(lines: dict[str, int], count: int) -> dict[str, int]:
    """How many of `count` come from each room."""
    least = min(LEAST, count // len(lines))
    result = dict.fromkeys(lines, least)
    for _ in range(count - least * len(lines)):
        # To the room that is furthest below its proportion.
        room = max(lines, key=lambda r: lines[r] / (result[r] + 1))
        result[room] += 1
    return result


class _Finder(ast.NodeVisitor):
    """Walks a file and collects its mutants."""

    def __init__(self, path: str, source: bytes) -> None:
        self.path = path
        self.source = source
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.in_function = False
        self.statement: str | None = None
        self.found: list[Mutant] = []

    def span(self, node: ast.AST) -> tuple[int, int]:
        start = self.starts[node.lineno - 1] + node.col_offset
        return start, self.starts[node.end_lineno - 1] + node.end_col_offset

    def add(self, operator: str, start: int, end: int, new: str) -> None:
        line = bisect.bisect_right(self.starts, start) - 1
        column = start - self.starts[line]
        self.found.append(
            Mutant(
                self.path, line + 1, column, operator, start, end, new, self.statement
            )
        )

    def replace(self, node: ast.AST, operator: str, new: str) -> None:
        self.add(operator, *self.span(node), new)

    def swap(
        self, left: ast.AST, right: ast.AST, operator: str, old: str, new: str
    ) -> None:
        """Replaces the sign between two operands; `old` is a regular expression."""
        start, end = self.span(left)[1], self.span(right)[0]
        match = re.search(old.encode(), self.source[start:end])
        if match:
            self.add(operator, start + match.start(), start + match.end(), new)

    def visit(self, node: ast.AST) -> None:
        outer = self.statement
        if self.in_function and isinstance(node, ast.stmt):
            self.statement = key_of(self.path, node)
        super().visit(node)
        self.statement = outer

    # What is left as it is.

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass

    def visit_Raise(self, node: ast.Raise) -> None:
        pass

    def visit_Assert(self, node: ast.Assert) -> None:
        self.visit(node.test)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        if not any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for statement in node.body:
            self.visit(statement)

    # What is changed.

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        outer, self.in_function = self.in_function, True
        self.statement = key_of(self.path, node)
        for default in [*node.args.defaults, *node.args.kw_defaults]:
            if isinstance(default, ast.Constant) and isinstance(default.value, str):
                self.replace(default, "default", '"mutant"')
            elif isinstance(default, ast.Tuple) and default.elts:
                self.replace(default, "default", "()")
            elif default is not None:
                self.visit(default)
        for statement in node.body:
            self.visit(statement)
        self.in_function = outer

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Compare(self, node: ast.Compare) -> None:
        operands = [node.left, *node.comparators]
        for left, operator, right in zip(operands, node.ops, operands[1:]):
            self.swap(left, right, "comparison", *COMPARISONS[type(operator)])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        signs = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:]):
            self.swap(left, right, "and/or", *signs)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            start, end = self.span(node)[0], self.span(node.operand)[0]
            match = re.match(rb"not\s*", self.source[start:end])
            self.add("not", start, start + match.end(), "")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        texts = (ast.JoinedStr, ast.List, ast.Tuple)
        text = any(
            isinstance(operand, texts)
            or isinstance(operand, ast.Constant)
            and isinstance(operand.value, str)
            for operand in (node.left, node.right)
        )
        if type(node.op) in ARITHMETIC and not text:
            old, new = ARITHMETIC[type(node.op)]
            self.swap(node.left, node.right, "arithmetic", re.escape(old), new)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.op, (ast.Add, ast.Sub)):
            old, new = ARITHMETIC[type(node.op)]
            self.swap(node.target, node.value, "arithmetic", rf"\{old}=", f"{new}=")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self.replace(node, "boolean", str(not node.value))
        elif isinstance(node.value, (int, float)):
            self.replace(node, "number + 1", repr(node.value + 1))
            self.replace(node, "number - 1", repr(node.value - 1))

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is not None and not _is_none(node.value):
            self.replace(node, "return", "return None")
            self.visit(node.value)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Call):
            self.replace(node, "call", "pass")
        self.generic_visit(node)

    def visit_If(self, node: ast.If | ast.IfExp) -> None:
        if "TYPE_CHECKING" in ast.dump(node.test):
            return
        self.replace(node.test, "if True", "True")
        self.replace(node.test, "if False", "False")
        self.generic_visit(node)

    visit_IfExp = visit_If

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for condition in node.ifs:
            self.replace(condition, "if True", "True")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        for keyword in node.keywords:
            if keyword.arg is not None and keyword.arg not in HARMLESS:
                start, end = self.span(keyword)
                after = re.match(rb"\s*,[ ]?", self.source[end:])
                before = re.search(rb",\s*$", self.source[:start])
                if after:
                    end += after.end()
                elif before:
                    start = before.start()
                self.add("keyword", start, end, "")
        self.generic_visit(node)

    def visit_Slice(self, node: ast.Slice) -> None:
        for bound in (node.lower, node.upper):
            if bound is not None:
                self.replace(bound, "slice", "")
        self.generic_visit(node)


@functools.lru_cache(maxsize=256)
def _meaning(source: bytes) -> str:
    return ast.dump(ast.parse(source))


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
