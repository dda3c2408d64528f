"""Small changes of the reference answers, to learn whether the tests notice them.

A test suite is as good as the wrong answers it rejects. The misconceptions are those that learners write; here
are those that nobody thought of: every operator, constant, axis, argument, call and statement of every answer,
changed one at a time. A change that no test notices is either equivalent to the answer, and then listed with the
misconceptions, or a hole in the tests.
"""

import ast
import copy
import difflib
import hashlib
import inspect
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from autograder import engine
from autograder.examiner import alike
from autograder.loader import find_exercise, load
from autograder.misconceptions import Equivalent, equivalents, examples
from autograder.sandbox import Isolation
from autograder.source import ROOT, Exercise
from lab.seeds import generator

__all__ = ["Found", "Mutant", "differs", "is_recorded", "mutants", "record", "try_all"]

OTHER_OPERATORS: dict[type, tuple[type, ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Div,),
    ast.Mod: (ast.FloorDiv,),
    ast.Pow: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.LShift: (ast.RShift,),
    ast.RShift: (ast.LShift,),
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
}
# Swapping two arguments of these changes nothing, by their definition.
COMMUTE = {"max", "min", "swapaxes", "transpose"}
TOGETHER = 20  # mutants that one pair of processes is given at a time
ORDER_MATTERS = (ast.Sub, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.MatMult)


@dataclass(frozen=True)
class Mutant:
    """One change of one part.

    Attributes:
        part: the solution cell.
        source: the whole cell with the change in it.
        before: the lines of the answer that the change touches, as ``ast.unparse`` writes them.
        after: what stands there instead.
    """

    part: str
    source: str
    before: str
    after: str


def mutants(exercise: Exercise) -> list[Mutant]:
    """Every small change of every answer of an exercise, each text once."""
    found: dict[tuple[str, str], Mutant] = {}
    for part in exercise.parts:
        tree = ast.parse(exercise.cell(part).source)
        original = ast.unparse(tree)
        for changed in _changes(tree):
            source = ast.unparse(changed)
            if source != original and (part, source) not in found:
                before, after = _difference(original, source)
                found[part, source] = Mutant(part, source, before, after)
    return list(found.values())


@dataclass(frozen=True)
class Found:
    """What the tests of an exercise make of every small change of its answers.

    Attributes:
        mutants: how many there are.
        equivalent: how many of them no test notices and the bank lists as equivalent.
        unnoticed: those which no test notices and nobody has listed.
        noticed_after_all: listed as equivalent, and yet noticed by a test, or no mutant at all.
        different: listed as equivalent, with an input for which they are not (:func:`differs`).
    """

    mutants: int
    equivalent: int
    unnoticed: list[Mutant]
    noticed_after_all: list[Equivalent]
    different: list[tuple[Equivalent, int]]

    @property
    def clean(self) -> bool:
        """Whether every change is noticed, or left the answer right."""
        return not (self.unnoticed or self.noticed_after_all or self.different)


