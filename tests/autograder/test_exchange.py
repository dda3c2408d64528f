"""nbgrader's exchange: given out, fetched, handed in, collected, and then graded like any folder."""

import getpass
import json

import pytest
from nbgrader.auth import Authenticator
from nbgrader.coursedir import CourseDirectory
from nbgrader.exchange.default import (
    ExchangeCollect,
    ExchangeFetchAssignment,
    ExchangeReleaseAssignment,
    ExchangeSubmit,
)

from autograder.build import course_config, register
from autograder.classes import ClassFolder, grade_class, scores
from autograder.loader import find_exercise
from autograder.sample_class.make import answered, right

ERA = "transformer"
ATTENTION = find_exercise(ERA, "attention")


@pytest.mark.slow
def test_what_is_handed_in_through_the_exchange_is_graded(tmp_path, monkeypatch):
    root, home = tmp_path / "exchange", tmp_path / "learner"
    root.mkdir(mode=0o777)
    root.chmod(0o777)
    home.mkdir()
    where = ClassFolder(tmp_path / "class")

    def run(step, **course):
        config = course_config(assignment_id=ERA, db_url=where.db_url, **course)
        config.Exchange.root, config.Exchange.cache = str(root), str(tmp_path / "cache")
        config.Exchange.timezone = "UTC"
        course_folder, who = CourseDirectory(config=config), Authenticator(config=config)
        step(coursedir=course_folder, authenticator=who, config=config).start()

    where.folder.mkdir()
    register(where.db_url)
    run(ExchangeReleaseAssignment)
    monkeypatch.chdir(home)
    run(ExchangeFetchAssignment)
    notebook = home / ERA / "attention.ipynb"
    document = answered(ATTENTION, json.loads(notebook.read_text()), right(ATTENTION))
    notebook.write_text(json.dumps(document))
    run(ExchangeSubmit)
    run(ExchangeCollect, submitted_directory=where.submitted)
    assert grade_class(where, "process", lambda *progress: None) == []
    found = {(s.student, s.exercise): s.auto for s in scores(where.db_url)}
    assert found[getpass.getuser(), "attention"] == 14
