"""What reaches the gradebook: once, whole, and in whichever database, whatever is killed on the way."""

import contextlib
import json
import os
import random
import shutil
import subprocess
import time
import traceback
from pathlib import Path

import psutil
import pytest
from nbgrader.api import Gradebook
from sqlalchemy import create_engine, inspect

from autograder import engine
from autograder.classes import (
    ClassFolder,
    GradebookMissing,
    check_database,
    grade_class,
    scores,
)
from autograder.engine import Engine
from autograder.gradebook import COURSE, INDEXES, add_indexes
from autograder.loader import find_exercise
from autograder.sample_class.make import answered, right
from autograder.source import ROOT

ATTENTION = find_exercise("transformer", "attention")
RELEASED = ROOT / "exercises" / "transformer" / "attention.ipynb"
KILLS = 50
TRACEBACK = "Traceback (most recent call last)"


def make_class(folder):
    """Three students: all right, one part wrong, nothing answered."""
    answers = right(ATTENTION)
    wrong = answers | {"attention": answers["attention"].replace("math.sqrt(d_k)", "d_k")}
    assert wrong != answers
    for student, given in (("ada", answers), ("bob", wrong), ("cyd", {})):
        path = folder / "submitted" / student / "transformer" / "attention.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(answered(ATTENTION, json.loads(RELEASED.read_text()), given)))
    return folder


def rows(db_url):
    """Everything the gradebook says of the class, without its own numbers and times."""
    with Gradebook(db_url, COURSE) as gradebook:
        return [
            (
                submission.student.id,
                submission.assignment.name,
                notebook.name,
                [
                    (g.cell.name, g.auto_score, g.manual_score, g.max_score, g.needs_manual_grade)
                    for g in sorted(notebook.grades, key=lambda grade: grade.cell.name)
                ],
                [
                    (c.name, c.auto_comment)
                    for c in sorted(notebook.comments, key=lambda comment: comment.name)
                ],
            )
            for assignment in gradebook.assignments
            for submission in sorted(
                gradebook.assignment_submissions(assignment.name), key=lambda s: s.student.id
            )
            for notebook in submission.notebooks
        ]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A cache of its own, kept from test to test."""
    return tmp_path_factory.mktemp("results")


@pytest.fixture
def grade(results, monkeypatch):
    """Grades a class with that cache."""
    here = Engine("process", cache=results)
    monkeypatch.setattr(engine, "default", lambda isolation: here)
    yield lambda where: grade_class(where, "process", lambda *progress: None)
    here.close()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, results):
    """The rows of a run that nobody disturbed, and the seconds it took with everything prepared."""
    monkeypatch = pytest.MonkeyPatch()
    here = Engine("process", cache=results)
    monkeypatch.setattr(engine, "default", lambda isolation: here)
    where = ClassFolder(make_class(tmp_path_factory.mktemp("class")))
    assert grade_class(where, "process", lambda *progress: None) == []
    forget(results)
    start = time.monotonic()
    assert grade_class(where, "process", lambda *progress: None) == []
    here.close()
    monkeypatch.undo()
    return rows(where.db_url), time.monotonic() - start


def forget(results: Path):
    """Removes the results, not what the exercise was prepared with."""
    for path in results.glob("*.json"):
        path.unlink()


# -- PostgreSQL -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def postgres(tmp_path_factory):
    """The URL of an empty database on a server of its own, reached through a socket file."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin")) or [
        Path(found).parent for found in [shutil.which("initdb")] if found
    ]
    if not programs:
        pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")
    # A server refuses to be root.
    user = "postgres" if os.geteuid() == 0 else None
    folder = Path(subprocess.check_output(["mktemp", "-d", "/tmp/pgXXXXXX"], text=True).strip())
    if user:
        shutil.chown(folder, user)

    def run(program, *arguments):
        command = [programs[-1] / program, *arguments]
        subprocess.run(command, check=True, capture_output=True, user=user, cwd=folder)

    data = folder / "data"
    try:
        run("initdb", "-D", data, "-U", "course", "-A", "trust", "-E", "UTF8", "--no-sync")
        options = f"-c listen_addresses= -k {folder} -c fsync=off"
        run("pg_ctl", "-D", data, "-w", "-o", options, "-l", folder / "log", "start")
        run("createdb", "-h", folder, "-U", "course", "gradebook")
        yield f"postgresql+psycopg://course@/gradebook?host={folder}"
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            run("pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)


@pytest.mark.slow
def test_postgresql_holds_the_same_rows_as_sqlite(postgres, tmp_path, grade, uninterrupted):
    where = ClassFolder(make_class(tmp_path), postgres)
    check_database(postgres)
    assert grade(where) == []
    assert rows(postgres) == uninterrupted[0]
    assert not where.gradebook.exists()
    ada, bob, cyd = (s.auto for s in scores(postgres) if s.exercise == ATTENTION.name)
    assert ada == 14
    assert 0 < bob < ada
    assert cyd == 0
    assert len(list(where.feedback.rglob("*.html"))) == 3
    assert grade(where) == []
    assert rows(postgres) == uninterrupted[0]


@pytest.mark.parametrize(
    "url",
    [
        "gradebook",
        "oracle9://x/y",
        "postgresql+psycopg://nobody@127.0.0.1:1/none",
        "sqlite:////no/such/folder/gradebook.db",
    ],
)
def test_a_database_that_cannot_be_used_is_refused_before_anything_is_graded(url):
    with pytest.raises(GradebookMissing, match="cannot be opened"):
        check_database(url)


# -- interruption -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_fifty_kills_at_random_moments_lose_nothing_and_record_nothing_twice(
    tmp_path, results, uninterrupted
):
    expected, seconds = uninterrupted
    where = ClassFolder(make_class(tmp_path))
    chance = random.Random(0)
    forget(results)
    killed = 0
    while killed < KILLS:
        if chance.random() < 0.2:
            forget(results)
        run = start_run(where, results)
        time.sleep(chance.uniform(0, seconds))
        family = [run, *run.children(recursive=True)]
        workers = run.children()
        for victim in chance.choice([[run], workers, family]):
            with contextlib.suppress(psutil.NoSuchProcess):
                killed += victim.status() != psutil.STATUS_ZOMBIE  # which has ended already
                victim.kill()
        finish(run, family)
        assert TRACEBACK not in said(where)
    last = start_run(where, results)
    ended = finish(last, [last])
    assert (ended, said(where)) == (0, "")
    assert rows(where.db_url) == expected
    assert len(list(where.feedback.rglob("*.html"))) == 3


