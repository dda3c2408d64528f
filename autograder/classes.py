"""Grades a class: a folder with ``submitted/<student>/<era>/<exercise>.ipynb``, as nbgrader lays it out."""

import shutil
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from nbgrader.api import Gradebook
from sqlalchemy import create_engine
from sqlalchemy.exc import ArgumentError, DBAPIError

from autograder import engine
from autograder.build import register
from autograder.class_folder import ClassFolder
from autograder.gradebook import COURSE, Mark, add_indexes, lateness, marks
from autograder.loader import find_exercise
from autograder.notebooks import (
    Submission,
    SubmissionError,
    graded_cells,
    read_submission,
    rebuilt_notebook,
    written,
)
from autograder.pool import Job, grade_all
from autograder.recording import record_scores, write_feedback
from autograder.sandbox import Isolation
from autograder.source import ROOT, exercise_paths

__all__ = ["ClassFolder", "GradebookMissing", "Score", "check_database", "grade_class", "scores"]

MAX_TIMESTAMP = 100
Progress = Callable[[str, int, int], None]


class GradebookMissing(Exception):
    """The database that was named cannot be used; the message says why."""


@dataclass(frozen=True)
class Score:
    """One notebook's points as the gradebook has them."""

    student: str
    era: str
    exercise: str
    auto: float
    manual: float
    possible_auto: float
    possible_manual: float
    needs_manual: bool
    late_seconds: float


def grade_class(
    where: ClassFolder,
    isolation: Isolation,
    progress: Progress,
    due: str | None = None,
    scheduler: str | None = None,
) -> list[str]:
    """Grades everything submitted and writes feedback; returns what needs somebody's attention.

    Args:
        where: the class's folder.
        isolation: ``"sandbox"``, or ``"process"`` where the instructor has chosen to do without.
        progress: called with what is done, how much of it, and of how much.
        due: the date by which the exercises were to be handed in, if they were.
        scheduler: the address of a Dask scheduler whose workers grade; this machine's processors if ``None``.

    Raises:
        ClusterMissing: there is no scheduler at the address.
        FileNotFoundError: nothing was submitted.
        SandboxMissing: no sandbox can be made here.
    """
    if not any(where.submitted.glob("*/*/*.ipynb")):
        raise FileNotFoundError(
            f"No notebooks in {where.submitted}; expected {where.submitted}/<student>/<era>/<exercise>.ipynb."
        )
    eras = register(where.db_url)
    add_indexes(where.db_url)
    if due:
        with Gradebook(where.db_url, COURSE) as gradebook:
            for era in eras:
                gradebook.update_or_create_assignment(era, duedate=due)
    notes = _take_in(where, progress)
    notes += _grade_distinct(where, isolation, progress, scheduler)
    for era in eras:
        notes += record_scores(where, era, isolation, progress)
        notes += write_feedback(where, era, progress)
    return notes


