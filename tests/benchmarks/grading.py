"""Seconds a notebook: the split grader, stock nbgrader and otter-grader, on the same submissions, in one run.

    python -m tests.benchmarks.grading

Ours and nbgrader go through nbgrader's own ``Autograde`` converter and write a gradebook; otter writes its results.
Reported are the whole and the grader's own overhead: the whole less what this student's answers and the tests
themselves compute, measured in a warm process. The median of several students is taken; the applications' imports and
the warm start are counted apart. Then nbgrader and ours once more with as many processes as there are processors.
"""

import contextlib
import functools
import itertools
import logging
import multiprocessing
import operator
import os
import shutil
import statistics
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier, Lock
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from nbgrader.converters import Autograde
from nbgrader.coursedir import CourseDirectory
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sqlalchemy import create_engine
from sqlalchemy.exc import SAWarning
from traitlets.config import Config

from autograder import engine as engines
from autograder.build import course_config, register
from autograder.engine import Engine
from autograder.gradebook import one_engine
from autograder.loader import run_cell
from autograder.notebooks import graded_cells, read_submission, rebuilt_notebook
from autograder.sample_class.make import make_sample_class
from autograder.source import Exercise, exercise_paths, read_exercise
from tests.benchmarks import peer_otter
from tests.benchmarks.measured import graded

DATABASES = functools.cache(create_engine)
STUDENTS = ["right-1", "right-2", "right-3", "right-4", "right-5"]
WIDTH = 120  # of a table, wherever it is printed
log = logging.getLogger("benchmark")
log.setLevel(logging.ERROR)  # why a notebook could not be graded, not each file that is replaced
warnings.simplefilter("ignore", SAWarning)  # of nbgrader's own queries


def main() -> None:
    """Runs the comparison and prints it."""
    # nbgrader starts kernels and `alembic` by their names; they lie beside this interpreter.
    os.environ["PATH"] = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    )
    without_otter = peer_otter.why_not_installed()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ending:
        here = Path(folder)
        make_sample_class(here)
        exercises = [read_exercise(path) for path in exercise_paths()]
        engine, warm = warm_engine(here, exercises)
        ending.callback(engine.close)
        kinds = {
            "stock": stock,
            "split": lambda here, student, exercise: split(here, student, exercise, engine),
        }
        if not without_otter:
            otter = ending.enter_context(peer_otter.started(here / "otter"))
            kinds["otter"] = lambda here, student, exercise: otter.seconds(
                exercise, submitted(here, student, exercise)
            )
        times = one_at_a_time(here, exercises, kinds)
        engine.close()
        show(times, warm)
        show_many(here, exercises, times)
    if without_otter:
        print(f"otter: {without_otter}")


def warm_engine(here: Path, exercises: list[Exercise]) -> tuple[Engine, float]:
    """An engine that has met every exercise, and the seconds that took."""
    start = time.perf_counter()
    engine = Engine(cache=here / "results")
    # The one whose cache is emptied before each notebook.
    engines.default = lambda isolation: engine
    for exercise in exercises:  # warm processes, and what each exercise is prepared with
        engine.grade(exercise, cells_of(here, "late", exercise))
    return engine, time.perf_counter() - start


def one_at_a_time(
    here: Path, exercises: list[Exercise], kinds: dict[str, Callable[..., float]]
) -> dict[str, dict[str, list[float]]]:
    """Seconds of every student's notebook by kind of grading and exercise, in turn on the same machine."""
    times = {kind: {exercise.name: [] for exercise in exercises} for kind in ("compute", *kinds)}
    jobs = list(itertools.product(STUDENTS, exercises))
    for student, exercise in track(jobs, "grading, one at a time", console=Console(stderr=True)):
        for kind, measure in {"compute": compute, **kinds}.items():
            times[kind][exercise.name].append(measure(here, student, exercise))
    return times


def compute(here: Path, student: str, exercise: Exercise) -> float:
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


def submitted(here: Path, student: str, exercise: Exercise) -> Path:
    """What a student handed in."""
    return here / "submitted" / student / exercise.era / f"{exercise.name}.ipynb"


def cells_of(here: Path, student: str, exercise: Exercise) -> list[dict]:
    """What the learner process runs of a student's notebook."""
    read = read_submission(submitted(here, student, exercise), exercise)
    return graded_cells(rebuilt_notebook(exercise, read), exercise)


def stock(here: Path, student: str, exercise: Exercise, kind: str = "stock") -> float:
    """nbgrader's own autograding of one notebook: a kernel, the cells, the tests, the gradebook."""
    config = configured(here, kind, student, exercise)
    del config["Autograde"]
    return converted(config, here / f"{kind}.db")


def split(here: Path, student: str, exercise: Exercise, engine: Engine) -> float:
    """The split grader, through the same converter and into a gradebook of its own; nothing from a cache."""
    engine.cache = Path(tempfile.mkdtemp(dir=here))
    with one_engine(DATABASES):  # as for a class
        return converted(configured(here, "split", student, exercise), here / "split.db")


def configured(here: Path, kind: str, student: str, exercise: Exercise) -> Config:
    """nbgrader's configuration for one notebook, with a gradebook for each kind of grading."""
    return course_config(
        submitted_directory=here / "submitted",
        autograded_directory=here / kind,
        db_url=f"sqlite:///{here}/{kind}.db",
        assignment_id=exercise.era,
        student_id=student,
        notebook_id=exercise.name,
    )


