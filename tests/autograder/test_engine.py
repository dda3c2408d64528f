"""What is kept of a grading, and when it no longer counts."""

import dataclasses
import json
import subprocess
import sys

import pytest

from autograder.engine import GRADER, Engine, write_whole
from autograder.loader import find_exercise
from autograder.misconceptions import misconceptions
from autograder.verdicts import test_key

LOADED = """
import sys
import autograder.engine, autograder.examiner, autograder.hidden
print(*(name for name in sys.modules if name.startswith("autograder.") and name.count(".") == 1))
"""


def test_a_result_depends_on_every_module_that_grading_loads():
    loaded = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, check=True
    ).stdout.split()
    folders = {"autograder.split", "autograder.misconceptions"}  # as a whole
    assert set(loaded) - folders == {f"autograder.{name}" for name in GRADER}


# -- what runs again --------------------------------------------------------------------------------------

EXERCISE = find_exercise("transformer", "attention")
FIRST, *_, LAST = EXERCISE.parts


def cells(**answers):
    """A notebook with the reference's answers, but for these."""
    return [
        {"name": c.name, "source": answers.get(c.name, c.source)}
        for c in EXERCISE.cells
        if c.kind in ("given", "solution")
    ]


def with_test(name, change):
    """The exercise as it is once one of its tests has been changed."""
    changed = [
        dataclasses.replace(c, source=change(c.source)) if c.name == name else c
        for c in EXERCISE.cells
    ]
    return dataclasses.replace(EXERCISE, cells=changed)


@pytest.fixture
def counting(tmp_path, monkeypatch):
    """An engine, and the tests that it has run, by name."""
    grader, ran = Engine("process", cache=tmp_path), []
    keep = grader.keep

    def noting(exercise, notebook, record):
        keys = {
            test_key(exercise, cell, part, failed): cell.name
            for part, tests in exercise.parts.items()
            for cell in tests
            for failed in ([], [FIRST])
        }
        ran.extend(keys[key] for key in record["tests"])
        keep(exercise, notebook, record)

    monkeypatch.setattr(grader, "keep", noting)
    yield grader, ran
    grader.close()


def names(exercise, *parts):
    return {cell.name for part in parts or exercise.parts for cell in exercise.parts[part]}


def test_only_a_changed_test_runs_again(counting):
    # The examiner reads the exercise from its file, so the change is of what was known, not of the file.
    grader, ran = counting
    name = EXERCISE.parts[LAST][0].name
    before = with_test(name, lambda text: text + "\n# as it was")
    grader.find_out(EXERCISE, cells())
    whole = grader.record(EXERCISE, cells())
    [key] = [test_key(EXERCISE, c, LAST, []) for c in EXERCISE.parts[LAST] if c.name == name]
    [old] = [test_key(before, c, LAST, []) for c in before.parts[LAST] if c.name == name]
    whole["tests"][old] = whole["tests"].pop(key)
    write_whole(grader._path(EXERCISE, cells()), json.dumps(whole).encode())
    assert grader.known(before, cells())
    ran.clear()
    assert grader.known(EXERCISE, cells()) is None
    assert all(verdict["passed"] for verdict in grader.grade(EXERCISE, cells())["tests"].values())
    assert ran == [name]
    assert grader.known(before, cells())


def test_a_part_that_fails_now_has_those_after_it_run_with_the_reference_lent(counting):
    grader, ran = counting
    wrong = cells(**{FIRST: EXERCISE.cell(FIRST).source.replace("math.sqrt(d_k)", "d_k")})
    first = grader.grade(EXERCISE, wrong)
    assert set(ran) == names(EXERCISE)
    # As if a milder test of the first part had let it pass.
    record = grader.record(EXERCISE, wrong)
    for cell in EXERCISE.parts[FIRST]:
        record["tests"][test_key(EXERCISE, cell, FIRST, [])]["passed"] = True
    write_whole(grader._path(EXERCISE, wrong), json.dumps(record).encode())
    ran.clear()
    grader.grade(EXERCISE, wrong)
    assert set(ran) == names(EXERCISE) - names(EXERCISE, FIRST)
    assert {n for n, v in first["tests"].items() if not v["passed"]} <= names(EXERCISE, FIRST)


def test_a_better_sentence_on_a_misconception_runs_nothing_and_is_said(counting, monkeypatch):
    grader, ran = counting
    wrong = cells(**{FIRST: EXERCISE.cell(FIRST).source.replace("math.sqrt(d_k)", "d_k")})
    grader.grade(EXERCISE, wrong)
    ran.clear()
    bank = [
        dataclasses.replace(mistake, says="Said better.")
        for mistake in misconceptions("transformer", "attention")
    ]
    monkeypatch.setattr("autograder.verdicts.misconceptions", lambda *name: bank)
    result = grader.grade(EXERCISE, wrong)
    assert not ran
    failed = [verdict["message"] for verdict in result["tests"].values() if not verdict["passed"]]
    assert failed
    assert all(message.startswith("Said better.\n") for message in failed)
