"""Scores for learning management systems: who, how many points, and nothing that a spreadsheet would run."""

import csv
import os
import sys
from pathlib import Path

import pytest
from nbgrader.api import Gradebook

from autograder.exports import CanvasExport, MoodleExport

# Of nbgrader's own queries.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")


@pytest.fixture
def gradebook(tmp_path, monkeypatch):
    # nbgrader starts `alembic` by its name.
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    with Gradebook(f"sqlite:///{tmp_path}/gradebook.db") as book:
        for era, points in (("language_models", 12), ("transformer", 8)):
            book.add_assignment(era)
            book.add_notebook("answers", era)
            book.add_grade_cell("test", "answers", era, max_score=points, cell_type="code")
        book.add_student(
            "ada", last_name="Lovelace, Countess of", first_name='"Ada"', email="ada@x.org"
        )
        book.add_student("=cmd|' /C calc'!A0", last_name="@SUM(1+1)", first_name="李\n雷")
        book.add_student("idle")
        book.add_submission("transformer", "ada")
        book.add_submission("transformer", "=cmd|' /C calc'!A0")
        grade = book.find_grade("test", "answers", "transformer", "ada")
        grade.auto_score = 7.25
        book.db.commit()
        yield book


def exported(exporter, gradebook, tmp_path, **traits):
    path = tmp_path / "out.csv"
    exporter(to=str(path), **traits).export(gradebook)
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_canvas_gets_logins_points_possible_and_scores(gradebook, tmp_path):
    header, possible, *students = exported(CanvasExport, gradebook, tmp_path)
    assert header == [
        "Student",
        "ID",
        "SIS User ID",
        "SIS Login ID",
        "Section",
        "language_models",
        "transformer",
    ]
    assert possible == ["Points Possible", "", "", "", "", "12", "8"]
    by_login = {row[3]: row for row in students}
    assert by_login["ada"] == ['Lovelace, Countess of, "Ada"', "", "", "ada", "", "", "7.25"]


def test_moodle_gets_usernames_and_addresses(gradebook, tmp_path):
    header, *students = exported(MoodleExport, gradebook, tmp_path)
    assert header == [
        "Username",
        "First name",
        "Last name",
        "Email address",
        "language_models",
        "transformer",
    ]
    by_name = {row[0]: row for row in students}
    assert by_name["ada"] == ["ada", '"Ada"', "Lovelace, Countess of", "ada@x.org", "", "7.25"]


@pytest.mark.parametrize("exporter", [CanvasExport, MoodleExport])
def test_where_nothing_was_submitted_the_cell_is_empty_and_where_nothing_was_right_it_is_0(
    exporter, gradebook, tmp_path
):
    rows = exported(exporter, gradebook, tmp_path)
    idle = next(row for row in rows if "idle" in row)
    hostile = next(row for row in rows if any("cmd" in cell for cell in row))
    assert idle[-2:] == ["", ""]
    assert hostile[-2:] == ["", "0"]


@pytest.mark.parametrize("exporter", [CanvasExport, MoodleExport])
def test_no_cell_is_a_formula_and_no_name_breaks_a_row(exporter, gradebook, tmp_path):
    rows = exported(exporter, gradebook, tmp_path)
    assert {len(row) for row in rows} == {len(rows[0])}
    assert not [cell for row in rows for cell in row if cell.startswith(("=", "+", "-", "@"))]
    assert any("李\n雷" in cell for row in rows for cell in row)


def test_columns_can_be_named_as_they_are_called_over_there(gradebook, tmp_path):
    header, *_ = exported(
        CanvasExport, gradebook, tmp_path, columns={"transformer": "The Transformer (4711)"}
    )
    assert header[-2:] == ["language_models", "The Transformer (4711)"]


def test_only_the_students_and_eras_that_were_asked_for_are_exported(gradebook, tmp_path):
    header, *students = exported(
        MoodleExport, gradebook, tmp_path, student=["ada"], assignment=["transformer"]
    )
    assert header[4:] == ["transformer"]
    assert [row[0] for row in students] == ["ada"]


def test_a_late_penalty_is_taken_off_and_never_more_than_there_is(gradebook, tmp_path):
    submission = gradebook.find_submission("transformer", "ada")
    submission.notebooks[0].late_submission_penalty = 3.0
    gradebook.db.commit()
    adas = {"student": ["ada"]}
    assert exported(MoodleExport, gradebook, tmp_path, **adas)[1][-1] == "4.25"
    submission.notebooks[0].late_submission_penalty = 30.0
    gradebook.db.commit()
    assert exported(MoodleExport, gradebook, tmp_path, **adas)[1][-1] == "0"
