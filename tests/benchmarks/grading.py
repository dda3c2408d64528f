"""Seconds a notebook: the split grader against stock nbgrader, on the same submissions, in one run.

    python -m tests.benchmarks.grading

Both go through nbgrader's own ``Autograde`` converter and write a gradebook. Reported are the whole and the
grader's own overhead: the whole less what this student's answers and the tests themselves compute, measured in a
warm process. The median of several students is taken; the applications' imports and the warm start are counted apart.
"""

import logging
import operator
import os
import statistics
import sys
import tempfile
import time
import types
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from nbgrader.converters import Autograde
from nbgrader.coursedir import CourseDirectory
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sqlalchemy.exc import SAWarning

from autograder import engine as engines
from autograder.build import course_config, register
from autograder.engine import Engine
from autograder.loader import run_cell
from autograder.notebooks import graded_cells, read_submission, rebuilt_notebook
from autograder.sample_class.make import make_sample_class
from autograder.source import exercise_paths, read_exercise

STUDENTS = ["right-1", "right-2", "right-3", "right-4", "right-5"]
log = logging.getLogger("benchmark")
log.setLevel(logging.CRITICAL)
warnings.simplefilter("ignore", SAWarning)  # of nbgrader's own queries


def main() -> None:
    """Runs the comparison and prints it."""
    os.environ["PATH"] = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    )
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        make_sample_class(here)
        exercises = [read_exercise(path) for path in exercise_paths()]
        start = time.perf_counter()
        engine = Engine(cache=here / "results")
        engines.default = lambda isolation: (
            engine
        )  # the one whose cache is emptied before each notebook
        for exercise in exercises:  # warm processes, and what each exercise is prepared with
            engine.grade(exercise, cells_of(here, "late", exercise))
        warm = time.perf_counter() - start
        times = {"compute": {}, "stock": {}, "split": {}}
        for student in track(STUDENTS, "grading", console=Console(stderr=True)):
            for exercise in exercises:
                name = f"{exercise.era}/{exercise.name}"
                times["compute"].setdefault(name, []).append(compute(here, student, exercise))
                times["stock"].setdefault(name, []).append(stock(here, student, exercise))
                times["split"].setdefault(name, []).append(split(here, student, exercise, engine))
        engine.close()
    show(times, warm)


def compute(here, student, exercise) -> float:
    """What a student's cells and the tests themselves take in a warm process: the least of three times."""
    cells, taken = cells_of(here, student, exercise), []
    for _ in range(3):
        # A name for each exercise: what one refuses to its notebook, another may use.
        answers = types.ModuleType(f"answers_to_{exercise.name}")
        sys.modules[answers.__name__] = answers  # where dataclasses look for it
        start = time.perf_counter()
        for cell in cells:
            run_cell(cell["source"], vars(answers), cell["id"])
        for cell in exercise.cells:
            if cell.kind == "test":
                run_cell(cell.source, dict(vars(answers)), cell.name)
        taken.append(time.perf_counter() - start)
    return min(taken)


def cells_of(here, student, exercise) -> list[dict]:
    """What the learner process runs of a student's notebook."""
    path = here / "submitted" / student / exercise.era / f"{exercise.name}.ipynb"
    return graded_cells(rebuilt_notebook(exercise, read_submission(path, exercise)), exercise)


def stock(here, student, exercise) -> float:
    """nbgrader's own autograding of one notebook: a kernel, the cells, the tests, the gradebook."""
    config = configured(here, "stock", student, exercise)
    del config["Autograde"]
    return converted(config, here / "stock.db")


def split(here, student, exercise, engine) -> float:
    """The split grader, through the same converter and into a gradebook of its own; nothing from a cache."""
    engine.cache = Path(tempfile.mkdtemp(dir=here))
    return converted(configured(here, "split", student, exercise), here / "split.db")


def configured(here, kind, student, exercise):
    """nbgrader's configuration for one notebook, with a gradebook for each kind of grading."""
    return course_config(
        submitted_directory=here / "submitted",
        autograded_directory=here / kind,
        db_url=f"sqlite:///{here}/{kind}.db",
        assignment_id=exercise.era,
        student_id=student,
        notebook_id=exercise.name,
    )


def converted(config, database: Path) -> float:
    """Seconds the converter takes for what the configuration names."""
    if not database.exists():
        register(f"sqlite:///{database}")
    converter = Autograde(coursedir=CourseDirectory(config=config), config=config, force=True)
    converter.log = converter.coursedir.log = log
    start = time.perf_counter()
    converter.start()
    return time.perf_counter() - start


def show(times: dict, warm: float) -> None:
    """Prints the table: whole and overhead in seconds a notebook, and their ratios."""
    table = Table(title=f"Seconds a notebook, median of {len(STUDENTS)} students")
    for column in (
        "exercise",
        "compute",
        "stock",
        "split",
        "ratio",
        "stock overhead",
        "split overhead",
        "ratio",
    ):
        table.add_column(column, justify="left" if column == "exercise" else "right")
    overheads = {"stock": [], "split": []}
    for name, seconds in times["compute"].items():
        whole = {kind: statistics.median(times[kind][name]) for kind in overheads}
        over = {
            kind: statistics.median(map(operator.sub, times[kind][name], seconds))
            for kind in overheads
        }
        for kind, values in overheads.items():
            values.append(over[kind])
        table.add_row(
            name.rpartition("/")[2],
            f"{statistics.median(seconds):.2f}",
            *(f"{whole[kind]:.2f}" for kind in whole),
            f"{whole['stock'] / whole['split']:.1f}",
            *(f"{over[kind]:.2f}" for kind in over),
            f"{over['stock'] / over['split']:.1f}",
        )
    Console().print(table)
    medians = {kind: statistics.median(values) for kind, values in overheads.items()}
    print(
        f"overhead: stock {medians['stock']:.2f} s, split {medians['split']:.2f} s a notebook, "
        f"ratio {medians['stock'] / medians['split']:.1f}; warm start and preparation {warm:.1f} s, once"
    )


if __name__ == "__main__":
    main()
