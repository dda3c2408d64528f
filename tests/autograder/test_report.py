"""The class report: says what the gradebook and the kept results say, and shows hostile text as text."""

import itertools
import os
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from axe_playwright_python.sync_playwright import Axe
from nbgrader.api import Gradebook
from playwright.sync_api import sync_playwright
from typer.testing import CliRunner

from autograder import engine
from autograder.classes import ClassFolder
from autograder.cli import app
from autograder.loader import find_exercise
from autograder.misconceptions import misconceptions
from autograder.notebooks import Submission, graded_cells, rebuilt_notebook, written
from autograder.report import discrimination, write_report
from autograder.sample_class.make import right
from autograder.sample_class.styles import styles
from tests.book.conftest import FLAGS

# Of nbgrader's own queries.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")

COURSE, ERA, NAME = "from-attention-to-reasoning", "transformer", "attention"
EXERCISE = find_exercise(ERA, NAME)
TESTS = [cell.name for cell in EXERCISE.cells if cell.kind == "test"]
POINTS = {cell.name: cell.points for cell in EXERCISE.cells if cell.points}
[WRITTEN] = [cell.name for cell in EXERCISE.cells if cell.kind == "written"]
PART = next(iter(EXERCISE.parts))
DUE = datetime(2025, 3, 3, 12)


class Kept(engine.Engine):
    """An engine that knows what it is told and cannot grade."""

    def __init__(self):
        super().__init__("process")
        self.results = {}

    def known(self, exercise, cells):
        return self.results.get(self.key(exercise, cells))

    def grade(self, exercise, cells):
        assert self.known(exercise, cells), "the report graded a notebook"
        return self.known(exercise, cells)


class Page(HTMLParser):
    """A page's tags with their attributes, its tables' rows, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.rows, self.text = [], [], ""
        self.in_cell = False
        self.feed(text)
        self.rows = [[" ".join(cell.split()) for cell in row] for row in self.rows]

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        self.in_cell &= tag not in ("td", "th")

    def handle_data(self, data):
        self.text += data
        if self.in_cell:
            self.rows[-1][-1] += data

    def row(self, *beginning):
        """The first row whose cells begin so."""
        return next(row for row in self.rows if row[: len(beginning)] == list(beginning))


class Class:
    """A class that was graded: its gradebook, the notebooks, and the results in the cache."""

    def __init__(self, folder, grader):
        self.where = ClassFolder(folder)
        self.grader = grader

    def student(self, name, **about):
        """Somebody who has handed in nothing yet."""
        with Gradebook(self.where.db_url, COURSE) as book:
            book.add_student(name, **about)

    def hand_in(
        self, name, passed=(), answers=None, verdicts=None, by_hand=0.0, at=DUE, known=True, **about
    ):
        """A graded notebook: the tests it passed, and where they differ from a plain failure, its verdicts."""
        self.student(name, **about)
        with Gradebook(self.where.db_url, COURSE) as book:
            submission = book.add_submission(ERA, name)
            submission.timestamp = at
            for grade in submission.notebooks[0].grades:
                if grade.name == WRITTEN:
                    grade.manual_score, grade.needs_manual_grade = by_hand, by_hand is None
                else:
                    grade.auto_score = POINTS[grade.name] * (grade.name in passed)
                    grade.needs_manual_grade = False
            book.db.commit()
        notebook = rebuilt_notebook(EXERCISE, Submission(answers=answers or {}))
        for folder in (self.where.submitted, self.where.intake, self.where.autograded):
            self.write(folder, name, written(notebook))
        if known:
            self.keep(notebook, passed, verdicts or {})

    def write(self, folder, name, text):
        """Puts a file where a class has the student's notebook."""
        path = folder / name / ERA / f"{NAME}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def keep(self, notebook, passed, verdicts):
        cells = graded_cells(notebook, EXERCISE)
        plain = {"message": "", "misconception": None, "seconds": 0.1, "log": "", "ended": False}
        result = {
            "tests": {t: plain | {"passed": t in passed} | verdicts.get(t, {}) for t in TESTS},
            "cells": [{"error": None} | verdicts.get(cell["name"], {}) for cell in cells],
        }
        self.grader.results[self.grader.key(EXERCISE, cells)] = result

    def report(self):
        """The page, as text and taken apart."""
        text = write_report(self.where, "process").read_text("utf-8")
        return SimpleNamespace(source=text, page=Page(text))