def try_all(
    exercise: Exercise,
    isolation: Isolation = "sandbox",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Found:
    """Puts every mutant of an exercise through the tests of its part, on all processors.

    Raises:
        GradingFailed: the grader itself failed.
        SandboxMissing: no sandbox can be made here.
    """
    tried = mutants(exercise)
    parts = [tried[start : start + TOGETHER] for start in range(0, len(tried), TOGETHER)]
    jobs = [[{"part": m.part, "source": m.source} for m in part] for part in parts]
    known = equivalents(exercise.era, exercise.name)
    unnoticed: list[Mutant] = []
    with ProcessPoolExecutor(os.cpu_count() or 1) as pool:
        names = itertools.repeat((exercise.era, exercise.name))
        results = pool.map(_notice, names, jobs, itertools.repeat(isolation))
        for done, (part, noticed) in enumerate(zip(parts, results, strict=True), start=1):
            unnoticed += [m for m, test in zip(part, noticed, strict=True) if not test]
            progress(min(done * TOGETHER, len(tried)), len(tried))
        listed = {_change(e): e for e in known}
        suspects = [m for m in tried if _change(m) in listed]
        seeds = list(pool.map(differs, itertools.repeat(exercise), suspects))
    found = {_change(m) for m in unnoticed}
    return Found(
        mutants=len(tried),
        equivalent=len(found & listed.keys()),
        unnoticed=[m for m in unnoticed if _change(m) not in listed],
        noticed_after_all=[e for key, e in listed.items() if key not in found],
        different=[
            (listed[_change(m)], seed)
            for m, seed in zip(suspects, seeds, strict=True)
            if seed is not None
        ],
    )


def differs(exercise: Exercise, mutant: Mutant, inputs: int = 10_000) -> int | None:
    """The first of many random inputs on which a change makes a difference; ``None`` if none does."""
    example = examples(exercise.era, exercise.name)[mutant.part]
    right, changed = load(exercise), load(exercise, {mutant.part: mutant.source})
    for seed in range(inputs):
        one, other = (example(answers, generator(seed)) for answers in (right, changed))
        if not alike(one, other):
            return seed
    return None


def record(exercise: Exercise, found: Found) -> None:
    """Keeps that an exercise was tried as it is now, so that nobody need try it again before it changes."""
    about = {"mutants": found.mutants, "equivalent": found.equivalent, "of": _key(exercise)}
    _record_of(exercise).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def is_recorded(exercise: Exercise) -> bool:
    """Whether the exercise was tried as it is now."""
    path = _record_of(exercise)
    return path.is_file() and json.loads(path.read_text(encoding="utf-8"))["of"] == _key(exercise)


def _change(mutant: Mutant | Equivalent) -> tuple[str, str, str]:
    """What a mutant and its entry in the bank have in common."""
    return mutant.part, mutant.before, mutant.after


def _notice(name: tuple[str, str], changes: list[dict], isolation: Isolation) -> list[str]:
    return engine.default(isolation).notice(find_exercise(*name), changes)


def _record_of(exercise: Exercise) -> Path:
    folder = ROOT / "autograder" / "misconceptions" / exercise.era
    return folder / f"{exercise.name}.mutants.json"


def _key(exercise: Exercise) -> str:
    """A hash of all that the outcome depends on: answers, tests, what is listed, and the changes made here."""
    code = [
        [cell.kind, cell.name, cell.source]
        for cell in exercise.cells
        if cell.kind in ("given", "solution", "test")
    ]
    bank = _record_of(exercise).with_name(f"{exercise.name}.py").read_text(encoding="utf-8")
    changes = inspect.getsource(sys.modules[__name__])
    return hashlib.sha256(json.dumps([code, bank, changes]).encode()).hexdigest()


def _changes(tree: ast.Module) -> Iterator[ast.Module]:
    """Copies of the tree with one node replaced each."""
    spared = _annotations(tree) | _documentation(tree) | _messages(tree)
    nodes = list(ast.walk(tree))
    for number, node in enumerate(nodes):
        if id(node) in spared:
            continue
        for change in CHANGES:
            for replacement in change(node):
                yield _with(tree, number, replacement)


def _with(tree: ast.Module, number: int, replacement: ast.AST) -> ast.Module:
    """A copy of the tree in which the node of this number (in the order of ``ast.walk``) is another."""
    changed = copy.deepcopy(tree)
    old = list(ast.walk(changed))[number]

    class Replace(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> ast.AST:
            return copy.deepcopy(replacement) if node is old else self.generic_visit(node)

    return ast.fix_missing_locations(Replace().visit(changed))


def _annotations(tree: ast.Module) -> set[int]:
    """Types are not checked when an answer runs."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.returns:
            found.append(node.returns)
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation:
            found.append(node.annotation)
    return {id(inner) for outer in found for inner in ast.walk(outer)}


def _documentation(tree: ast.Module) -> set[int]:
    """Texts that stand alone say something to readers and do nothing."""
    return {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for inner in ast.walk(node)
    }


def _messages(tree: ast.Module) -> set[int]:
    """What an error says is the answer's own; that it is raised, and as what, is not."""
    return {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
        for argument in node.exc.args
        for inner in ast.walk(argument)
    }


def _difference(original: str, changed: str) -> tuple[str, str]:
    before, after = [], []
    for line in difflib.ndiff(original.splitlines(), changed.splitlines()):
        if line.startswith("- "):
            before.append(line[2:].strip())
        elif line.startswith("+ "):
            after.append(line[2:].strip())
    return "\n".join(before), "\n".join(after)


# -- the changes: each takes a node and gives what may stand in its place -----------------------------------


def _operators(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp):
        for other in OTHER_OPERATORS.get(type(node.op), ()):
            yield _altered(node, op=other())
    elif isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            for other in OTHER_OPERATORS.get(type(operator), ()):
                yield _altered(node, ops=[*node.ops[:place], other(), *node.ops[place + 1 :]])
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.Invert):
        yield node.operand


def _constants(node: ast.AST) -> Iterator[ast.AST]:
    if not isinstance(node, ast.Constant):
        return
    value = node.value
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, int):
        yield from (ast.Constant(value + 1), ast.Constant(value - 1))
    elif isinstance(value, float):
        yield ast.Constant(value * 2 if value else 1.0)
    elif isinstance(value, str | bytes):
        letter, other = ("Q", "X") if isinstance(value, str) else (b"Q", b"X")
        yield ast.Constant((other if value.startswith(letter) else letter) + value[1:])


