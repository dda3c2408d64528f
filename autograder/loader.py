"""Runs the given and solution cells of an exercise, never its tests or experiments.

Everything that needs an answer goes through here: hidden tests, misconceptions, the mutation run, recorded
runs. There is no second copy of an answer anywhere.
"""

import functools
import linecache
import sys
import types
from collections.abc import Mapping
from pathlib import Path

from autograder.source import ROOT, Exercise, read_exercise

__all__ = ["compiled", "find_exercise", "load", "reference", "run_cell"]


def find_exercise(era: str, name: str, root: Path = ROOT) -> Exercise:
    """The exercise ``solutions/<era>/<name>.py``.

    Raises:
        FileNotFoundError: there is none; the message lists those there are.
    """
    path = root / "solutions" / era / f"{name}.py"
    if not path.is_file():
        known = ", ".join(
            f"{p.parent.name}/{p.stem}" for p in sorted((root / "solutions").glob("*/*.py"))
        )
        raise FileNotFoundError(f"There is no exercise {era}/{name}. There are: {known or 'none'}.")
    return read_exercise(path)


@functools.cache
def reference(era: str, name: str) -> types.ModuleType:
    """The answers of an exercise as a module: ``reference("transformer", "attention").attention_weights``."""
    return load(find_exercise(era, name))


def load(exercise: Exercise, replaced: Mapping[str, str] | None = None) -> types.ModuleType:
    """A fresh module in which the exercise's given and solution cells have run.

    Args:
        exercise: what to run.
        replaced: other texts for solution cells, by part: a misconception, a mutant, another style.
    """
    replaced = replaced or {}
    module = types.ModuleType(f"answers_{exercise.era}_{exercise.name}")
    # dataclasses and pickling look their module up by name.
    sys.modules[module.__name__] = module
    for cell in exercise.cells:
        if cell.kind in ("given", "solution"):
            run_cell(
                replaced.get(cell.name, cell.source),
                module.__dict__,
                f"{exercise.name}:{cell.line}",
            )
    return module


def run_cell(source: str, namespace: dict, label: str) -> None:
    """Runs one cell, its lines known to tracebacks under ``<label>``."""
    filename = f"<{label}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    exec(compiled(source, filename), namespace)


@functools.cache
def compiled(source: str, filename: str) -> types.CodeType:
    """The code of a cell, kept: a warm process compiles for all that it forks."""
    return compile(source, filename, "exec", dont_inherit=True)