@pytest.fixture(scope="module")
def empty_gradebook(tmp_path_factory):
    """A gradebook that knows the exercise and nobody."""
    where = ClassFolder(tmp_path_factory.mktemp("empty"))
    with pytest.MonkeyPatch.context() as patch:
        # nbgrader starts `alembic` by its name.
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        with Gradebook(where.db_url, COURSE) as book:
            book.add_assignment(ERA, duedate=DUE, course_id=COURSE)
            book.add_notebook(NAME, ERA)
            for cell, points in POINTS.items():
                kind = "markdown" if cell == WRITTEN else "code"
                book.add_grade_cell(cell, NAME, ERA, max_score=points, cell_type=kind)
    return where.gradebook


@pytest.fixture
def school(tmp_path, monkeypatch, empty_gradebook):
    grader = Kept()
    monkeypatch.setattr(engine, "default", lambda isolation: grader)
    school = Class(tmp_path / "class", grader)
    school.where.folder.mkdir()
    shutil.copyfile(empty_gradebook, school.where.gradebook)
    return school


# Three answers of one part that nobody would take for copies of each other.
STYLES = [style[PART] for style in styles(EXERCISE).values() if PART in style][:3]


def answered(number=0, **parts):
    """Answers in one of the styles; the parts without one are left open."""
    return {PART: STYLES[number]} | parts


def test_scores_and_totals_are_those_of_the_gradebook(school):
    school.hand_in("ada", TESTS, answered(0), by_hand=1.5, first_name="Ada", last_name="Lovelace")
    school.hand_in("bo", TESTS[:1], answered(1), by_hand=None)
    school.student("idle")
    page = school.report().page
    everything = sum(POINTS[test] for test in TESTS)
    possible = sum(POINTS.values())
    assert page.row("student", f"{ERA}{NAME}of {possible}", f"totalof {possible}")
    assert page.row("ada Lovelace, Ada") == ["ada Lovelace, Ada", *[f"{everything + 1.5:g}"] * 2]
    first = f"{POINTS[TESTS[0]]}"
    assert page.row("bo", first + "*") == ["bo", first + "*", first]
    assert page.row("idle") == ["idle", "–", "0"]


def test_a_late_penalty_is_taken_off_the_total_and_the_delay_is_said(school):
    school.hand_in("ada", TESTS, answered(0), at=datetime(2025, 3, 5, 14))
    with Gradebook(school.where.db_url, COURSE) as book:
        book.find_submission(ERA, "ada").notebooks[0].late_submission_penalty = 3.0
        book.db.commit()
    page = school.report().page
    reached = sum(POINTS[test] for test in TESTS)
    assert page.row("ada late") == ["ada late", f"{reached}", f"{reached - 3}"]
    assert page.row("ada", ERA) == ["ada", ERA, "2 d 2 h"]


def test_a_notebook_that_is_missing_is_not_counted_as_a_failure(school):
    school.hand_in("ada", TESTS, answered(0))
    school.hand_in("bo")
    (school.where.autograded / "bo" / ERA / f"{NAME}.ipynb").unlink()
    page = school.report().page
    assert page.row("bo") == ["bo", "–", "0"]
    assert page.row(f"{ERA} · {NAME}", TESTS[0])[3] == "1 of 1"


def test_a_histogram_says_in_words_what_it_shows(school):
    for name, passed in {"ada": TESTS, "bo": TESTS, "cy": []}.items():
        school.hand_in(name, passed, answered(0))
    picture = next(about for tag, about in school.report().page.tags if tag == "svg")
    reached = sum(POINTS[test] for test in TESTS)
    assert picture["role"] == "img"
    assert f"3 notebooks, median {reached} of" in picture["aria-label"]
    assert f"0: 1; {reached}: 2." in picture["aria-label"]


