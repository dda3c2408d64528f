"""Exercises as notebooks: the instructor's source notebook, and a submission rebuilt upon it.

What is graded is always the instructor's notebook. From a submission only two things are taken: the text of
the answer cells, and the learner's own cells. Points, tests, ids, order and tags are never the learner's.
"""

import copy
import dataclasses
import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_notebook

from autograder.source import Cell, Exercise

__all__ = [
    "Submission",
    "SubmissionError",
    "read_submission",
    "rebuilt_notebook",
    "source_notebook",
]

MAX_NOTEBOOK = 20 << 20
MAX_CELL = 200_000
MAX_OWN_CELLS = 200

METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# nbclient skips a cell with this tag, and so does stock nbgrader while it grades; JupyterLab runs it.
EXPERIMENT_TAGS = ["skip-execution"]


# What nbgrader writes into a text cell that is to be answered.
UNANSWERED = "YOUR ANSWER HERE"


class SubmissionError(Exception):
    """A submitted file is no notebook that can be read; the message says why, for the learner."""


@dataclass
class Submission:
    """What is taken from a submitted notebook.

    Attributes:
        answers: the text of answer cells (solutions and written answers) by their name.
        own_cells: the learner's own cells as ``(after, kind, text)``: the id of the course's cell before
            it (``""`` for none), ``"code"`` or ``"markdown"``, and what it says.
    """

    answers: dict[str, str] = field(default_factory=dict)
    own_cells: list[tuple[str, str, str]] = field(default_factory=list)


def source_notebook(exercise: Exercise) -> NotebookNode:
    """The exercise as an nbgrader source notebook (metadata schema 3), without outputs."""
    notebook = new_notebook(metadata=copy.deepcopy(METADATA))
    notebook.cells = [_source_cell(cell, cell_id) for cell_id, cell in cell_ids(exercise).items()]
    return notebook


def cell_ids(exercise: Exercise) -> dict[str, Cell]:
    """The cells of the notebook by id: the name, or for a nameless cell its kind and number.

    A written answer is two cells there, because nbgrader clears the whole cell that is to be answered: the
    question, locked, and the answer.
    """
    ids: dict[str, Cell] = {}
    counts: dict[str, int] = {}
    for cell in exercise.cells:
        cell_id = cell.name.replace("_", "-")
        if cell.kind == "written":
            ids[f"{cell_id}-question"] = Cell("text", "", cell.source, cell.line)
            ids[cell_id] = dataclasses.replace(cell, source=UNANSWERED)
        elif cell.name:
            ids[cell_id] = cell
        else:
            counts[cell.kind] = counts.get(cell.kind, 0) + 1
            ids[f"{cell.kind}-{counts[cell.kind]}"] = cell
    return ids


def read_submission(path: Path, exercise: Exercise) -> Submission:
    """What a submitted notebook holds, whatever else it may hold.

    Raises:
        SubmissionError: the file is missing, no ordinary file, too large, or no notebook.
    """
    return taken_from(_cells_of(_read_ordinary_file(path)), exercise)


def taken_from(cells: list[dict], exercise: Exercise) -> Submission:
    """Sorts a submitted notebook's cells into answers and the learner's own."""
    ids = cell_ids(exercise)
    by_grade_id = {cell.name or cell_id: cell_id for cell_id, cell in ids.items()}
    known_texts = {cell.source.strip(): cell_id for cell_id, cell in ids.items()}
    places = [_place(cell, ids, by_grade_id, known_texts) for cell in cells]
    first: dict[str, int] = {}
    for number, place in enumerate(places):
        first.setdefault(place, number)
    last = {place: number for number, place in enumerate(places)}
    submission, after = Submission(), ""
    for number, (cell, place) in enumerate(zip(cells, places, strict=True)):
        text = _text(cell)
        course_cell = ids.get(place)
        is_answer = course_cell is not None and course_cell.kind in ("solution", "written")
        # Of a copied answer cell the last counts, as in nbgrader, and the others are the learner's own; of any
        # other copied cell the first. A copy leaves what follows it where it is.
        counts = course_cell is not None and number == (last if is_answer else first)[place]
        if is_answer and counts:
            submission.answers[course_cell.name] = text
        elif text.strip() and (course_cell is None or is_answer):
            kind = "code" if cell.get("cell_type") == "code" else "markdown"
            submission.own_cells.append((after, kind, text))
        if counts:
            after = place
    del submission.own_cells[MAX_OWN_CELLS:]
    return submission


def rebuilt_notebook(exercise: Exercise, submission: Submission) -> NotebookNode:
    """The instructor's notebook with the submission's answers and own cells in it, hidden tests included."""
    notebook = source_notebook(exercise)
    cells: list[NotebookNode] = []
    own = list(submission.own_cells)
    number = 0
    for cell_id, cell in [("", None), *zip(cell_ids(exercise), notebook.cells, strict=True)]:
        if cell is not None:
            name = cell.metadata.get("nbgrader", {}).get("grade_id", "")
            cell.source = submission.answers.get(name, _blank(cell, exercise))
            cells.append(cell)
        for after, kind, text in own:
            if after == cell_id:
                number += 1
                cells.append(_new_cell(kind, text, f"own-{number}"))
    notebook.cells = cells
    return notebook