def _swapped(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ORDER_MATTERS):
        yield _altered(node, left=node.right, right=node.left)
    if isinstance(node, ast.Call) and _called(node) not in COMMUTE:
        if any(isinstance(argument, ast.Starred) for argument in node.args):
            return
        for first in range(len(node.args) - 1):
            args = list(node.args)
            args[first], args[first + 1] = args[first + 1], args[first]
            yield _altered(node, args=args)


def _dropped_calls(node: ast.AST) -> Iterator[ast.AST]:
    if not isinstance(node, ast.Call):
        return
    if isinstance(node.func, ast.Attribute):
        yield node.func.value
    if node.args and not isinstance(node.args[0], ast.Starred):
        yield node.args[0]
    for number in range(len(node.keywords)):
        yield _altered(node, keywords=node.keywords[:number] + node.keywords[number + 1 :])


def _off_by_one(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
        for place, bound in enumerate(node.args[:2]):
            for shifted in _shifted(bound):
                yield _altered(node, args=[*node.args[:place], shifted, *node.args[place + 1 :]])
    elif isinstance(node, ast.Slice):
        for end in ("lower", "upper"):
            bound = getattr(node, end)
            if bound is not None:
                yield from (_altered(node, **{end: shifted}) for shifted in _shifted(bound))
                yield _altered(node, **{end: None})
    elif isinstance(node, ast.Subscript) and not isinstance(
        node.slice, ast.Slice | ast.Tuple | ast.Constant
    ):
        yield from (_altered(node, slice=shifted) for shifted in _shifted(node.slice))


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Assign | ast.AugAssign | ast.Expr | ast.Raise | ast.Delete):
        yield ast.Pass()
    elif isinstance(node, ast.Return) and node.value is not None:
        yield ast.Return(None)
    elif isinstance(node, ast.If | ast.IfExp):
        yield from (_altered(node, test=ast.Constant(always)) for always in (True, False))
    elif isinstance(node, ast.Break):
        yield ast.Continue()
    elif isinstance(node, ast.Continue):
        yield from (ast.Break(), ast.Pass())
    elif isinstance(node, ast.comprehension) and node.ifs:
        yield _altered(node, ifs=[])


CHANGES: tuple[Callable[[ast.AST], Iterator[ast.AST]], ...] = (
    _operators,
    _constants,
    _swapped,
    _dropped_calls,
    _off_by_one,
    _statements,
)


def _called(node: ast.Call) -> str:
    return getattr(node.func, "attr", None) or getattr(node.func, "id", "")


def _shifted(value: ast.expr) -> Iterator[ast.expr]:
    if not isinstance(value, ast.Constant):  # constants have their own changes
        yield from (ast.BinOp(value, sign, ast.Constant(1)) for sign in (ast.Add(), ast.Sub()))


def _altered(node: ast.AST, **fields: object) -> ast.AST:
    """The node with other fields; its children are shared until the tree is copied."""
    return type(node)(**({name: getattr(node, name, None) for name in node._fields} | fields))
