"""The corpus as one class, handed in and graded as an instructor does it."""

import html
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from autograder.classes import ClassFolder, grade_class, scores
from tests.hostile.corpus import CORPUS, EXERCISE, HIDDEN, Submission

__all__ = ["Classroom", "graded_class"]


@dataclass
class Classroom:
    """A class that was graded.

    Attributes:
        where: its folder.
        notes: what the instructor was told.
        found: the points that tests gave, by student.
    """

    where: ClassFolder
    notes: list[str]
    found: dict[str, float] = field(default_factory=dict)

    def points(self, submission: Submission) -> float | None:
        """What the tests gave; ``None`` where the gradebook does not know the student."""
        return self.found.get(submission.name)

    def page(self, submission: Submission) -> Path:
        """The student's feedback."""
        return self.where.feedback / submission.name / EXERCISE.era / f"{EXERCISE.name}.html"

    def shown(self, submission: Submission) -> list[str]:
        """The lines and inputs of hidden tests in what the student gets to read."""
        page = self.page(submission)
        return hidden_in(page.read_text("utf-8")) if page.is_file() else []


def hidden_in(page: str) -> list[str]:
    """The lines of hidden tests in a page, and the mark that submissions put beside an input."""
    text = squeezed(html.unescape(re.sub(r"<[^>]+>", "", page)))
    return [line for line in HIDDEN if squeezed(line) in text] + re.findall(
        "SPILT(?= tensor| \\()", text
    )


def squeezed(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def graded_class(folder: Path) -> Classroom:
    """Hands in the corpus, what came before first, and grades it."""
    where = ClassFolder(folder)
    for submission in CORPUS:
        if submission.earlier:
            submission.earlier(_place(where, submission))
    grade_class(where, "sandbox", lambda *_: None)
    shutil.rmtree(where.submitted)
    for submission in CORPUS:
        submission.write(_place(where, submission))
    classroom = Classroom(where, grade_class(where, "sandbox", lambda *_: None))
    for score in scores(where.db_url):
        if score.exercise == EXERCISE.name:
            classroom.found[score.student] = score.auto
    return classroom


def _place(where: ClassFolder, submission: Submission) -> Path:
    place = where.submitted / submission.name / EXERCISE.era
    place.mkdir(parents=True, exist_ok=True)
    return place
