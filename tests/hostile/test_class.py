"""The corpus as one class, through the command's own path: nobody's files keep anybody from the right score."""

import hashlib
import os
import re
from pathlib import Path

import pytest

from autograder.report import write_report
from tests.hostile.classroom import graded_class, hidden_in
from tests.hostile.corpus import CORPUS, POINTS

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")]


@pytest.fixture(scope="module")
def school(tmp_path_factory):
    """The class, graded, with its report."""
    return school_in(tmp_path_factory.mktemp("around"))


def school_in(around):
    """A class that is graded in a folder, with what lay around it before and after."""
    for name in (
        "solutions.py",
        "gradebook.db",
        "private/notes.txt",
        "submitted/ada/answers.ipynb",
    ):
        (around / name).parent.mkdir(parents=True, exist_ok=True)
        (around / name).write_text(name)
    before = fingerprints(around)
    school = graded_class(around / "class")
    school.around = before, fingerprints(around, without=school.where.folder)
    school.report = write_report(school.where, "sandbox").read_text("utf-8")
    return school


def fingerprints(folder, without=None):
    """Kind, permissions, time of change and content of everything in a folder."""
    found = {}
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if Path(here, name) != without]
        for path in [Path(here, name) for name in folders + files]:
            about = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            found[path.relative_to(folder)] = about.st_mode, about.st_mtime_ns, content
    return found


def test_every_student_has_the_points_that_the_answers_are_worth(school):
    expected = {s.name: sum(POINTS[test] for test in s.passes) for s in CORPUS}
    assert school.found == expected


def test_the_class_is_graded_to_the_end(school):
    assert not [s.name for s in CORPUS if not school.page(s).is_file()]
    assert not [note for note in school.notes if "could not do its part" in note]
    assert not [note for note in school.notes if "the grader failed" in note]


def test_the_instructor_is_told_of_each_file_that_is_no_notebook(school):
    told = [note.partition(",")[0] for note in school.notes]
    places = ("socket", "device", "pipe", "folder", "link-to-a-secret", "good-then-a-link")
    assert {"hundred-megabytes", "notebook-of-hundred-megabytes", "file-not-json", *places} <= set(
        told
    )
    assert all(len(note) < 500 for note in school.notes)


def test_nothing_outside_the_class_is_touched(school):
    before, after = school.around
    assert after == before
    for place in ("/tmp", "/var/tmp", "/dev/shm", "~", "."):
        assert not Path(place, "LEFT-BEHIND").expanduser().exists()


def test_no_page_says_anything_of_a_hidden_test(school):
    assert {s.name: school.shown(s) for s in CORPUS if school.shown(s)} == {}
    assert hidden_in(school.report) == []
    assert hidden_in("\n".join(school.notes)) == []


def test_no_page_has_anything_that_runs(school):
    for page in [*(school.page(s).read_text("utf-8") for s in CORPUS), school.report]:
        assert "<script" not in page.lower()
        assert not re.search(r"<[^>]*\son\w+\s*=", page)
        assert not re.search(r"""<[^>]*\s(href|src)\s*=\s*["']?\s*javascript:""", page)
        assert len(page) < 3_000_000


def test_no_process_of_a_submission_is_left(school):
    sleeping = [p for p in Path("/proc").glob("[0-9]*/cmdline") if b"time.sleep(4321)" in said(p)]
    assert sleeping == []


def said(path):
    """A process's command, if it has not ended in the meantime."""
    try:
        return path.read_bytes()
    except OSError:
        return b""
