"""The course under nbgrader's own commands, run as an instructor runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from autograder.classes import scores
from autograder.notebooks import source_notebook, written
from autograder.sample_class.make import answered, right
from autograder.source import ROOT, exercise_paths, read_exercise

EXERCISES = [read_exercise(path) for path in exercise_paths()]
ERAS = sorted({exercise.era for exercise in EXERCISES})


def nbgrader(*arguments, config):
    done = subprocess.run(
        [sys.executable, "-m", "nbgrader", *arguments, f"--config={config}"],
        cwd=config.parent,
        env=os.environ
        | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A course folder with its sources, whose one student, Ada, has answered everything."""
    folder = tmp_path_factory.mktemp("course")
    for exercise in EXERCISES:
        released = json.loads(
            (ROOT / "exercises" / exercise.era / f"{exercise.name}.ipynb").read_text()
        )
        solved = json.dumps(answered(exercise, released, right(exercise)))
        source = written(source_notebook(exercise))
        for place, text in (("submitted/ada", solved), ("source", source)):
            path = folder / place / exercise.era / f"{exercise.name}.ipynb"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return folder


def configured(course, name, stock):
    """A configuration file for this folder: the course's own, or with nbgrader's own preprocessors."""
    path = course / name / "nbgrader_config.py"
    path.parent.mkdir(exist_ok=True)
    lines = [
        f"exec(open({str(ROOT / 'nbgrader_config.py')!r}).read(), {{**globals(), '__file__': "
        f"{str(ROOT / 'nbgrader_config.py')!r}}})",
        "del c.Autograde, c.GenerateFeedback" if stock else "",
        f"c.CourseDirectory.root = {str(path.parent)!r}",
        f"c.CourseDirectory.source_directory = {str(course / 'source')!r}",
        f"c.CourseDirectory.submitted_directory = {str(course / 'submitted')!r}",
        "c.CourseDirectory.release_directory = 'release'",
        # The reference draws and computes more slowly in a cold kernel on a busy machine.
        "c.Execute.timeout = 300",
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def full_marks(config):
    return {
        (s.exercise, s.auto, s.possible_auto)
        for s in scores(f"sqlite:///{config.parent}/gradebook.db")
    }


@pytest.mark.slow
def test_the_same_hidden_tests_pass_in_the_single_kernel_of_stock_nbgrader(course):
    config = configured(course, "stock", stock=True)
    for era in ERAS:
        nbgrader("generate_assignment", era, "--force", config=config)
        nbgrader("autograde", era, "--force", config=config)
    found = full_marks(config)
    assert {exercise for exercise, _, _ in found} == {exercise.name for exercise in EXERCISES}
    assert all(reached == possible > 0 for _, reached, possible in found), found


@pytest.mark.slow
def test_nbgraders_own_commands_use_the_split_grader(course):
    config = configured(course, "split", stock=False)
    for era in ERAS:
        nbgrader("generate_assignment", era, "--force", config=config)
        nbgrader("autograde", era, "--force", config=config)
        nbgrader("generate_feedback", era, "--force", config=config)
    assert all(reached == possible > 0 for _, reached, possible in full_marks(config))
    for exercise in EXERCISES:
        page = config.parent / "feedback" / "ada" / exercise.era / f"{exercise.name}.html"
        assert "BEGIN HIDDEN" not in page.read_text()
        graded = json.loads(
            (config.parent / "autograded/ada" / exercise.era / f"{exercise.name}.ipynb").read_text()
        )
        # nobody ran a kernel: no cell has a number
        assert not [cell for cell in graded["cells"] if cell.get("execution_count")]


@pytest.mark.slow
def test_the_gradebook_is_exported_by_nbgrader(course):
    config = configured(course, "split", stock=False)
    if not (config.parent / "gradebook.db").exists():
        pytest.skip("needs the gradebook of the test before")
    nbgrader("export", config=config)
    table = (config.parent / "grades.csv").read_text()
    assert "ada" in table
    assert all(era in table for era in ERAS)
