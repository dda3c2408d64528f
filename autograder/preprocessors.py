"""Where the course meets nbgrader: three preprocessors, named in ``nbgrader_config.py``.

nbgrader's own converters, gradebook, form grader, feedback and exporters do the rest as they are.
"""

import textwrap

import nbformat
from nbconvert.exporters.exporter import ResourcesDict
from nbconvert.preprocessors.sanitize import SanitizeHTML
from nbformat import NotebookNode
from nbgrader import utils
from nbgrader.preprocessors import NbGraderPreprocessor
from traitlets import Bool, Enum

from autograder import engine
from autograder.loader import find_exercise
from autograder.notebooks import UNANSWERED, graded_cells, rebuilt_notebook, taken_from
from autograder.session import GradingFailed
from autograder.source import BEGIN_HIDDEN, Exercise, released

__all__ = ["HarmlessFeedback", "Rebuild", "SplitGrade"]


UNGRADED = {
    "passed": False,
    "message": "The grader itself failed on this notebook. Nothing is said about your answers; please tell your "
    "instructor.",
    "misconception": None,
    "log": "",
}


class Rebuild(NbGraderPreprocessor):
    """Puts the answers of a submission into the instructor's notebook and drops everything else."""

    def preprocess(
        self, nb: NotebookNode, resources: ResourcesDict
    ) -> tuple[NotebookNode, ResourcesDict]:
        exercise = _exercise(resources)
        notebook = rebuilt_notebook(exercise, taken_from(list(nb.cells), exercise))
        for cell in notebook.cells:
            if utils.is_grade(cell) and utils.is_solution(cell):
                # The checksum of the released cell: an answer that still has it was never touched.
                as_released = nbformat.from_dict(dict(cell) | {"source": UNANSWERED})
                cell.metadata.nbgrader["checksum"] = utils.compute_checksum(as_released)
        return notebook, resources


class SplitGrade(NbGraderPreprocessor):
    """Grades a rebuilt notebook in the split grader and writes the outputs which nbgrader reads scores from."""

    isolation = Enum(
        ("sandbox", "process"),
        default_value="sandbox",
        help="'sandbox', or 'process' on a system without Linux namespaces: see SECURITY.md.",
    ).tag(config=True)

    def preprocess(
        self, nb: NotebookNode, resources: ResourcesDict
    ) -> tuple[NotebookNode, ResourcesDict]:
        exercise = _exercise(resources)
        cells = graded_cells(nb, exercise)
        result = self._graded(exercise, cells)
        by_id = {cell["id"]: outcome for cell, outcome in zip(cells, result["cells"], strict=True)}
        for cell in nb.cells:
            if cell.cell_type == "code":
                grade_id = cell.metadata.get("nbgrader", {}).get("grade_id")
                if grade_id in result["tests"]:
                    cell.outputs = _verdict(result["tests"][grade_id])
                    self._log(resources, grade_id, result["tests"][grade_id])
                elif cell.id in by_id:
                    cell.outputs = _shown(by_id[cell.id])
        return nb, resources

    def _graded(self, exercise: Exercise, cells: list[dict]) -> dict:
        try:
            return engine.default(self.isolation).grade(exercise, cells)
        except GradingFailed:
            # One notebook must not stop the class. Nothing is kept, so the next run tries again.
            self.log.error("the grader failed on a notebook of %s", exercise.name, exc_info=True)
            return {
                "tests": {c.name: UNGRADED for c in exercise.cells if c.kind == "test"},
                "cells": [{"error": None} for _ in cells],
            }

    def _log(self, resources: ResourcesDict, test: str, verdict: dict) -> None:
        if not verdict["passed"]:
            about = resources["nbgrader"]
            why = verdict["misconception"] or verdict["message"].partition("\n")[0]
            self.log.info("%s, %s: %s failed: %s", about["student"], about["notebook"], test, why)
            self.log.debug("%s", verdict["log"])


class HarmlessFeedback(SanitizeHTML):
    """What goes back to a learner holds no hidden test, and nothing of the learner's that a browser runs."""

    enabled = Bool(True, help="nbconvert's preprocessors are off unless they say otherwise.").tag(
        config=True
    )

    def preprocess_cell(
        self, cell: NotebookNode, resources: ResourcesDict, index: int
    ) -> tuple[NotebookNode, ResourcesDict]:
        if utils.is_grade(cell) and cell.cell_type == "code":
            if BEGIN_HIDDEN in cell.source:
                cell.source = (
                    released(cell.source).rstrip() + "\n# … and hidden tests on other inputs"
                )
        elif not utils.is_locked(cell):
            return super().preprocess_cell(cell, resources, index)
        return cell, resources


def _exercise(resources: ResourcesDict) -> Exercise:
    return find_exercise(resources["nbgrader"]["assignment"], resources["nbgrader"]["notebook"])


def _verdict(verdict: dict) -> list[NotebookNode]:
    """No output for a passed test, which nbgrader reads as full marks; an error with the message else."""
    if verdict["passed"]:
        return []
    lines = (verdict["message"] or "This test failed.").splitlines()
    # The feedback page shows the text as it is, in a box about this wide.
    message = "\n".join(textwrap.fill(line, 92, break_long_words=False) for line in lines)
    return [
        nbformat.v4.new_output(
            "error", ename="Not yet", evalue=message.partition("\n")[0], traceback=[message]
        )
    ]


def _shown(outcome: dict) -> list[NotebookNode]:
    """What a cell of the learner's showed, as plain text and pictures."""
    outputs = []
    for stream in ("stdout", "stderr"):
        if outcome.get(stream):
            outputs.append(nbformat.v4.new_output("stream", name=stream, text=outcome[stream]))
    outputs += [
        nbformat.v4.new_output("display_data", data=data) for data in outcome.get("shown", [])
    ]
    if outcome["error"]:
        name, text = outcome["error"]
        outputs.append(
            nbformat.v4.new_output("error", ename=name, evalue=text, traceback=[f"{name}: {text}"])
        )
    return outputs
