"""Grades a class: a folder with ``submitted/<student>/<era>/<exercise>.ipynb``, as nbgrader lays it out."""

import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from nbgrader.api import Gradebook
from nbgrader.converters import Autograde, BaseConverter, GenerateFeedback
from nbgrader.converters.base import NbGraderException
from nbgrader.coursedir import CourseDirectory
from sqlalchemy import create_engine
from sqlalchemy.exc import ArgumentError, DBAPIError, SAWarning

from autograder import engine
from autograder.build import course_config, quiet_log, register
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
from autograder.sandbox import Isolation
from autograder.source import ROOT, exercise_paths

__all__ = ["ClassFolder", "GradebookMissing", "Score", "check_database", "grade_class", "scores"]

MAX_TIMESTAMP = 100
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ClassFolder:
    """Where a class's files are.

    Attributes:
        folder: with what was submitted; all else is written below it.
        database: the gradebook as SQLAlchemy names it, ``postgresql+psycopg://…``; a SQLite file in the folder if
            ``None``.
    """

    folder: Path
    database: str | None = None

    @property
    def submitted(self) -> Path:
        """What learners handed in, untouched."""
        return self.folder / "submitted"

    @property
    def intake(self) -> Path:
        """The same, rebuilt upon the instructor's notebooks; what nbgrader works on."""
        return self.folder / ".intake"

    @property
    def autograded(self) -> Path:
        """What nbgrader graded."""
        return self.folder / "autograded"

    @property
    def feedback(self) -> Path:
        """What goes back to learners."""
        return self.folder / "feedback"

    @property
    def gradebook(self) -> Path:
        """The SQLite gradebook."""
        return self.folder / "gradebook.db"

    @property
    def db_url(self) -> str:
        """The gradebook as SQLAlchemy names it."""
        return self.database or f"sqlite:///{self.gradebook.resolve()}"


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
    if due:
        with Gradebook(where.db_url, "from-attention-to-reasoning") as gradebook:
            for era in eras:
                gradebook.update_or_create_assignment(era, duedate=due)
    notes = _take_in(where, progress)
    notes += _grade_distinct(where, isolation, progress, scheduler)
    for era in eras:
        notes += _convert(Autograde, where, era, isolation, progress, "recording")
        notes += _convert(GenerateFeedback, where, era, isolation, progress, "feedback")
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
    found = []
    with Gradebook(db_url, "from-attention-to-reasoning") as gradebook:
        for assignment in gradebook.assignments:
            for submission in gradebook.assignment_submissions(assignment.name):
                for notebook in submission.notebooks:
                    manual = [g for g in notebook.grades if g.cell.cell_type == "markdown"]
                    automatic = [g for g in notebook.grades if g.cell.cell_type != "markdown"]
                    found.append(
                        Score(
                            student=submission.student.id,
                            era=assignment.name,
                            exercise=notebook.name,
                            auto=sum(g.score for g in automatic),
                            manual=sum(g.score for g in manual),
                            possible_auto=sum(g.max_score for g in automatic),
                            possible_manual=sum(g.max_score for g in manual),
                            needs_manual=notebook.needs_manual_grade,
                            late_seconds=submission.total_seconds_late,
                        )
                    )
    return sorted(found, key=lambda s: (s.student, s.era, s.exercise))


def _take_in(where: ClassFolder, progress: Progress) -> list[str]:
    """Rebuilds every submission upon the instructor's notebook. Nothing else of a submission goes further."""
    notes = []
    shutil.rmtree(where.intake, ignore_errors=True)
    exercises = [(path.parent.name, path.stem) for path in exercise_paths()]
    students = sorted(p for p in where.submitted.iterdir() if p.is_dir() and not p.is_symlink())
    for number, student in enumerate(students, start=1):
        for era, name in exercises:
            folder = student / era
            submitted = folder / f"{name}.ipynb"
            if folder.is_symlink() or not (submitted.exists() or submitted.is_symlink()):
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


def _convert(
    kind: type[BaseConverter],
    where: ClassFolder,
    era: str,
    isolation: Isolation,
    progress: Progress,
    what: str,
) -> None:
    """Runs one of nbgrader's converters over every student, one writer to the gradebook."""
    config = course_config(
        submitted_directory=where.intake,
        autograded_directory=where.autograded,
        feedback_directory=where.feedback,
        db_url=where.db_url,
        assignment_id=era,
    )
    config.SplitGrade.isolation = isolation
    students = sorted({path.parent.parent.name for path in where.intake.glob(f"*/{era}/*.ipynb")})
    notes = []
    for number, student in enumerate(students, start=1):
        config.CourseDirectory.student_id = student
        course = CourseDirectory(config=config)
        converter = kind(coursedir=course, config=config, force=True)
        converter.log = course.log = quiet_log("nbgrader")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SAWarning)  # of nbgrader's own queries
                converter.start()
        except NbGraderException as error:
            notes.append(f"{student}, {era}: nbgrader could not do its part ({what}): {error}")
        progress(f"{what} {era}", number, len(students))
    return notes


def relative(path: Path) -> str:
    """The path as an instructor in the course's folder would write it."""
    path = path.resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