def converted(config: Config, database: Path) -> float:
    """Seconds the converter takes for what the configuration names."""
    if not database.exists():
        register(f"sqlite:///{database}")
    converter = Autograde(coursedir=CourseDirectory(config=config), config=config, force=True)
    converter.log = converter.coursedir.log = log
    start = time.perf_counter()
    converter.start()
    return time.perf_counter() - start


# -- as many processes as processors ----------------------------------------------------------------------


def stock_at_once(here: Path, exercises: list[Exercise], processes: int) -> float:
    """Seconds a notebook with several of nbgrader's processes, each with a gradebook of its own."""
    jobs = [(here, student, exercise) for student in STUDENTS for exercise in exercises]
    context = multiprocessing.get_context("spawn")
    together = context.Lock(), context.Barrier(processes)
    with ProcessPoolExecutor(processes, context, _get_ready, (here, *together)) as pool:
        pool.submit(os.getpid).result()  # when all are ready
        start = time.perf_counter()
        done = pool.map(_stock_here, jobs)
        for _ in track(done, "nbgrader, all at once", len(jobs), console=Console(stderr=True)):
            pass
        return (time.perf_counter() - start) / len(jobs)


def _get_ready(here: Path, alone: Lock, everyone: Barrier) -> None:
    with alone:  # all write the same source notebooks
        register(f"sqlite:///{here / f'stock-{os.getpid()}.db'}")
    everyone.wait()


def _stock_here(job: tuple[Path, str, Exercise]) -> float:
    return stock(*job, kind=f"stock-{os.getpid()}")


def ours_at_once(
    here: Path, exercises: list[Exercise], processes: int
) -> tuple[float, float, float]:
    """Seconds a notebook of grading in the engine's pool, of recording by one writer, and of feedback."""
    folder, cache = (Path(tempfile.mkdtemp(dir=here)) for _ in range(2))
    for student in STUDENTS:
        shutil.copytree(here / "submitted" / student, folder / "submitted" / student)
    for prepared in (here / "results").glob("*.prepared"):
        shutil.copy(prepared, cache)
    found = graded(folder, cache, processors=processes)
    notebooks = len(STUDENTS) * len(exercises)
    recording, feedback = (found.seconds(kind) / notebooks for kind in ("recording", "feedback"))
    return found.stages["grading"].each, recording, feedback


# -- the tables -------------------------------------------------------------------------------------------


def show(times: dict, warm: float) -> None:
    """Prints whole and overhead in seconds a notebook, and by how much stock nbgrader's are greater."""
    kinds = [kind for kind in times if kind != "compute"]
    table = Table(title=f"Seconds a notebook, median of {len(STUDENTS)} students")
    for column in ("exercise", "compute", *kinds, *(f"{kind} overhead" for kind in kinds), "ratio"):
        table.add_column(column, justify="left" if column == "exercise" else "right")
    overheads = {kind: [] for kind in kinds}
    for name, seconds in times["compute"].items():
        whole = {kind: statistics.median(times[kind][name]) for kind in kinds}
        over = {
            kind: statistics.median(map(operator.sub, times[kind][name], seconds)) for kind in kinds
        }
        for kind, values in overheads.items():
            values.append(over[kind])
        numbers = [statistics.median(seconds), *whole.values(), *over.values()]
        ratio = f"{over['stock'] / over['split']:.1f}"
        table.add_row(name, *(f"{number:.2f}" for number in numbers), ratio)
    Console(width=WIDTH).print(table)
    medians = {kind: statistics.median(values) for kind, values in overheads.items()}
    listed = ", ".join(f"{kind} {seconds:.2f} s" for kind, seconds in medians.items())
    ratios = ", ".join(
        f"{kind}'s {medians[kind] / medians['split']:.1f}" for kind in kinds if kind != "split"
    )
    print(
        f"overhead a notebook: {listed}; in times ours: {ratios}; "
        f"ours starts and prepares in {warm:.1f} s, once"
    )


def show_many(here: Path, exercises: list[Exercise], times: dict) -> None:
    """Prints the same for whole classes, with one process and with as many as there are processors."""
    computed = statistics.mean(itertools.chain(*times["compute"].values()))
    notebooks = len(STUDENTS) * len(exercises)
    print(f"{notebooks} notebooks as a class, {computed:.2f} s of computing each; means:")
    for processes in sorted({1, os.cpu_count() or 1}):
        whole = stock_at_once(here, exercises, processes)
        grading, recording, feedback = ours_at_once(here, exercises, processes)
        # In seconds of one processor; only one process writes to our gradebook.
        stocks, ours = whole * processes - computed, grading * processes - computed + recording
        print(
            f"  processes {processes}: stock {whole:.2f} s a notebook, overhead {stocks:.2f} s; "
            f"split {grading + recording:.2f} s ({recording:.2f} s of them recording), overhead {ours:.2f} s; "
            f"ratio of overheads {stocks / ours:.1f}; our feedback {feedback:.2f} s more, stock wrote none"
        )


if __name__ == "__main__":
    main()