def check_database(url: str) -> None:
    """Says at once, and not after an hour of grading, when a database cannot be used.

    Raises:
        GradebookMissing: the name is none, its driver is not installed, or nobody answers.
    """
    try:
        create_engine(url).connect().close()
    except (ArgumentError, DBAPIError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise GradebookMissing(
            f"The gradebook cannot be opened: {reason}\nA name looks like "
            "postgresql+psycopg://user:password@host/database; the database itself must exist."
        ) from error


def scores(db_url: str) -> list[Score]:
    """Every notebook's points, by student, era and exercise."""
    with Gradebook(db_url, COURSE) as gradebook:
        found: dict[tuple[str, str, str], list[Mark]] = defaultdict(list)
        for mark in marks(gradebook):
            found[mark.student, mark.era, mark.exercise].append(mark)
        late = lateness(gradebook)
    return [_score(*place, own, late[place[:2]]) for place, own in sorted(found.items())]


def _score(student: str, era: str, exercise: str, own: list[Mark], late: float) -> Score:
    def total(what: str, by_hand: bool) -> float:
        return sum(getattr(mark, what) for mark in own if mark.by_hand == by_hand)

    return Score(
        student=student,
        era=era,
        exercise=exercise,
        auto=total("points", by_hand=False),
        manual=total("points", by_hand=True),
        possible_auto=total("possible", by_hand=False),
        possible_manual=total("possible", by_hand=True),
        needs_manual=any(mark.waiting for mark in own),
        late_seconds=late,
    )


def _take_in(where: ClassFolder, progress: Progress) -> list[str]:
    """Rebuilds every submission upon the instructor's notebook. Nothing else of a submission goes further."""
    shutil.rmtree(where.intake, ignore_errors=True)
    exercises = [(path.parent.name, path.stem) for path in exercise_paths()]
    students, notes = _students(where.submitted)
    for number, student in enumerate(students, start=1):
        for era, name in exercises:
            folder = student / era
            submitted = folder / f"{name}.ipynb"
            if not (submitted.exists() or submitted.is_symlink()):
                continue
            if folder.is_symlink():
                notes.append(
                    f"{student.name}, {era}/{name}: the folder {era} is a link and was left out."
                )
                continue
            exercise = find_exercise(era, name)
            try:
                submission = read_submission(submitted, exercise)
            except SubmissionError as error:
                notes.append(f"{student.name}, {era}/{name}: {error}")
                submission = Submission(
                    own_cells=[("", "markdown", f"**This file could not be graded.** {error}")]
                )
            place = where.intake / student.name / era
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{name}.ipynb").write_text(
                written(rebuilt_notebook(exercise, submission)), "utf-8"
            )
            _copy_timestamp(folder, place)
        progress("reading", number, len(students))
    return notes


def _students(submitted: Path) -> tuple[list[Path], list[str]]:
    """The folders of students, and what is said of those that are none."""
    students, notes = [], []
    for path in sorted(submitted.iterdir()):
        if path.is_symlink():
            notes.append(f"{path.name!r} is a link and was left out.")
        elif path.is_dir() and not path.name.isprintable():
            notes.append(f"{path.name!r} is no name a gradebook can hold; the folder was left out.")
        elif path.is_dir():
            students.append(path)
    return students, notes


def _copy_timestamp(submitted: Path, place: Path) -> None:
    stamp = submitted / "timestamp.txt"
    if not stamp.is_file() or stamp.is_symlink() or stamp.stat().st_size > MAX_TIMESTAMP:
        return
    text = stamp.read_text(errors="replace").strip()
    try:
        datetime.strptime(text.removesuffix(" UTC"), "%Y-%m-%d %H:%M:%S")
    except ValueError:
        return  # nbgrader would stop the class over it
    (place / "timestamp.txt").write_text(text)


def _grade_distinct(
    where: ClassFolder, isolation: Isolation, progress: Progress, scheduler: str | None
) -> list[str]:
    """Grades every distinct notebook into the cache, in parallel; recording then finds it there."""
    import nbformat

    here = engine.default(isolation)
    jobs: dict[str, Job] = {}
    names: list[str] = []
    for path in sorted(where.intake.glob("*/*/*.ipynb")):
        exercise = find_exercise(path.parent.name, path.stem)
        cells = graded_cells(nbformat.read(path, as_version=4), exercise)
        key = here.key(exercise, cells)
        if key not in jobs and here.known(exercise, cells) is None:
            record = here.record(exercise, cells)
            jobs[key] = Job(exercise.era, exercise.name, cells, key, record)
            names.append(f"{path.parent.parent.name}, {exercise.era}/{exercise.name}")
    notes = []
    if jobs:
        progress("grading", 0, len(jobs))
    graded = grade_all(jobs.values(), isolation, scheduler)
    for done, (number, trouble) in enumerate(graded, start=1):
        progress("grading", done, len(jobs))
        if trouble:
            last = trouble.strip().splitlines()[-1]
            notes.append(f"{names[number]}: the grader failed: {last}")
    return notes


def relative(path: Path) -> str:
    """The path as an instructor in the course's folder would write it."""
    path = path.resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
