"""Scores as learning management systems read them: plug-ins for ``nbgrader export``.

    nbgrader export --exporter=autograder.exports.CanvasExport --to=canvas.csv
    nbgrader export --exporter=autograder.exports.MoodleExport --to=moodle.csv

A row for each student, a column for each era, and only what the gradebook holds: where nothing was submitted the
cell is empty, which leaves that grade as it is.
"""

import csv
import io
from pathlib import Path
from typing import ClassVar

from nbgrader.api import Assignment, Gradebook, MissingEntry, Student
from nbgrader.plugins import ExportPlugin
from traitlets import Dict

from autograder.engine import write_whole

__all__ = ["CanvasExport", "MoodleExport"]

# A spreadsheet takes a cell that begins so for a formula, and runs it.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


class _Export(ExportPlugin):
    """What both have in common."""

    columns = Dict(
        help="What the column of an era is called, where it already exists over there: "
        '{"transformer": "The Transformer (4711)"}.'
    ).tag(config=True)

    file: ClassVar[str]
    identity: ClassVar[tuple[str, ...]]

    def export(self, gradebook: Gradebook) -> None:
        """Writes the file; an earlier one is replaced once the new one is whole."""
        assignments = [
            a for a in gradebook.assignments if not self.assignment or a.name in self.assignment
        ]
        students = [
            s for s in gradebook.students if not self.student or s.id in map(str, self.student)
        ]
        header = [*self.identity, *(self.columns.get(a.name, a.name) for a in assignments)]
        rows = [header, *self.above(assignments)]
        for student in students:
            scores = [self._score(gradebook, assignment, student) for assignment in assignments]
            rows.append([*(_text(cell) for cell in self.person(student)), *scores])
        destination = Path(self.to or self.file)
        _write(destination, rows)
        self.log.info("%s students' scores are in %s", len(students), destination)

    def above(self, assignments: list[Assignment]) -> list[list[str]]:
        """Rows between the header and the students."""
        return []

    def person(self, student: Student) -> list[str | None]:
        """Who a student is: one cell for each of ``identity``."""
        raise NotImplementedError

    def _score(self, gradebook: Gradebook, assignment: Assignment, student: Student) -> str:
        try:
            submission = gradebook.find_submission(assignment.name, student.id)
        except MissingEntry:
            return ""
        if submission.needs_manual_grade:
            self.log.warning("%s, %s: not all of it is graded yet", student.id, assignment.name)
        return _number(max(0.0, submission.score - submission.late_submission_penalty))


class CanvasExport(_Export):
    """For Canvas: Gradebook, Import. Students are found by their login."""

    file = "canvas.csv"
    identity = ("Student", "ID", "SIS User ID", "SIS Login ID", "Section")

    def above(self, assignments: list[Assignment]) -> list[list[str]]:
        """The points of each column, from which Canvas makes the assignments that it does not have."""
        empty = [""] * (len(self.identity) - 1)
        return [["Points Possible", *empty, *(_number(a.max_score) for a in assignments)]]

    def person(self, student: Student) -> list[str | None]:
        """Last name first, as Canvas writes it; its own number is not known here."""
        name = ", ".join(part for part in (student.last_name, student.first_name) if part)
        return [name or student.id, "", "", student.id, ""]


class MoodleExport(_Export):
    """For Moodle: Grades, Import, CSV file; map from ``Username`` to ``username``."""

    file = "moodle.csv"
    identity = ("Username", "First name", "Last name", "Email address")

    def person(self, student: Student) -> list[str | None]:
        """The columns of Moodle's own export."""
        return [student.id, student.first_name, student.last_name, student.email]


def _number(score: float) -> str:
    return f"{score:.4f}".rstrip("0").rstrip(".")


def _text(cell: str | None) -> str:
    cell = cell or ""
    return f"'{cell}" if cell.startswith(FORMULA) else cell


def _write(destination: Path, rows: list[list[str]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    write_whole(destination, text.getvalue().encode())
