"""What nbgrader does for a class: scores into the gradebook by one writer, feedback on all processors.

Both are nbgrader's own converters. A student for whom nothing has changed since is left as recorded: a mark beside the
class says what was recorded, and counts only while the gradebook and the files still say the same.
"""

import contextlib
import functools
import importlib.metadata
import json
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import BrokenExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbgrader.api import Gradebook
from nbgrader.converters import Autograde, BaseConverter, GenerateFeedback
from nbgrader.converters.base import NbGraderException
from nbgrader.coursedir import CourseDirectory
from sqlalchemy.exc import SAWarning

from autograder import engine
from autograder.build import course_config, quiet_log
from autograder.class_folder import ClassFolder
from autograder.gradebook import COURSE, comments, marks, one_engine
from autograder.loader import find_exercise
from autograder.notebooks import graded_cells
from autograder.pool import ROUNDS, processes
from autograder.sandbox import Isolation
from autograder.source import ROOT
from autograder.verdicts import hashed

__all__ = ["record_scores", "write_feedback"]

TOGETHER = 16  # students whose feedback one process writes with one exporter

Progress = Callable[[str, int, int], None]


def record_scores(
    where: ClassFolder, era: str, isolation: Isolation, progress: Progress
) -> list[str]:
    """Writes the scores of an era into the gradebook; returns what needs somebody's attention."""
    notebooks = _notebooks(where.intake, era)
    due, held = _held(where, era)
    work = {student: _Work.of(paths, due, isolation) for student, paths in notebooks.items()}
    waiting = {
        student
        for student, own in work.items()
        if _said(where, "scores", era, student) != own.digest
        or any(held.get((student, name)) != points for name, points in own.points.items())
        or not all((where.autograded / student / era / f"{n}.ipynb").is_file() for n in own.points)
    }
    what = f"recording {era}"
    progress(what, len(work) - len(waiting), len(work))

    def done(student: str) -> None:
        waiting.discard(student)
        for name, log in work[student].logs.items():
            engine.write_whole(
                where.logs / student / era / f"{name}.txt", log.encode("utf-8", "replace")
            )
        _say(where, "scores", era, student, work[student].digest)
        progress(what, len(work) - len(waiting), len(work))

    return _convert(Autograde, where, era, sorted(waiting), done, isolation)


def write_feedback(where: ClassFolder, era: str, progress: Progress) -> list[str]:
    """Writes the feedback pages of an era; returns what needs somebody's attention."""
    books = _bookkeeping(where, era)
    wanted = {
        student: hashed(_version(), json.dumps(books[student]), *map(Path.read_text, paths))
        for student, paths in _notebooks(where.autograded, era).items()
    }
    waiting = [
        student
        for student, digest in wanted.items()
        if _said(where, "feedback", era, student) != digest
        or not (where.feedback / student / era).is_dir()
    ]
    what, notes = f"feedback {era}", []
    progress(what, len(wanted) - len(waiting), len(wanted))
    for _ in range(ROUNDS):
        chunks = [waiting[i : i + TOGETHER] for i in range(0, len(waiting), TOGETHER)]
        if not chunks:
            break
        with contextlib.suppress(BrokenExecutor), processes(len(chunks)) as pool:
            tasks = [
                pool.submit(_feedback_of, where, era, {s: wanted[s] for s in chunk})
                for chunk in chunks
            ]
            for task in as_completed(tasks):
                students, found = task.result()
                notes += found
                waiting = [student for student in waiting if student not in students]
                progress(what, len(wanted) - len(waiting), len(wanted))
    return notes + [f"{s}, {era}: the processes that write feedback were killed" for s in waiting]


def _feedback_of(
    where: ClassFolder, era: str, digests: Mapping[str, str]
) -> tuple[set[str], list[str]]:
    """Writes some students' pages; in a process of its own."""

    def done(student: str) -> None:
        _say(where, "feedback", era, student, digests[student])

    return set(digests), _convert(GenerateFeedback, where, era, sorted(digests), done)


def _convert(
    kind: type[BaseConverter],
    where: ClassFolder,
    era: str,
    students: list[str],
    done: Callable[[str], None],
    isolation: Isolation = "sandbox",
) -> list[str]:
    """Runs one of nbgrader's converters over these students and says of each when it is done."""
    config = course_config(
        submitted_directory=where.intake,
        autograded_directory=where.autograded,
        feedback_directory=where.feedback,
        db_url=where.db_url,
        assignment_id=era,
    )
    config.SplitGrade.isolation = isolation
    waiting, notes = list(students), []

    def note(student: str) -> None:
        waiting.remove(student)
        done(student)

    while waiting:
        course = CourseDirectory(config=config)
        converter = _one_by_one(kind)(coursedir=course, config=config, force=True)
        converter.students, converter.done = list(waiting), note
        converter.log = course.log = quiet_log("nbgrader")
        try:
            with warnings.catch_warnings(), one_engine():
                warnings.simplefilter("ignore", SAWarning)  # of nbgrader's own queries
                converter.start()
        except NbGraderException as error:
            # The first that is not done is what it stumbled over; the others get another chance.
            notes.append(f"{waiting.pop(0)}, {era}: nbgrader could not do its part: {error}")
    return notes


