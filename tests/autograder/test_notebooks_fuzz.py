"""Whatever file is handed in is read or refused with a reason, and what is graded is the instructor's notebook."""

import copy
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autograder.loader import find_exercise
from autograder.notebooks import (
    MAX_CELL,
    MAX_OWN_CELLS,
    Submission,
    SubmissionError,
    cell_ids,
    graded_cells,
    read_submission,
    rebuilt_notebook,
    source_notebook,
    taken_from,
    written,
)
from autograder.source import ROOT
from tests.autograder.fuzz import fuzzed, mutated

EXERCISE = find_exercise("transformer", "attention")
SOURCE = source_notebook(EXERCISE)
RELEASED = json.loads((ROOT / "exercises/transformer/attention.ipynb").read_text())
ANSWERS = {
    name: cell for name, cell in cell_ids(EXERCISE).items() if cell.kind in ("solution", "written")
}


def read(raw: bytes) -> Submission | None:
    """What is taken from a file, if it is not refused."""
    with tempfile.NamedTemporaryFile(suffix=".ipynb") as file:
        Path(file.name).write_bytes(raw)
        try:
            return read_submission(Path(file.name), EXERCISE)
        except SubmissionError as error:
            assert str(error)
            return None


def check_rebuilt(submission: Submission) -> None:
    """What is graded is valid, says what was handed in, and in all else is as its author wrote it."""
    notebook = rebuilt_notebook(EXERCISE, submission)
    nbformat.validate(notebook)
    course = [cell for cell in notebook.cells if not cell.id.startswith("own-")]
    own = [cell for cell in notebook.cells if cell.id.startswith("own-")]
    assert [(c.id, c.cell_type, c.metadata) for c in course] == [
        (c.id, c.cell_type, c.metadata) for c in SOURCE.cells
    ]
    for cell, original in zip(course, SOURCE.cells, strict=True):
        if cell.id in ANSWERS:
            blank = (
                original.source
                if ANSWERS[cell.id].kind == "written"
                else "raise NotImplementedError()"
            )
            assert cell.source == submission.answers.get(ANSWERS[cell.id].name, blank)
        else:
            assert cell.source == original.source
    assert sorted(c.source for c in own) == sorted(text for _, _, text in submission.own_cells)
    assert len(own) <= MAX_OWN_CELLS
    assert all(len(cell.source) <= MAX_CELL for cell in notebook.cells)
    assert all("nbgrader" not in cell.metadata for cell in own)
    _check_file(notebook)
    _check_what_runs(notebook)


def _check_file(notebook: nbformat.NotebookNode) -> None:
    again = nbformat.reads(written(notebook).encode("utf-8").decode("utf-8"), as_version=4)
    nbformat.validate(again)
    assert [(c.id, c.source) for c in again.cells] == [(c.id, c.source) for c in notebook.cells]


def _check_what_runs(notebook: nbformat.NotebookNode) -> None:
    runs = graded_cells(notebook, EXERCISE)
    wanted = [
        (i, cell) for i, cell in cell_ids(EXERCISE).items() if cell.kind in ("given", "solution")
    ]
    course = [cell for cell in runs if not cell["id"].startswith("own-")]
    assert [(cell["id"], cell["name"]) for cell in course] == [(i, cell.name) for i, cell in wanted]
    assert all(
        found["source"] == cell.source
        for found, (_, cell) in zip(course, wanted, strict=True)
        if cell.kind == "given"
    )


def check(raw: bytes) -> None:
    """A file is refused, or what is made of it is right."""
    submission = read(raw)
    if submission is not None:
        check_rebuilt(submission)


# -- what is handed in ------------------------------------------------------------------------------------

