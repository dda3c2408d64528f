"""Which exercises have passed their tests as they are: nothing that a verdict depends on has changed since.

Thousands of tests put wrong and right answers to one exercise through the grader. Each depends on that exercise, on the
grader, and on what of ``lab`` the two import, and on nothing else; while none of these changes, ``tests/passed.json``
says that they have passed. `make record` runs the others and writes it.
"""

import ast
import functools
import importlib.metadata
import json
from collections.abc import Iterable

from autograder.engine import GRADER
from autograder.source import ROOT, Exercise, exercise_paths, read_exercise
from autograder.verdicts import hashed

__all__ = ["PASSED", "key", "named", "passed", "record"]

PASSED = ROOT / "tests" / "passed.json"
# The files whose tests are left out, and what they share.
TESTS = (
    "tests/unchanged.py",
    "tests/autograder/test_fairness.py",
    "tests/autograder/test_grading.py",
    "tests/autograder/test_nbgrader.py",
    "tests/solutions/test_exercises.py",
)
LIBRARIES = ("einops", "ipykernel", "jaxtyping", "nbgrader", "numpy", "torch")


def named(exercise: Exercise) -> str:
    """What an exercise is called in ids and in the record."""
    return f"{exercise.era}/{exercise.name}"


def passed() -> set[str]:
    """The exercises whose tests need not run again."""
    known = json.loads(PASSED.read_text(encoding="utf-8")) if PASSED.is_file() else {}
    exercises = [read_exercise(path) for path in exercise_paths()]
    return {named(e) for e in exercises if known.get(named(e)) == key(e)}


def record(names: Iterable[str]) -> None:
    """Keeps that all tests of these exercises have passed; forgets those that there are no more."""
    known = json.loads(PASSED.read_text(encoding="utf-8")) if PASSED.is_file() else {}
    exercises = {named(e): e for e in map(read_exercise, exercise_paths())}
    known |= {name: key(exercises[name]) for name in names}
    kept = {name: known[name] for name in exercises if name in known}
    PASSED.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def key(exercise: Exercise) -> str:
    """A hash of all that the tests of an exercise depend on: answers, tests, wrong answers, grader, libraries."""
    code = [
        [cell.kind, cell.name, cell.source]
        for cell in exercise.cells
        if cell.kind in ("given", "solution", "test")
    ]
    bank = f"{exercise.era}/{exercise.name}.py"
    files = [
        *(f"autograder/misconceptions/{name}" for name in ("__init__.py", bank)),
        *(f"autograder/sample_class/{name}" for name in ("styles.py", bank)),
        *(f"autograder/{name}.py" for name in GRADER),
        *(str(path.relative_to(ROOT)) for path in (ROOT / "autograder" / "split").glob("*.py")),
        *TESTS,
    ]
    imported = _imported_by("\n".join(source for _, _, source in code))
    imported |= set().union(*(_imported_from(file) for file in files if file.endswith(".py")))
    if "lab/checkpoints.py" in imported:
        files += [str(p.relative_to(ROOT)) for p in (ROOT / "lab" / "weights").iterdir()]
    return hashed(
        json.dumps(code),
        *(importlib.metadata.version(library) for library in LIBRARIES),
        *(part for file in sorted({*files, *imported}) for part in (file, _digest(file))),
    )


@functools.cache
def _digest(file: str) -> str:
    return hashed((ROOT / file).read_bytes().decode("latin-1"))


@functools.cache
def _imported_from(file: str) -> frozenset[str]:
    return frozenset(_imported_by((ROOT / file).read_text(encoding="utf-8")))


def _imported_by(source: str) -> set[str]:
    """The files of ``lab`` that a text imports, with those which they import."""
    found: set[str] = set()
    waiting = _lab_files(source)
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting |= _lab_files((ROOT / file).read_text(encoding="utf-8"))
    return found


def _lab_files(source: str) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    paths = (f"{module.replace('.', '/')}.py" for module in modules if module.startswith("lab."))
    return {path for path in paths if (ROOT / path).is_file()}
