"""Each submission of the corpus earns what its answers are worth, whatever else it does, and learns nothing."""

import json
from pathlib import Path

import pytest

from autograder.engine import default
from autograder.notebooks import (
    Submission,
    SubmissionError,
    graded_cells,
    read_submission,
    rebuilt_notebook,
)
from tests.hostile.corpus import CORPUS, EXERCISE, HIDDEN, ROWS


def graded(submission, folder):
    """What the grader makes of what a submission puts into a folder."""
    submission.write(folder)
    try:
        taken = read_submission(folder / "attention.ipynb", EXERCISE)
    except SubmissionError as refused:
        assert str(refused)
        taken = Submission()
    return default().grade(EXERCISE, graded_cells(rebuilt_notebook(EXERCISE, taken), EXERCISE))


@pytest.mark.slow
@pytest.mark.parametrize("submission", CORPUS, ids=lambda s: s.name)
def test_it_earns_what_its_answers_are_worth_and_learns_nothing(submission, tmp_path):
    result = graded(submission, tmp_path)
    passed = {name for name, verdict in result["tests"].items() if verdict["passed"]}
    assert passed == submission.passes
    messages = [verdict["message"] for verdict in result["tests"].values()]
    assert all(messages[i] or name in passed for i, name in enumerate(result["tests"]))
    said = json.dumps([messages, result["cells"]], ensure_ascii=False)
    assert not [line for line in HIDDEN if line in said]
    assert len(said) < 2_000_000
    assert not Path("/tmp/LEFT-BEHIND").exists()


def test_the_inputs_of_hidden_tests_are_in_no_output(tmp_path):
    spilling = {s.name: s for s in CORPUS if "hidden-inputs" in s.name}
    assert len(spilling) == 2
    for name, submission in spilling.items():
        folder = tmp_path / name
        folder.mkdir()
        result = graded(submission, folder)
        said = [verdict["message"] for verdict in result["tests"].values()]
        assert "SPILT" not in json.dumps([said, result["cells"]])


def test_the_corpus_is_large_and_every_kind_is_in_it():
    assert len(CORPUS) >= 60
    assert {submission.row for submission in CORPUS} == set(ROWS)
