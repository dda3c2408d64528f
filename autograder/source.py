"""Reads an exercise: one percent-format file, refused with file and line where it breaks the house's rules.

jupytext turns a misspelt key, a comma or an unquoted value into a stray key without a word; a grader that
then finds a test without points gives nobody a warning. So markers are read strictly here, and jupytext is
left with what it does well: the text of the cells.
"""

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import jupytext

__all__ = ["Cell", "Exercise", "SourceError", "exercise_paths", "read_exercise"]

ROOT = Path(__file__).resolve().parent.parent

BEGIN_SOLUTION, END_SOLUTION = "### BEGIN SOLUTION", "### END SOLUTION"
BEGIN_HIDDEN, END_HIDDEN = "### BEGIN HIDDEN TESTS", "### END HIDDEN TESTS"

Kind = Literal["text", "given", "solution", "test", "written", "experiment"]

# The whole language of markers: what stands after `# %%`, and the kind of cell it makes.
FORMS: list[tuple[re.Pattern, Kind]] = [
    (re.compile(r""), "given"),
    (re.compile(r" \[markdown\]"), "text"),
    (re.compile(r' solution="(?P<name>[a-z][a-z0-9_]*)"'), "solution"),
    (re.compile(r' test="(?P<name>[a-z][a-z0-9_]*)" points=(?P<points>[1-9][0-9]?)'), "test"),
    (
        re.compile(
            r' \[markdown\] written="(?P<name>[a-z][a-z0-9_]*)" points=(?P<points>[1-9][0-9]?)'
        ),
        "written",
    ),
    (re.compile(r" experiment=true"), "experiment"),
]

ALLOWED = """allowed are
  # %% [markdown]
  # %%
  # %% solution="name"
  # %% test="name" points=3
  # %% [markdown] written="name" points=2
  # %% experiment=true"""


class SourceError(Exception):
    """An exercise breaks a rule; the message says where (file:line), what, and what to do."""

    def __init__(self, path: Path, line: int, problem: str) -> None:
        super().__init__(f"{_shown(path)}:{line}: {problem}")


@dataclass(frozen=True)
class Cell:
    """A cell of an exercise. ``line`` is where its marker stands."""

    kind: Kind
    name: str
    source: str
    line: int
    points: int = 0

    @property
    def visible(self) -> str:
        """A test cell's text without its hidden blocks."""
        return "".join(line for line, hidden in _hidden_lines(self.source) if not hidden)


@dataclass(frozen=True)
class Exercise:
    """An exercise as written: its cells in order, and where it lives."""

    era: str
    name: str
    path: Path
    cells: tuple[Cell, ...] = field(repr=False)

    @property
    def parts(self) -> dict[str, list[Cell]]:
        """Each part's name with the test cells that judge it, in order."""
        parts: dict[str, list[Cell]] = {}
        for cell in self.cells:
            if cell.kind == "solution":
                parts[cell.name] = []
            elif cell.kind == "test":
                parts[list(parts)[-1]].append(cell)
        return parts

    @property
    def points(self) -> int:
        """All points of the exercise, written answers included."""
        return sum(cell.points for cell in self.cells)

    def cell(self, name: str) -> Cell:
        """The named cell.

        Raises:
            KeyError: no cell has that name.
        """
        for cell in self.cells:
            if cell.name == name:
                return cell
        raise KeyError(f"{self.era}/{self.name} has no cell named {name!r}")


def exercise_paths(root: Path = ROOT) -> list[Path]:
    """The files of all exercises, in order of era and name."""
    return sorted((root / "solutions").glob("*/*.py"))


def read_exercise(path: Path) -> Exercise:
    """The exercise written in ``path``.

    Raises:
        SourceError: the file breaks a rule of CONTRIBUTING.md.
    """
    return _read(path, path.read_text(encoding="utf-8"))


@functools.lru_cache(maxsize=256)
def _read(path: Path, text: str) -> Exercise:
    cells = [_checked_cell(path, *raw) for raw in split_cells(path, text)]
    exercise = Exercise(era=path.parent.name, name=path.stem, path=path, cells=_named(path, cells))
    _check_whole(exercise)
    return exercise


def split_cells(path: Path, text: str) -> Iterator[tuple[str, str, int]]:
    """Each cell of a percent-format file as (what stands after ``# %%``, its text, the marker's line).

    Raises:
        SourceError: text stands before the first marker, or jupytext reads the file otherwise.
    """
    lines = text.splitlines()
    marks = [number for number, line in enumerate(lines, start=1) if line.startswith("# %%")]
    before = lines[: marks[0] - 1] if marks else lines
    if any(line.strip() for line in before):
        raise SourceError(
            path, 1, "text stands before the first cell; begin with `# %% [markdown]`."
        )
    read = jupytext.reads(text, fmt="py:percent").cells
    if len(read) != len(marks):
        raise SourceError(
            path,
            1,
            f"{len(marks)} markers but {len(read)} cells; is there a marker inside a string?",
        )
    for mark, cell in zip(marks, read, strict=True):
        yield lines[mark - 1].removeprefix("# %%"), cell.source, mark


def released(source: str) -> str:
    """A cell's text as learners get it to run: hidden blocks gone (solutions are nbgrader's to clear)."""
    return "".join(line for line, hidden in _hidden_lines(source) if not hidden)