any_text = st.text(st.characters(), max_size=20)
long_text = st.builds(
    lambda character, count, end: character * count + end,
    st.sampled_from(["x", "\n", "é", "\u2028", "\U0001f600", "\ud800"]),
    st.sampled_from([1000, MAX_CELL - 1, MAX_CELL, MAX_CELL + 1]),
    any_text,
)
some_ids = [cell["id"] for cell in RELEASED["cells"]]
some_texts = ["".join(cell["source"]) for cell in RELEASED["cells"]]
names = st.sampled_from([*some_ids, *(cell.name for cell in EXERCISE.cells), "own-1", "", "\ud800"])
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text | names,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(any_text | names, inner, max_size=3)
    ),
    max_leaves=6,
)
kinds = st.sampled_from(["code", "markdown", "raw", "heading", "html", ""])
sources = st.one_of(
    any_text,
    st.sampled_from(some_texts),
    st.lists(any_text, max_size=4),
    st.lists(any_text | junk, max_size=4),
    long_text,
    junk,
)
metadata = st.fixed_dictionaries(
    {},
    optional={
        "nbgrader": junk
        | st.fixed_dictionaries(
            {"grade_id": names | junk},
            optional={name: junk for name in ("points", "grade", "locked", "solution", "schema_version", "task")},
        ),
        "tags": st.just(["skip-execution"]) | junk,
        "experiment": st.booleans() | junk,
        "deletable": junk,
    },
)  # fmt: skip
cells = st.fixed_dictionaries(
    {"cell_type": kinds | junk},
    optional={
        "source": sources,
        "input": sources,
        "id": names | junk,
        "metadata": metadata | junk,
        "outputs": junk,
        "execution_count": junk,
    },
)


@st.composite
def changed_cells(draw: st.DrawFn) -> list:
    """The released cells after some of what learners and others do to them."""
    found = list(RELEASED["cells"])
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(found)))
        change = draw(st.sampled_from(["insert", "copy", "move", "remove", "edit", "edit"]))
        if change == "insert" or not found:
            found.insert(at, draw(cells | junk))
            continue
        place = draw(st.integers(0, len(found) - 1))
        if change in ("copy", "edit") and isinstance(found[place], dict):
            edited = found[place] | draw(cells.map(lambda cell: dict(list(cell.items())[1:])))
            found[place : place + (change == "edit")] = [edited]
        elif change == "move":
            found.insert(min(at, len(found) - 1), found.pop(place))
        elif change == "remove":
            found.pop(place)
    return found


def _as_format(version: int, found: list) -> Any:
    """Cells as a notebook of one of nbformat's versions."""
    if version >= 4:
        return {"cells": found, "metadata": {}, "nbformat": version, "nbformat_minor": 5}
    text = "code" if version == 1 else "input"
    old = [
        {text if key == "source" else key: part for key, part in cell.items()}
        if isinstance(cell, dict) and cell.get("cell_type") == "code"
        else cell
        for cell in found
    ]
    if version == 1:
        return {"cells": old}
    return {"worksheets": [{"cells": old[:9]}, {"cells": old[9:]}], "nbformat": version}


def _dumped(document: Any, encoding: str = "utf-8") -> bytes:
    return json.dumps(document).encode(encoding)


# -- tests ------------------------------------------------------------------------------------------------


@given(st.binary(max_size=100))
@fuzzed(200)
def test_any_bytes_are_read_or_refused(raw):
    check(raw)


@given(
    junk
    | st.fixed_dictionaries({"cells": junk | st.lists(cells | junk, max_size=4)})
    | st.fixed_dictionaries(
        {"worksheets": junk | st.lists(st.fixed_dictionaries({"cells": junk}))}
    ),
    st.sampled_from(["utf-8", "utf-16", "utf-32"]),
)
@fuzzed(200)
def test_any_json_is_read_or_refused(document, encoding):
    check(_dumped(document, encoding))


@given(st.sampled_from([1, 2, 3, 4, 5]), changed_cells())
@fuzzed(110)
def test_changed_notebooks_of_every_format_are_rebuilt(version, found):
    check(_dumped(_as_format(version, found)))


@given(
    st.sampled_from([1, 2, 3, 4, 5]).flatmap(
        lambda v: mutated(_as_format(v, RELEASED["cells"]), junk)
    )
)
@fuzzed(110)
def test_notebooks_with_parts_of_them_broken_are_rebuilt(document):
    check(_dumped(document))