HOSTILE = "</pre></bdi></td><script>alert(1)</script><img src=x onerror=alert(2)>"


def test_hostile_names_and_answers_are_shown_as_text(school):
    nasty = '"><img onerror=alert(3) src=x>'
    source = right(EXERCISE)[PART] + f'\n"""{HOSTILE}"""\n'
    verdicts = {TESTS[0]: {"ended": True, "message": HOSTILE, "misconception": None}}
    school.hand_in(nasty, [], {PART: source}, verdicts, first_name=HOSTILE, last_name="{{ 7 * 7 }}")
    school.hand_in("<script>alert(4)", [], {PART: source}, by_hand=None, at=datetime(2025, 4, 1))
    for number in range(3):
        school.hand_in(f"s{number}", TESTS, answered(number))
    school.write(school.where.submitted, "s0", "no notebook")
    school.where.feedback.mkdir()
    page_of = school.where.feedback / nasty / ERA / f"{NAME}.html"
    page_of.parent.mkdir(parents=True)
    page_of.touch()
    page = school.report().page
    assert not [tag for tag, _ in page.tags if tag in ("script", "img", "iframe", "object")]
    assert not [name for _, about in page.tags for name in about if name.startswith("on")]
    assert "default-src 'none'" in next(
        about["content"] for tag, about in page.tags if "http-equiv" in about
    )
    for text in (HOSTILE, nasty, "<script>alert(4)", "{{ 7 * 7 }}"):
        assert text in page.text
    links = [about["href"] for tag, about in page.tags if tag == "a" and "/" in about["href"]]
    assert links == [
        f"feedback/%22%3E%3Cimg%20onerror%3Dalert%283%29%20src%3Dx%3E/{ERA}/{NAME}.html"
    ]


def test_half_a_character_stops_no_report(school):
    name = "Zoe\ud800"
    copy = right(EXERCISE)[PART]
    school.hand_in("a", [], {PART: copy}, {TESTS[0]: {"ended": True, "message": name}})
    assert "Zoe?" in school.report().page.text


def test_where_nobody_passes_the_page_says_so(school):
    school.hand_in("ada", [], answered(0))
    school.hand_in("bo", [], answered(1))
    page = school.report().page
    row = page.row(f"{ERA} · {NAME}", TESTS[0])
    assert row[2:] == [str(POINTS[TESTS[0]]), "0 of 2", "0.00", "n/a", "Nobody passes."]


def test_a_class_that_handed_in_nothing_has_a_report(school):
    school.student("idle")
    assert "No notebook was handed in yet." in school.report().page.text


def test_the_page_names_no_outside_address_and_loads_nothing(school):
    for number in range(3):
        school.hand_in(f"s{number}", TESTS[number:], answered(number))
    found = school.report()
    assert "http://" not in found.source
    assert "https://" not in found.source
    assert not re.search(r"@import|url\((?!#)", found.source)
    for tag, about in found.page.tags:
        assert tag not in ("link", "script", "iframe", "base")
        assert "src" not in about
        for name in ("href", "xlink:href"):
            assert re.match(r"#|feedback/", about.get(name) or "#")


def test_discrimination_is_the_point_biserial_correlation():
    # Deviations ±½ and ±3⁄2, ±½: 2 / √(1 · 5).
    assert discrimination([True, True, False, False], [4, 3, 2, 1]) == pytest.approx(2 / 5**0.5)
    assert discrimination([False, False, True, True], [4, 3, 2, 1]) == pytest.approx(-2 / 5**0.5)
    # (1 + 9)/2 against (4 + 6)/2: the means are equal.
    assert discrimination([True, True, False, False], [1, 9, 4, 6]) == pytest.approx(0)


def test_without_variance_there_is_no_discrimination():
    assert discrimination([True, True], [1, 2]) is None
    assert discrimination([False, False], [1, 2]) is None
    assert discrimination([True, False], [0.1, 0.1]) is None
    assert discrimination([True], [1]) is None


