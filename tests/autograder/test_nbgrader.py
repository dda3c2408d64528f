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
from tests.unchanged import named

EXERCISES = [read_exercise(path) for path in exercise_paths()]
FEW = [EXERCISES[0], EXERCISES[-1]]  # of two eras
ERAS = [exercise.era for exercise in FEW]


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


def course_of(folder, exercises):
    """A course folder with the sources of these exercises, whose one student, Ada, has answered everything."""
    for exercise in exercises:
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


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    return course_of(tmp_path_factory.mktemp("course"), FEW)


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


@pytest.mark.of_exercise
@pytest.mark.slow
@pytest.mark.parametrize("exercise", EXERCISES, ids=named)
def test_the_hidden_tests_pass_in_the_single_kernel_of_stock_nbgrader(exercise, tmp_path):
    config = configured(course_of(tmp_path, [exercise]), "stock", stock=True)
    nbgrader("generate_assignment", exercise.era, "--force", config=config)
    nbgrader("autograde", exercise.era, "--force", config=config)
    [(name, reached, possible)] = full_marks(config)
    assert name == exercise.name
    assert reached == possible > 0


@pytest.mark.slow
def test_nbgraders_own_commands_use_the_split_grader(course):
    config = configured(course, "split", stock=False)
    for era in ERAS:
        nbgrader("generate_assignment", era, "--force", config=config)
        nbgrader("autograde", era, "--force", config=config)
        nbgrader("generate_feedback", era, "--force", config=config)
    assert all(reached == possible > 0 for _, reached, possible in full_marks(config))
    for exercise in FEW:
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