@given(st.binary(max_size=4), st.data())
@fuzzed(50)
def test_notebooks_with_some_bytes_overwritten_are_read_or_refused(patch, data):
    raw = _dumped(RELEASED)
    at = data.draw(st.integers(0, len(raw)))
    check(raw[:at] + patch + raw[at + len(patch) :])
    check(raw[:at])


def _places_of(found: list[dict], answers: bool) -> list[int]:
    return [
        i for i, cell in enumerate(found) if "id" in cell and (cell["id"] in ANSWERS) == answers
    ]


@st.composite
def cells_with_copies(draw: st.DrawFn) -> list[dict]:
    """The released cells with own cells among them, copies of answers above these, and of the rest below."""
    found = [
        cell | {"source": f"# answer {i}"} if cell["id"] in ANSWERS else cell
        for i, cell in enumerate(RELEASED["cells"])
    ]
    for number in range(draw(st.integers(1, 6))):
        new = {"cell_type": "code", "source": f"# own {number}", "metadata": {}}
        what = draw(st.sampled_from(["own", "copy", "copy of an answer"]))
        at = draw(st.integers(0, len(found)))
        if what != "own":
            is_answer = what == "copy of an answer"
            place = draw(st.sampled_from(_places_of(found, is_answer)))
            new = new | {"metadata": found[place]["metadata"]} if is_answer else found[place]
            at = min(at, place) if is_answer else max(at, place + 1)
        found.insert(at, new)
    return found


@given(cells_with_copies())
@fuzzed(100)
def test_what_runs_is_in_the_order_in_which_it_was_handed_in(found):
    notebook = rebuilt_notebook(EXERCISE, taken_from(found, EXERCISE))
    submitted = [
        cell["source"]
        for cell in found
        if cell["cell_type"] == "code" and str(cell["source"]).startswith(("# own", "# answer"))
    ]
    runs = [cell["source"] for cell in graded_cells(notebook, EXERCISE)]
    assert [text for text in runs if text.startswith(("# own", "# answer"))] == submitted


# -- found here -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sheet", [5, True, "cells", {"a": 1}, None])
def test_a_worksheet_without_a_list_of_cells_has_none(sheet):
    assert read(_dumped({"worksheets": [{"cells": sheet}]})) == Submission()


@pytest.mark.parametrize(
    "source, text",
    [("\ud800", "\ufffd"), ("a\udfffb", "a\ufffdb"), (["\ud83d", "\ude00"], "\U0001f600"), ("\ufeffa", "\ufeffa")],
)  # fmt: skip
def test_a_text_with_half_a_character_can_be_written(source, text):
    submission = read(_dumped({"cells": [{"cell_type": "code", "source": source}]}))
    assert submission.own_cells == [("", "code", text)]
    check_rebuilt(submission)


def _cell(text: str, copied: str = "") -> dict:
    grader = {"nbgrader": {"grade_id": copied}} if copied else {}
    return {"cell_type": "code", "source": text, "metadata": grader}


def test_of_three_copies_of_an_answer_the_last_runs_last():
    handed_in = [_cell(text, "masks") for text in ("first", "second", "third")]
    notebook = rebuilt_notebook(EXERCISE, taken_from(handed_in, EXERCISE))
    runs = [cell["source"] for cell in graded_cells(notebook, EXERCISE)]
    assert [text for text in runs if text in ("first", "second", "third")] == [
        "first",
        "second",
        "third",
    ]


def test_a_copied_course_cell_does_not_draw_what_follows_to_its_first_place():
    given_cell = next(cell for cell in RELEASED["cells"] if cell["id"] == "given-1")
    handed_in = [given_cell, _cell("answer", "masks"), copy.deepcopy(given_cell), _cell("own")]
    notebook = rebuilt_notebook(EXERCISE, taken_from(handed_in, EXERCISE))
    runs = [cell["source"] for cell in graded_cells(notebook, EXERCISE)]
    assert runs.index("answer") < runs.index("own")


def test_many_copies_of_an_answer_take_time_like_many_cells():
    handed_in = [_cell("x", "masks")] * 100_000
    start = time.monotonic()
    assert taken_from(handed_in, EXERCISE).answers == {"masks": "x"}
    assert time.monotonic() - start < 5