def test_a_tests_own_points_do_not_count_into_its_discrimination(school):
    # The first test is passed by those who pass both others and neither, failed by those who pass one of them.
    pairs = itertools.combinations(TESTS[1:], 2)
    second, third = next((a, b) for a, b in pairs if POINTS[a] == POINTS[b])
    passed = ([TESTS[0], second, third], [TESTS[0]], [second], [third])
    for number, tests in enumerate(passed):
        school.hand_in(f"s{number}", tests, answered(number % 3))
    assert school.report().page.row(f"{ERA} · {NAME}", TESTS[0])[4:6] == ["0.50", "0.00"]


def test_tests_with_a_remark_come_first(school):
    # The last test is passed only by the one who passes nothing else.
    for number in range(3):
        school.hand_in(f"s{number}", TESTS[:-1], answered(number))
    school.hand_in("odd", TESTS[-1:], answered(0) | {"masks": "pass"})
    page = school.report().page
    rows = [row for row in page.rows if row and row[0] == f"{ERA} · {NAME}"]
    ours = [row for row in rows if len(row) == 7]
    assert ours[0][1] == TESTS[-1]
    assert ours[0][5:] == ["-1.00", "Those who do better elsewhere pass it less often."]
    assert ours[1][6] == ""
    *_, told = [about["aria-label"] for tag, about in page.tags if tag == "svg"]
    assert f"With a remark: {TESTS[-1]} of {NAME} (0.25 and -1.00)." in told


def test_misconceptions_are_counted_by_student_the_most_frequent_first(school):
    rare, common = misconceptions(ERA, NAME)[:2]
    tests = [cell.name for cell in EXERCISE.parts[common.part]]

    def failing(mistake, tests):
        return {test: {"misconception": mistake.name, "message": mistake.says} for test in tests}

    school.hand_in("ada", [], answered(0), failing(common, tests[:2]))
    school.hand_in("bo", [], answered(1), failing(common, tests[:1]))
    school.hand_in("cy", [], answered(2), failing(rare, tests[:1]))
    page = school.report().page
    rows = [row for row in page.rows if len(row) == 4 and row[0] in ("1", "2")]
    assert [(row[0], row[2], row[3]) for row in rows] == [
        ("2", common.says, "ada, bo"),
        ("1", rare.says, "cy"),
    ]
    assert all(test in rows[0][1] for test in tests[:2])


def test_what_ended_its_process_is_listed_with_its_reason(school):
    slow = {"ended": True, "message": "This took longer than the 10 seconds.", "seconds": 30.0}
    fatal = {"error": ["Ended", "Your code ended the whole process."], "fatal": True}
    school.hand_in("ada", [], answered(0), {test: slow for test in TESTS[:2]} | {PART: fatal})
    page = school.report().page
    exercise = f"{ERA} · {NAME}"
    assert page.row("ada", exercise, f"{TESTS[0]}, {TESTS[1]}")[3] == slow["message"]
    assert page.row("ada", exercise, f"the cell {PART}")[3] == fatal["error"][1]
    assert page.row("ada", exercise, f"{60 + 0.1 * len(TESTS[2:]):.1f}")


def test_a_notebook_whose_result_is_not_known_is_listed_and_not_graded(school):
    school.hand_in("ada", TESTS, answered(0))
    school.hand_in("bo", TESTS, answered(1), known=False)
    page = school.report().page
    assert page.row(f"{ERA} · {NAME}", "2")[3] == "bo"


def test_a_file_that_could_not_be_graded_is_listed_with_its_reason(school):
    school.hand_in("ada", TESTS, answered(0))
    school.hand_in("bo")
    school.write(school.where.submitted, "bo", "no notebook")
    row = school.report().page.row("bo", f"{ERA} · {NAME}")
    assert row[2] == "The file is no notebook: it is not JSON."


