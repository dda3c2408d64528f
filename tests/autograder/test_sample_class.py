"""The sample class as `make` graded it: every score is the one written down, and feedback holds what it should."""

import csv
import html
import re
from pathlib import Path

import pytest
from nbconvert.exporters import HTMLExporter
from nbgrader.server_extensions.formgrader.handlers import template_path
from traitlets.config import Config

from autograder.build import course_config
from autograder.classes import ClassFolder, scores
from autograder.misconceptions import misconceptions
from autograder.sample_class.make import STUDENTS, handed_in
from autograder.source import BEGIN_HIDDEN, ROOT, exercise_paths, read_exercise

CLASS = ClassFolder(ROOT / "_build" / "sample")
EXPECTED = ROOT / "autograder" / "sample_class" / "expected.csv"
EXERCISES = [read_exercise(path) for path in exercise_paths()]
FULL = ["right-1", "right-2", "right-3", "right-4", "right-5", "late", "warns", "hostile-ships-numpy",
        "hostile-writes", "hostile-metadata", "hostile-script"]  # fmt: skip
NOTHING = ["blank", "hostile-skip-tag", "hostile-displayhook", "hostile-always-equal", "hostile-patches",
           "hostile-reads", "hostile-exits", "hostile-no-notebook"]  # fmt: skip


@pytest.fixture(scope="module")
def graded():
    assert CLASS.gradebook.exists(), "grade the sample class first: make class"
    return {(score.student, score.exercise): score for score in scores(CLASS.db_url)}


def test_every_score_is_the_one_written_down(graded):
    with EXPECTED.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["student"] for row in rows] == list(STUDENTS)
    found = []
    for name in STUDENTS:
        points = {e.name: f"{graded[name, e.name].auto:g}" for e in handed_in(name)}
        found.append({"student": name} | {e.name: points.get(e.name, "") for e in EXERCISES})
    assert found == rows


@pytest.mark.parametrize("student", FULL)
def test_right_answers_get_all_points_whatever_else_their_notebook_does(graded, student):
    for exercise in handed_in(student):
        score = graded[student, exercise.name]
        assert score.auto == score.possible_auto > 0, exercise.name


@pytest.mark.parametrize("student", NOTHING)
def test_who_answers_nothing_gets_nothing_whatever_else_their_notebook_does(graded, student):
    assert {graded[student, exercise.name].auto for exercise in handed_in(student)} == {0}


@pytest.mark.parametrize("student", ["syntax-error", "infinite-loop"])
def test_what_breaks_one_part_costs_that_part_alone(graded, student):
    for exercise in handed_in(student):
        first = next(iter(exercise.parts.values()))
        score = graded[student, exercise.name]
        assert score.auto == score.possible_auto - sum(cell.points for cell in first)


def test_the_late_one_is_late_and_the_others_are_not(graded):
    late = {student for (student, _), score in graded.items() if score.late_seconds > 0}
    assert late == {"late"}


def test_written_answers_wait_for_a_person(graded):
    assert graded["right-1", "attention"].needs_manual
    assert not graded["blank", "attention"].needs_manual


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)
def test_feedback_names_the_mistake(exercise):
    bank = misconceptions(exercise.era, exercise.name)
    parts = list(dict.fromkeys(mistake.part for mistake in bank))
    for number in range(3):
        mistake = next(m for m in bank if m.part == parts[number % len(parts)])
        text = _text(_feedback(f"mistake-{number + 1}", exercise))
        assert _squeezed(mistake.says) in text, mistake.name


@pytest.mark.parametrize("student", list(STUDENTS))
def test_no_feedback_holds_a_hidden_test_or_anything_that_runs(student):
    for exercise in handed_in(student):
        page = _feedback(student, exercise)
        text = _text(page)
        assert "autograder.hidden" not in text
        assert "BEGIN HIDDEN" not in text
        hidden = _text(" ".join(cell.source.partition(BEGIN_HIDDEN)[2] for cell in exercise.cells))
        calls = re.findall(r"theirs\.[a-z_A-Z.]+\([^)]*\)", hidden)
        assert calls
        assert not [call for call in calls if call in text]
        assert "<script" not in page
        assert not re.search(r"<img[^>]*onerror", page)
        assert not re.search(r"""(src=|<link[^>]*href=|url\()\s*["']?(https?:)?//""", page)
        assert len(page) < 3_000_000


@pytest.mark.parametrize("student", ["right-1", "hostile-script"])
def test_the_form_grader_shows_a_submission_and_runs_nothing_of_it(student):
    config = Config()
    config.HTMLExporter.template_name = "formgrade"
    config.HTMLExporter.extra_template_basedirs = [template_path]
    config.merge(course_config())  # as nbgrader does it: the course has the last word
    exporter = HTMLExporter(config=config)
    for exercise in handed_in(student):
        where = {"index": 0, "total": 1, "base_url": "/formgrader", "student": student}
        where |= {"assignment_id": exercise.era, "notebook_id": exercise.name, "submission_id": "1"}
        where |= {"last_name": None, "first_name": None, "notebook_path": "", "filename": ""}
        notebook = CLASS.autograded / student / exercise.era / f"{exercise.name}.ipynb"
        page, _ = exporter.from_filename(str(notebook), resources=where)
        assert page.count('class="score tabbable"') == sum(c.points > 0 for c in exercise.cells)
        assert "<math" in page
        assert not re.search(r"<[^>]*onerror", page)
        assert not re.search(r"<script[^>]*>[^<]*document\.title", page)


def test_nothing_was_written_outside():
    assert not list(Path("/tmp").glob("left-behind"))


def _feedback(student, exercise):
    return (CLASS.feedback / student / exercise.era / f"{exercise.name}.html").read_text()


def _text(page):
    """What a reader sees, without tags, with white space squeezed."""
    return _squeezed(html.unescape(re.sub(r"<[^>]+>", "", page)))


def _squeezed(text):
    return re.sub(r"\s+", " ", text)
