"""The gradebook as a large class needs it: nbgrader's own tables, opened once, indexed, read with a few queries."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple
from unittest import mock

from nbgrader.api import (
    Assignment,
    BaseCell,
    Comment,
    Grade,
    Gradebook,
    GradeCell,
    Notebook,
    SubmittedAssignment,
    SubmittedNotebook,
)
from sqlalchemy import Engine, create_engine, inspect, text
from sqlalchemy.orm import Query

__all__ = [
    "COURSE",
    "Mark",
    "add_indexes",
    "comments",
    "known_sources",
    "lateness",
    "marks",
    "note_sources",
    "one_engine",
]

COURSE = "from-attention-to-reasoning"
# nbgrader looks for the grades of one notebook by reading those of all.
INDEXES = {
    "grade": "notebook_id",
    "comment": "notebook_id",
    "submitted_notebook": "assignment_id",
    "base_cell": "notebook_id",
}
# Which exercises a gradebook was told of; the one table here that is not nbgrader's.
SOURCES = "course_sources"


class Mark(NamedTuple):
    """One cell's points.

    Attributes:
        student: who.
        era: nbgrader's assignment.
        exercise: nbgrader's notebook.
        cell: the test or written answer.
        by_hand: whether somebody reads it.
        auto: what a test gave.
        manual: what somebody gave, which counts instead.
        extra: what somebody gave besides.
        points: what counts.
        possible: what it is worth.
        waiting: whether somebody still has to read it.
    """

    student: str
    era: str
    exercise: str
    cell: str
    by_hand: bool
    auto: float | None
    manual: float | None
    extra: float | None
    points: float
    possible: float
    waiting: bool


@contextlib.contextmanager
def one_engine(create: Callable[..., Engine] | None = None) -> Iterator[None]:
    """Has nbgrader open each database once, as SQLAlchemy wants it, within this block.

    Several blocks open it once among them if they are given the same cached ``create``.

    nbgrader opens its gradebook anew seven times for each notebook, each time with an engine that has compiled no
    statement yet; a third of its bookkeeping goes into that.
    """
    with mock.patch("nbgrader.api.create_engine", create or functools.cache(create_engine)):
        yield


def add_indexes(db_url: str) -> None:
    """Lets nbgrader find what belongs to one notebook without reading what belongs to all others."""
    engine = create_engine(db_url)
    with engine.begin() as connection:
        for table, column in INDEXES.items():
            index = f"CREATE INDEX IF NOT EXISTS course_{table}_{column} ON {table} ({column})"
            connection.execute(text(index))
    engine.dispose()


def known_sources(db_url: str, eras: list[str]) -> str | None:
    """What :func:`note_sources` noted of a gradebook; ``None`` if nothing, or if one of the eras has been removed."""
    engine = create_engine(db_url)
    try:
        if not inspect(engine).has_table(SOURCES):
            return None
        with engine.connect() as connection:
            there = set(connection.execute(text("SELECT name FROM assignment")).scalars())
            return (
                connection.execute(text(f"SELECT of FROM {SOURCES}")).scalar()
                if there >= {*eras}
                else None
            )
    finally:
        engine.dispose()


def note_sources(db_url: str, of: str) -> None:
    """Notes in a gradebook which exercises it knows.

    Args:
        db_url: the gradebook.
        of: a hash of them.
    """
    engine = create_engine(db_url)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE TABLE IF NOT EXISTS {SOURCES} (of VARCHAR(64))"))
        connection.execute(text(f"DELETE FROM {SOURCES}"))
        connection.execute(text(f"INSERT INTO {SOURCES} VALUES (:of)"), {"of": of})
    engine.dispose()


def marks(book: Gradebook) -> Iterator[Mark]:
    """Every cell's points, by era, exercise and student.

    nbgrader gives a notebook that was not handed in no points; it is among these.
    """
    found = (
        book.db.query(
            SubmittedAssignment.student_id,
            Assignment.name,
            Notebook.name,
            GradeCell.name,
            GradeCell.cell_type != "code",
            Grade.auto_score,
            Grade.manual_score,
            Grade.extra_credit,
            Grade.score,
            GradeCell.max_score,
            Grade.needs_manual_grade,
        )
        .select_from(Grade)
        .join(GradeCell, Grade.cell_id == GradeCell.id)
        .join(Grade.notebook)
    )
    return (Mark(*row) for row in _by_student(found))


def comments(book: Gradebook) -> Iterator[tuple]:
    """Every comment: student, era, exercise, cell, nbgrader's and somebody's."""
    found = (
        book.db.query(
            SubmittedAssignment.student_id,
            Assignment.name,
            Notebook.name,
            BaseCell.name,
            Comment.auto_comment,
            Comment.manual_comment,
        )
        .select_from(Comment)
        .join(BaseCell, Comment.cell_id == BaseCell.id)
        .join(Comment.notebook)
    )
    return map(tuple, _by_student(found))


def lateness(book: Gradebook) -> dict[tuple[str, str], float]:
    """Seconds by which each student handed in each era late; 0 for those in time."""
    return {
        (submission.student_id, submission.assignment.name): submission.total_seconds_late
        for submission in book.db.query(SubmittedAssignment)
    }


def _by_student(found: Query) -> Query:
    return (
        found.join(SubmittedNotebook.notebook)
        .join(SubmittedNotebook.assignment)
        .join(SubmittedAssignment.assignment)
        .order_by(Assignment.name, Notebook.name, SubmittedAssignment.student_id)
    )