def test_near_identical_answers_are_shown_with_both_texts(school):
    source = right(EXERCISE)[PART]
    renamed = re.sub(r"\bscores\b", "energies", source).replace("weights", "probabilities")
    school.hand_in("ada", TESTS, {PART: source})
    school.hand_in("copy", TESTS, {PART: renamed})
    for number in range(3):
        school.hand_in(f"s{number}", TESTS, answered(number))
    text = school.report().page.text
    assert "The same but for names and comments" in text
    assert "Nearly the course’s own answer" in text
    assert "Worth a look, and no more." in text
    assert source.strip() in text
    assert renamed.strip() in text
    assert STYLES[0].strip() not in text


def test_answers_that_are_not_alike_are_not_shown(school):
    for number in range(3):
        school.hand_in(f"s{number}", TESTS, answered(number))
    school.hand_in("blank")
    school.hand_in("blank too")
    assert "No two answers stand out." in school.report().page.text


def test_without_a_gradebook_it_is_said_what_to_do_and_none_is_made(tmp_path):
    where = ClassFolder(tmp_path)
    with pytest.raises(FileNotFoundError, match="grade the class first"):
        write_report(where, "process")
    assert not where.gradebook.exists()


def crowded(school):
    """A class in whose report every section has something to say."""
    mistake = misconceptions(ERA, NAME)[0]
    wrong = {TESTS[0]: {"misconception": mistake.name, "message": mistake.says}}
    slow = {TESTS[0]: {"ended": True, "message": "This took longer than 10 seconds." * 9}}
    source = right(EXERCISE)[PART]
    school.hand_in("copy", TESTS, {PART: source}, first_name="Ada", last_name="Lovelace")
    school.hand_in("x" * 90, [], {PART: source + "\nx = " + "1" * 400}, slow, by_hand=None)
    school.hand_in("late", TESTS[1:], answered(0), wrong, at=datetime(2025, 3, 9))
    for number in range(30):
        school.hand_in(f"s{number}", TESTS[number % 3 :], answered(number % 3), by_hand=None)
    school.hand_in("unknown", TESTS, answered(1), known=False)
    school.write(school.where.submitted, "s1", "no notebook")
    return write_report(school.where, "process")


LOOKS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]


def looked_at(path):
    """What Chromium and axe say of a page, on a screen and a phone, by day and by night."""
    found = []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for width, scheme in LOOKS:
            size = {"width": width, "height": 900}
            page = chromium.new_page(viewport=size, color_scheme=scheme, offline=True)
            asked, complaints = [], []
            page.on("request", lambda request, to=asked: to.append(request.url))
            page.on("console", lambda message, to=complaints: to.append(message.text))
            page.goto(path.as_uri())
            page.eval_on_selector_all("details", "all => all.forEach(one => one.open = true)")
            found.append(
                {
                    "asked": asked,
                    "complaints": complaints,
                    "width": page.evaluate("document.documentElement.scrollWidth"),
                    "axe": Axe().run(page).response,
                }
            )
            page.close()
        chromium.close()
    return found


@pytest.mark.slow
def test_it_can_be_read_by_everybody_on_a_screen_and_a_phone_by_day_and_by_night(school):
    if not shutil.which("chromium"):
        pytest.fail("no chromium") if os.environ.get("CI") else pytest.skip("no chromium")
    path = crowded(school)
    # A thread has room for one Playwright, and the book's tests have theirs in this one.
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(looked_at, path).result()
    for (width, _), look in zip(LOOKS, found, strict=True):
        assert look["asked"] == [path.as_uri()]
        assert look["complaints"] == []
        assert look["width"] <= width
        assert len(look["axe"]["passes"]) > 10
        broken = [
            (v["id"], [n["html"][:200] for n in v["nodes"][:3]]) for v in look["axe"]["violations"]
        ]
        assert broken == []


def test_the_command_writes_the_report_and_says_where_it_is(school):
    school.hand_in("ada", TESTS, answered(0))
    said = CliRunner().invoke(app, ["report", str(school.where.folder), "--isolation", "process"])
    path = school.where.folder / "report.html"
    assert said.exit_code == 0
    assert str(path) in "".join(said.output.split())
    assert "ada" in path.read_text("utf-8")