def graded_cells(notebook: NotebookNode, exercise: Exercise) -> list[dict]:
    """What the learner process runs of a rebuilt notebook: given cells, answers and own code, in order."""
    ids = cell_ids(exercise)
    cells = []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        course_cell = ids.get(cell.id)
        if course_cell is None or course_cell.kind in ("given", "solution"):
            name = course_cell.name if course_cell else ""
            cells.append({"id": cell.id, "name": name, "source": cell.source})
    return cells


def _source_cell(cell: Cell, cell_id: str) -> NotebookNode:
    kind = "markdown" if cell.kind in ("text", "written") else "code"
    written = _new_cell(kind, cell.source, cell_id)
    if cell.kind == "experiment":
        written.metadata.update({"experiment": True, "tags": list(EXPERIMENT_TAGS)})
        return written
    graded = cell.kind in ("test", "written")
    written.metadata["nbgrader"] = {
        "grade": graded,
        "grade_id": cell.name or cell_id,
        "locked": cell.kind not in ("solution", "written"),
        "schema_version": 3,
        "solution": cell.kind in ("solution", "written"),
        "task": False,
    } | ({"points": cell.points} if graded else {})
    return written


def _new_cell(kind: str, text: str, cell_id: str) -> NotebookNode:
    """As nbformat makes a cell, but validated with the whole notebook when it is written, and not alone before."""
    cell = NotebookNode(id=cell_id, cell_type=kind, metadata=NotebookNode(), source=text)
    if kind == "code":
        cell.update(execution_count=None, outputs=[])
    return cell


def _blank(cell: NotebookNode, exercise: Exercise) -> str:
    """What stands in a cell for which nothing was submitted."""
    is_solution = cell_ids(exercise)[cell.id].kind == "solution"
    return "raise NotImplementedError()" if is_solution else cell.source


def _read_ordinary_file(path: Path) -> bytes:
    try:
        # No link is followed, and a device or a pipe cannot keep us waiting.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise SubmissionError(f"The file cannot be opened ({error.strerror}).") from error
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise SubmissionError("This is not an ordinary file.")
        if about.st_size > MAX_NOTEBOOK:
            raise SubmissionError(
                f"The notebook has {about.st_size >> 20} MB; {MAX_NOTEBOOK >> 20} MB are allowed. "
                "Clear its outputs and submit it again."
            )
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_NOTEBOOK + 1)
    finally:
        os.close(descriptor)


def _cells_of(raw: bytes) -> list[dict]:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise SubmissionError("The file is no notebook: it is not JSON.") from error
    if not isinstance(document, dict):
        raise SubmissionError("The file is no notebook.")
    cells = document.get("cells")
    if cells is None and isinstance(document.get("worksheets"), list):  # nbformat 3
        sheets = [sheet for sheet in document["worksheets"] if isinstance(sheet, dict)]
        lists = [sheet["cells"] for sheet in sheets if isinstance(sheet.get("cells"), list)]
        cells = [cell for listed in lists for cell in listed]
    if not isinstance(cells, list):
        raise SubmissionError("The file is no notebook: it has no cells.")
    return [cell for cell in cells if isinstance(cell, dict)]


def _place(
    cell: dict, ids: dict[str, Cell], by_grade_id: dict[str, str], texts: dict[str, str]
) -> str:
    """The id of the course's cell this one stands for; empty for the learner's own."""
    metadata = cell.get("metadata") if isinstance(cell.get("metadata"), dict) else {}
    grader = metadata.get("nbgrader") if isinstance(metadata.get("nbgrader"), dict) else {}
    grade_id, cell_id = (
        x if isinstance(x, str) else "" for x in (grader.get("grade_id"), cell.get("id"))
    )
    if grade_id in by_grade_id:
        return by_grade_id[grade_id]
    if cell_id in ids and (metadata.get("experiment") or _text(cell).strip() in texts):
        return cell_id
    # An old notebook format has no ids; the course's prose and experiments are known by their text.
    return texts.get(_text(cell).strip(), "")


def _text(cell: dict[str, Any]) -> str:
    source = cell.get("source", cell.get("input", ""))
    if isinstance(source, list):
        source = "".join(line for line in source if isinstance(line, str))
    if not isinstance(source, str):
        return ""
    # JSON can name half a character of two; no file can hold it.
    return source[:MAX_CELL].encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def written(notebook: NotebookNode) -> str:
    """The notebook as the text of a file; the same notebook gives the same bytes."""
    return nbformat.writes(notebook, version=4) + "\n"