def start_run(where, results) -> psutil.Process:
    """A run in a process of its own, which has imported everything already."""
    (where.folder / "said.txt").unlink(missing_ok=True)
    child = os.fork()
    if child:
        return psutil.Process(child)
    outcome = ""
    try:
        os.setsid()
        here = Engine("process", cache=results)
        engine.default = lambda isolation: here
        outcome = "\n".join(grade_class(where, "process", lambda *progress: None))
    except BaseException:
        outcome = traceback.format_exc()
    finally:
        (where.folder / "said.txt").write_text(outcome)
        os._exit(bool(outcome))


def said(where) -> str:
    """What the last run said when it came to its end: the notes for the instructor, or the error it ended with."""
    path = where.folder / "said.txt"
    return path.read_text() if path.exists() else ""


def finish(run, family) -> int:
    """Waits for a run to end and checks that none of its processes goes on; gives its exit code."""
    _, status = os.waitpid(run.pid, 0)
    _, alive = psutil.wait_procs(
        set(family) - {run}, timeout=60
    )  # a processor may be wanted by many
    assert not alive, f"still running: {alive}"
    return os.waitstatus_to_exitcode(status)


# -- what is recorded again -------------------------------------------------------------------------------


def times(where):
    """When each file that recording writes was written."""
    paths = [*where.autograded.rglob("*.ipynb"), *where.feedback.rglob("*.html")]
    return {str(path.relative_to(where.folder)): path.stat().st_mtime_ns for path in paths}


def changed(before, after):
    return sorted(name for name in after if after[name] != before.get(name))


def page(student, what="feedback"):
    return f"{what}/{student}/transformer/attention.{'html' if what == 'feedback' else 'ipynb'}"


@pytest.fixture
def graded(tmp_path, grade, uninterrupted):
    where = ClassFolder(make_class(tmp_path))
    assert grade(where) == []
    return where


@pytest.mark.slow
class TestWhatIsRecordedAgain:
    def test_nothing_where_nothing_changed(self, graded, grade, uninterrupted):
        before = times(graded)
        assert len(before) == 6
        assert grade(graded) == []
        assert times(graded) == before
        assert rows(graded.db_url) == uninterrupted[0]

    def test_one_student_who_handed_in_anew(self, graded, grade):
        before = times(graded)
        solved = graded.submitted / "ada" / "transformer" / "attention.ipynb"
        shutil.copyfile(solved, graded.submitted / "cyd" / "transformer" / "attention.ipynb")
        assert grade(graded) == []
        assert changed(before, times(graded)) == [page("cyd", "autograded"), page("cyd")]
        assert next(s.auto for s in scores(graded.db_url) if s.student == "cyd") == 14

    def test_points_given_by_hand_stay_and_are_written_into_the_feedback(self, graded, grade):
        before = times(graded)
        with Gradebook(graded.db_url, COURSE) as book:
            notebook = book.find_submission_notebook("attention", "transformer", "bob")
            [written] = [g for g in notebook.grades if g.cell.cell_type == "markdown"]
            written.manual_score, written.needs_manual_grade = 1.5, False
            book.db.commit()
        assert grade(graded) == []
        assert changed(before, times(graded)) == [page("bob")]
        [bob] = [
            s for s in scores(graded.db_url) if (s.student, s.exercise) == ("bob", "attention")
        ]
        assert bob.manual == 1.5
        assert not bob.needs_manual

    def test_all_where_the_gradebook_is_gone_or_says_otherwise(self, graded, grade, uninterrupted):
        graded.gradebook.unlink()
        assert grade(graded) == []
        assert rows(graded.db_url) == uninterrupted[0]
        with Gradebook(graded.db_url, COURSE) as book:
            notebook = book.find_submission_notebook("attention", "transformer", "cyd")
            for given in notebook.grades:
                given.auto_score = 3.0
            book.db.commit()
        assert grade(graded) == []
        assert rows(graded.db_url) == uninterrupted[0]

    def test_the_log_has_what_the_feedback_must_not_have(self, graded):
        log = (graded.logs / "bob" / "transformer" / "attention.txt").read_text()
        assert "misconception: " in log
        assert TRACEBACK in log
        assert TRACEBACK not in (graded.folder / page("bob")).read_text()
        assert (graded.logs / "ada" / "transformer" / "attention.txt").read_text() == (
            "Every test passed."
        )


def test_indexes_are_made_once_and_in_every_database(tmp_path):
    url = f"sqlite:///{tmp_path}/gradebook.db"
    with Gradebook(url, COURSE):
        pass
    for _ in range(2):
        add_indexes(url)
    found = {index["name"] for t in INDEXES for index in inspect(create_engine(url)).get_indexes(t)}
    assert found >= {f"course_{table}_{column}" for table, column in INDEXES.items()}