@functools.cache
def _one_by_one(kind: type[BaseConverter]) -> type[BaseConverter]:
    """The converter for students given by name, with one exporter for all, which says when each is done."""

    class OneByOne(kind):
        def init_notebooks(self) -> None:
            self.notebooks = []
            folders = [self._format_source(self.coursedir.assignment_id, s) for s in self.students]
            self.assignments = {f: [str(p) for p in Path(f).glob("*.ipynb")] for f in folders}

        def init_assignment(self, assignment_id: str, student_id: str) -> None:
            self.student = student_id
            super().init_assignment(assignment_id, student_id)

        def run_post_convert_hook(self) -> None:
            super().run_post_convert_hook()
            self.done(self.student)

    return OneByOne


# -- what was recorded ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Work:
    """What a student's recording comes from.

    Attributes:
        digest: of all that can differ: what was handed in, when, when it was due, and what was found.
        points: what tests gave, by exercise.
        logs: why tests failed, by exercise.
    """

    digest: str
    points: dict[str, float]
    logs: dict[str, str]

    @classmethod
    def of(cls, paths: Iterable[Path], due: str, isolation: Isolation) -> "_Work":
        parts, points, logs = [due, _version()], {}, {}
        for path in paths:
            exercise = find_exercise(path.parent.name, path.stem)
            stamp, raw = path.with_name("timestamp.txt"), path.read_text("utf-8")
            cells = graded_cells(nbformat.v4.reads(raw), exercise)
            # Where the grader failed nothing is known, and each run tries again.
            result = engine.default(isolation).known(exercise, cells) or {"tests": {}, "cells": []}
            verdicts = result["tests"]
            said = [[name, v["passed"], v["message"]] for name, v in verdicts.items()]
            parts += [path.stem, raw, stamp.read_text() if stamp.is_file() else ""]
            parts.append(json.dumps([said, result["cells"]]) if said else os.urandom(16).hex())
            points[path.stem] = float(
                sum(exercise.cell(name).points for name, v in verdicts.items() if v["passed"])
            )
            logs[path.stem] = _log(cells, result)
        return cls(hashed(*parts), points, logs)


def _log(cells: list[dict], result: dict) -> str:
    """For the instructor: each cell that raised, and each failed test with all that is known of it."""
    entries = [
        f"the cell {cell['name'] or cell['id']} raised {': '.join(outcome['error'])}"
        for cell, outcome in zip(cells, result["cells"], strict=False)
        if outcome["error"]
    ]
    for name, verdict in result["tests"].items():
        if not verdict["passed"]:
            mistake = verdict["misconception"] or "none that is known"
            about = f"{name} failed after {verdict['seconds']:.2f} s; misconception: {mistake}"
            entries.append(f"{about}\n{verdict['message']}\n{verdict['log']}")
    return "\n\n".join(entries) or "Every test passed."


def _held(where: ClassFolder, era: str) -> tuple[str, dict[tuple[str, str], float]]:
    """When an era is due, and what the gradebook says tests gave, by student and exercise."""
    found: dict[tuple[str, str], float] = defaultdict(float)
    with Gradebook(where.db_url, COURSE) as book:
        for mark in marks(book):
            if mark.era == era and not mark.by_hand and mark.auto is not None:
                found[mark.student, mark.exercise] += mark.auto
        return str(book.find_assignment(era).duedate), found


def _bookkeeping(where: ClassFolder, era: str) -> dict[str, list]:
    """All that the gradebook says of each student's work on an era."""
    found: dict[str, list] = defaultdict(list)
    with Gradebook(where.db_url, COURSE) as book:
        for row in (*marks(book), *comments(book)):
            if row[1] == era:
                found[row[0]].append(list(row))
    return found


def _notebooks(folder: Path, era: str) -> dict[str, list[Path]]:
    """The notebooks of an era by student."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.glob(f"*/{era}/*.ipynb")):
        found[path.parent.parent.name].append(path)
    return found


def _said(where: ClassFolder, kind: str, era: str, student: str) -> str:
    mark = where.recorded / kind / era / student
    return mark.read_text() if mark.is_file() else ""


def _say(where: ClassFolder, kind: str, era: str, student: str, digest: str) -> None:
    engine.write_whole(where.recorded / kind / era / student, digest.encode())


@functools.cache
def _version() -> str:
    """What makes the pages and rows besides what was handed in."""
    files = [*(ROOT / "autograder").glob("*.py"), ROOT / "nbgrader_config.py"]
    files += [path for path in (ROOT / "autograder" / "templates").rglob("*") if path.is_file()]
    return hashed(importlib.metadata.version("nbgrader"), *(p.read_text() for p in sorted(files)))