def _checked_cell(path: Path, marker: str, source: str, line: int) -> Cell:
    found = [
        (match, kind) for pattern, kind in FORMS if (match := pattern.fullmatch(marker.rstrip()))
    ]
    if not found:
        if re.search(r"test=", marker) and "points" not in marker:
            raise SourceError(
                path, line, 'a test without points; write `# %% test="name" points=3`.'
            )
        raise SourceError(path, line, f"unknown marker `# %%{marker}`; {ALLOWED}")
    [(match, kind)] = found
    groups = match.groupdict()
    cell = Cell(kind, groups.get("name") or "", source, line, int(groups.get("points") or 0))
    _check_blocks(path, cell, BEGIN_SOLUTION, END_SOLUTION, allowed=kind == "solution")
    _check_blocks(path, cell, BEGIN_HIDDEN, END_HIDDEN, allowed=kind == "test")
    if kind == "solution" and BEGIN_SOLUTION not in source:
        raise SourceError(path, line, f"the solution {cell.name!r} has no `{BEGIN_SOLUTION}`.")
    if kind not in ("text", "written"):
        tree = _parsed(path, cell)
        if kind == "solution":
            _check_regions(path, cell, tree)
    return cell


def _check_blocks(path: Path, cell: Cell, begin: str, end: str, *, allowed: bool) -> None:
    open_line = None
    for offset, line in enumerate(cell.source.splitlines(), start=1):
        at = cell.line + offset
        if begin in line or end in line:
            if not allowed:
                raise SourceError(
                    path, at, f"`{line.strip()}` does not belong in a {cell.kind} cell."
                )
            if line.strip() not in (begin, end):
                raise SourceError(path, at, f"`{line.strip()}` must stand alone on its line.")
            if cell.kind == "test" and line != line.strip():
                raise SourceError(path, at, f"`{line.strip()}` must not be indented.")
        if begin in line:
            if open_line is not None:
                raise SourceError(
                    path, at, f"a second `{begin}` before the one of line {open_line} ends."
                )
            open_line = at
        elif end in line:
            if open_line is None:
                raise SourceError(path, at, f"`{end}` without a `{begin}` before it.")
            open_line = None
    if open_line is not None:
        raise SourceError(path, open_line, f"`{begin}` is never closed by `{end}`.")


def _parsed(path: Path, cell: Cell) -> ast.Module:
    try:
        return ast.parse(cell.source)
    except SyntaxError as error:
        raise SourceError(
            path, cell.line + (error.lineno or 1), f"not plain Python: {error.msg}."
        ) from error


def _check_regions(path: Path, cell: Cell, tree: ast.Module) -> None:
    """A released region raises NotImplementedError, which must not happen when the cell is merely run."""
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    for number, line in enumerate(cell.source.splitlines(), start=1):
        if line.strip() == BEGIN_SOLUTION and not any(
            f.lineno < number < f.end_lineno for f in functions
        ):
            raise SourceError(
                path,
                cell.line + number,
                f"`{BEGIN_SOLUTION}` must stand inside a function, not at its level.",
            )


def _named(path: Path, cells: list[Cell]) -> tuple[Cell, ...]:
    seen: dict[str, int] = {}
    for cell in cells:
        if not cell.name:
            continue
        if cell.name in seen:
            raise SourceError(
                path, cell.line, f"the name {cell.name!r} is taken by line {seen[cell.name]}."
            )
        seen[cell.name] = cell.line
    return tuple(cells)


def _check_whole(exercise: Exercise) -> None:
    path, cells = exercise.path, exercise.cells
    if not cells or cells[0].kind != "text" or not cells[0].source.startswith("# "):
        raise SourceError(path, 1, "the first cell must be Markdown and begin with `# Title`.")
    _check_card(exercise)
    first_part = next((i for i, cell in enumerate(cells) if cell.kind == "solution"), len(cells))
    for cell in cells[:first_part]:
        if cell.kind == "test":
            raise SourceError(
                path, cell.line, f"the test {cell.name!r} stands before any solution."
            )
    for part, tests in exercise.parts.items():
        if not tests:
            raise SourceError(
                path, exercise.cell(part).line, f"the solution {part!r} has no test after it."
            )
    answers = {
        name for cell in cells if cell.kind == "solution" for name in defined_names(cell.source)
    }
    for cell in cells:
        if cell.kind == "given":
            _check_given(path, cell, answers)


def _check_card(exercise: Exercise) -> None:
    card = re.search(r"\*\*Points\*\* (\d+)", exercise.cells[0].source)
    if not card:
        raise SourceError(exercise.path, 1, "the first cell has no card with `**Points** …`.")
    if int(card[1]) != exercise.points:
        raise SourceError(
            exercise.path,
            1,
            f"the card says {card[1]} points, the cells add up to {exercise.points}.",
        )


def _check_given(path: Path, cell: Cell, answers: set[str]) -> None:
    """A given cell runs in the examiner too, where no answer exists when it runs."""
    for node in _top_level_nodes(ast.parse(cell.source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in answers:
            raise SourceError(
                path,
                cell.line + node.lineno,
                f"a given cell uses the answer {node.id!r} at the top level; "
                "put it into a function or mark the cell `# %% experiment=true`.",
            )


def _top_level_nodes(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        yield child
        yield from _top_level_nodes(child)


@functools.cache
def defined_names(source: str) -> tuple[str, ...]:
    """The names a cell binds at its top level, in order."""
    names: list[str] = []
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append(statement.name)
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names += [
                n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)
            ]
    return tuple(names)


def _hidden_lines(source: str) -> Iterator[tuple[str, bool]]:
    """Each line (with its end) and whether it belongs to a hidden block, markers included."""
    hidden = False
    for line in source.splitlines(keepends=True):
        if line.strip() == BEGIN_HIDDEN:
            hidden = True
        yield line, hidden
        if line.strip() == END_HIDDEN:
            hidden = False


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
