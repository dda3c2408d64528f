"""A submission is rebuilt upon the instructor's notebook, whatever was done to it."""

import copy
import json
import os

import pytest

from autograder.loader import find_exercise
from autograder.notebooks import (
    Submission,
    SubmissionError,
    graded_cells,
    read_submission,
    rebuilt_notebook,
    source_notebook,
    taken_from,
)
from autograder.source import ROOT

EXERCISE = find_exercise("transformer", "attention")
RELEASED = json.loads((ROOT / "exercises/transformer/attention.ipynb").read_text())
ANSWER = "def causal_mask(length, device=None):\n    return None\n"


def answered():
    notebook = copy.deepcopy(RELEASED)
    cell(notebook, "masks")["source"] = ANSWER
    return notebook


def cell(notebook, grade_id):
    return next(
        c
        for c in notebook["cells"]
        if c["metadata"].get("nbgrader", {}).get("grade_id") == grade_id
    )


def points(notebook):
    cells = [c.metadata.get("nbgrader", {}) for c in notebook.cells]
    return {meta["grade_id"]: meta["points"] for meta in cells if meta.get("grade")}


def rebuilt(notebook):
    return rebuilt_notebook(EXERCISE, taken_from(notebook["cells"], EXERCISE))


def test_answers_and_own_cells_are_taken():
    notebook = answered()
    notebook["cells"].insert(5, {"cell_type": "code", "source": "x = 1", "metadata": {}, "id": "a"})
    found = rebuilt(notebook)
    assert [c.source for c in found.cells if c.source in (ANSWER, "x = 1")] == ["x = 1", ANSWER]


def test_tests_points_tags_and_order_are_the_instructors():
    notebook = answered()
    for test in ("attention_by_hand", "masks_by_hand"):
        cell(notebook, test)["source"] = "pass"
        cell(notebook, test)["metadata"]["nbgrader"]["points"] = 100
        cell(notebook, test)["metadata"]["tags"] = ["skip-execution"]
    notebook["cells"].reverse()
    found = rebuilt(notebook)
    assert points(found) == points(source_notebook(EXERCISE))
    assert "BEGIN HIDDEN TESTS" in next(c for c in found.cells if c.id == "masks-by-hand").source
    assert not any("tags" in c.metadata for c in found.cells if "nbgrader" in c.metadata)
    course = [c.id for c in found.cells if not c.id.startswith("own")]
    assert course == [c.id for c in source_notebook(EXERCISE).cells]


def test_deleted_cells_come_back_and_an_answer_not_given_is_not_answered():
    found = rebuilt({"cells": []})
    assert points(found) == points(source_notebook(EXERCISE))
    assert (
        next(c for c in found.cells if c.id == "attention").source == "raise NotImplementedError()"
    )


def test_of_a_copied_answer_cell_the_last_counts():
    notebook = answered()
    notebook["cells"].insert(0, copy.deepcopy(cell(notebook, "masks")) | {"source": "an old try"})
    found = rebuilt(notebook)
    assert next(c for c in found.cells if c.id == "masks").source == ANSWER
    assert found.cells[0].source == "an old try"


def test_experiments_tests_and_prose_do_not_run_while_grading():
    cells = graded_cells(rebuilt(answered()), EXERCISE)
    kinds = {c["name"] or c["id"].split("-")[0] for c in cells}
    assert kinds == {"given", *EXERCISE.parts}


def test_rebuilding_what_was_rebuilt_changes_nothing():
    once = rebuilt(answered())
    assert rebuilt(json.loads(json.dumps(once))) == once


@pytest.mark.parametrize("version", [3, 4, 5])
def test_every_notebook_format_is_read(version):
    notebook = answered()
    for one in notebook["cells"]:
        if version < 5:
            one.pop("id")
        if version == 3:
            one["input"] = one.pop("source")
    document = (
        notebook if version > 3 else {"worksheets": [{"cells": notebook["cells"]}], "nbformat": 3}
    )
    from autograder.notebooks import _cells_of

    found = rebuilt_notebook(
        EXERCISE, taken_from(_cells_of(json.dumps(document).encode()), EXERCISE)
    )
    assert next(c for c in found.cells if c.id == "masks").source == ANSWER
    assert not [c for c in found.cells if c.id.startswith("own")]


@pytest.mark.parametrize(
    "content, says",
    [
        (b"not json", "not JSON"),
        (b"[1, 2]", "no notebook"),
        (b'{"nbformat": 4}', "no cells"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"", "not JSON"),
    ],
)
def test_a_file_that_is_no_notebook_is_refused_with_a_reason(tmp_path, content, says):
    path = tmp_path / "attention.ipynb"
    path.write_bytes(content)
    with pytest.raises(SubmissionError, match=says):
        read_submission(path, EXERCISE)


@pytest.mark.parametrize(
    "cells", [[None, 3, "x", [], {}], [{"source": {"a": 1}, "metadata": []}], [{"id": ["x"]}]]
)
def test_odd_cells_do_no_harm(tmp_path, cells):
    path = tmp_path / "attention.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    found = rebuilt_notebook(EXERCISE, read_submission(path, EXERCISE))
    assert points(found) == points(source_notebook(EXERCISE))


def test_links_pipes_and_huge_files_are_refused(tmp_path):
    link = tmp_path / "link.ipynb"
    link.symlink_to("/etc/passwd")
    with pytest.raises(SubmissionError, match="cannot be opened"):
        read_submission(link, EXERCISE)
    pipe = tmp_path / "pipe.ipynb"
    os.mkfifo(pipe)
    with pytest.raises(SubmissionError, match="ordinary"):
        read_submission(pipe, EXERCISE)
    huge = tmp_path / "huge.ipynb"
    with huge.open("wb") as file:
        file.truncate(100 << 20)
    with pytest.raises(SubmissionError, match="100 MB"):
        read_submission(huge, EXERCISE)


def test_the_number_and_length_of_own_cells_is_bounded():
    notebook = {
        "cells": [
            {"cell_type": "code", "source": f"x{i}" + " " * 300_000, "metadata": {}}
            for i in range(500)
        ]
    }
    submission = taken_from(notebook["cells"], EXERCISE)
    assert len(submission.own_cells) == 200
    assert max(len(text) for _, _, text in submission.own_cells) == 200_000
    assert isinstance(submission, Submission)
