"""Whole classes: 500 students with every exercise, one exercise of 50 to 5,000 submissions, and Dask's workers.

    python -m tests.benchmarks.classes [--part 0.1]

Each submission is another one: answers of the sample class's styles and of its mistakes, with a comment of the
student's own, so that no result is known before. Students whose answers never end are left out: they would measure
our limits. Everything is written: gradebook and feedback. Memory is that of all processes together, with its part of
each page that several share. Where seconds a submission are given, those of starting are not in them.
"""

import argparse
import contextlib
import copy
import itertools
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    track,
)
from rich.table import Table

from autograder.classes import ClassFolder, scores
from autograder.engine import Engine
from autograder.sample_class.make import IN_TIME, STUDENTS
from autograder.source import ROOT, Exercise, exercise_paths, read_exercise
from tests.benchmarks.grading import WIDTH, compute
from tests.benchmarks.measured import Graded, graded
from tests.benchmarks.worker_cache import FOLDER

CLASS, SIZES, WORKERS, ON_DASK = 500, (50, 500, 5000), (1, 2, 4), 200
ONE = "attention"
LIMIT_GB = 4
RIGHT = tuple(name for name in STUDENTS if name.startswith("right"))
KINDS = tuple(
    name for name in STUDENTS if not name.startswith("hostile") and name != "infinite-loop"
)
STAGES = ("reading", "grading", "recording", "feedback")
screen = Console(stderr=True)


def main() -> None:
    """Measures all three and prints them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", type=float, default=1.0, help="of each class's students")
    part = parser.parse_args().part
    exercises = [read_exercise(path) for path in exercise_paths()]
    one = [exercise for exercise in exercises if exercise.name == ONE]
    # On the disk: /tmp may be memory, which is what is measured here.
    place = ROOT / "_build"
    place.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place, prefix="benchmark-") as folder:
        here = Path(folder)
        prepare(here, exercises)
        a_class(here, exercises, _some(CLASS, part))
        growth(here, one, [_some(size, part) for size in SIZES])
        on_dask(here, one, _some(ON_DASK, part))


def _some(number: int, part: float) -> int:
    return max(2, round(number * part))


# -- the three questions ----------------------------------------------------------------------------------


def a_class(here: Path, exercises: list[Exercise], students: int) -> None:
    """How long a class takes, and how much memory."""
    submissions = students * len(exercises)
    with class_of(here, exercises, students) as folder:
        found = measured(here, folder)
    print(
        f"{students} students x {len(exercises)} exercises: {found.wall:,.0f} s, "
        f"{submissions / found.wall:.2f} submissions/s on {os.cpu_count()} processors, "
        f"{found.peak / 2**30:.2f} GB at the most (allowed {LIMIT_GB})"
    )
    for stage in STAGES:
        seconds = found.seconds(stage)
        print(f"  {stage:9} {seconds:9,.1f} s   {seconds / submissions:.3f} s a submission")
    for note in found.notes[:5]:
        print(f"  ! {note}")


def growth(here: Path, exercises: list[Exercise], sizes: Iterable[int]) -> None:
    """Whether ten times as many take ten times as long."""
    table = Table(title=f"{exercises[0].name}: seconds a submission as a class grows")
    for column in ("submissions", "wall, s", *STAGES, "scores", "each more", "GB"):
        table.add_column(column, justify="right")
    before, more = (0, 0.0), []
    for size in sizes:
        with class_of(here, exercises, size) as folder:
            found = measured(here, folder)
            start = time.perf_counter()
            scores(ClassFolder(folder).db_url)
            read = time.perf_counter() - start
        wall = found.wall + read
        # What starting takes is the same for every size, and so in no difference.
        more.append((wall - before[1]) / (size - before[0]))
        before = size, wall
        stages = [found.seconds(stage) / size for stage in STAGES]
        numbers = [f"{seconds:.4f}" for seconds in (*stages, read / size, more[-1])]
        table.add_row(str(size), f"{wall:,.1f}", *numbers, f"{found.peak / 2**30:.2f}")
    Console(width=WIDTH).print(table)
    changes = ", ".join(f"{late / early - 1:+.1%}" for early, late in itertools.pairwise(more[1:]))
    print(f"from one size to the next, each submission more takes {changes} (allowed 10 %)")


def on_dask(here: Path, exercises: list[Exercise], size: int) -> None:
    """What a cluster's engine costs beside the pool's."""
    with class_of(here, exercises, size, RIGHT) as folder:
        names = sorted(path.name for path in (folder / "submitted").iterdir())[:20]
        computed = statistics.mean(compute(folder, name, exercises[0]) for name in names)
        print(
            f"{exercises[0].name}, {size} right submissions, {computed:.3f} s of computing each; grading alone:"
        )
        _show_engine("this machine's pool", os.cpu_count() or 1, measured(here, folder), computed)
        for workers in WORKERS:
            with cluster(here, workers) as (address, cache):
                found = measured(here, folder, address, cache)
            _show_engine(f"Dask, workers {workers}", workers, found, computed)


def _show_engine(name: str, workers: int, found: Graded, computed: float) -> None:
    each = found.stages["grading"].each
    # More workers than processors share these.
    overhead = each * min(workers, os.cpu_count() or 1) - computed
    print(f"  {name:20} {each:.3f} s a submission, overhead {overhead:.3f} s")


# -- classes ----------------------------------------------------------------------------------------------


def prepare(here: Path, exercises: list[Exercise]) -> None:
    """What each exercise is prepared with, which a course has once for all its classes."""
    engine = Engine(cache=here / "prepared")
    try:
        for exercise in track(exercises, "preparing", console=screen):
            engine.prepare(exercise)
    finally:
        engine.close()


@contextlib.contextmanager
def class_of(
    here: Path, exercises: list[Exercise], students: int, kinds: tuple[str, ...] = KINDS
) -> Iterator[Path]:
    """A folder with what so many students handed in, each something else."""
    folder = Path(tempfile.mkdtemp(dir=here))
    for exercise in exercises:
        released = ROOT / "exercises" / exercise.era / f"{exercise.name}.ipynb"
        texts = [STUDENTS[kind](exercise, json.loads(released.read_text())) for kind in kinds]
        for number in range(students):
            place = folder / "submitted" / f"student-{number:05}" / exercise.era
            place.mkdir(parents=True, exist_ok=True)
            notebook = signed(texts[number % len(kinds)], number)
            (place / f"{exercise.name}.ipynb").write_text(json.dumps(notebook))
            (place / "timestamp.txt").write_text(IN_TIME)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def signed(notebook: dict, number: int) -> dict:
    """The notebook with a comment of this student's in every answer."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code" and cell["metadata"].get("nbgrader", {}).get("solution"):
            source = cell["source"]
            text = source if isinstance(source, str) else "".join(source)
            cell["source"] = f"{text}\n# student {number}"
    return notebook


def measured(
    here: Path, folder: Path, scheduler: str | None = None, cache: Path | None = None
) -> Graded:
    """Grades a class with nothing known of it, and shows how far it is."""
    cache = cache or fresh_cache(here)
    columns = [
        TextColumn("{task.description:24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    ]
    with Progress(*columns, console=screen, transient=True) as bar:
        tasks: dict[str, int] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        found = graded(folder, cache, scheduler, show)
    # A folder that is graded once more starts as if it never had been.
    for kept in folder.iterdir():
        if kept.is_dir() and kept.name != "submitted":
            shutil.rmtree(kept)
    shutil.rmtree(cache)
    return found


def fresh_cache(here: Path) -> Path:
    """Where results are kept: none yet, and what the exercises are prepared with."""
    folder = Path(tempfile.mkdtemp(dir=here))
    shutil.copytree(here / "prepared", folder, dirs_exist_ok=True)
    return folder


# -- a cluster on this machine ----------------------------------------------------------------------------


@contextlib.contextmanager
def cluster(here: Path, workers: int) -> Iterator[tuple[str, Path]]:
    """A scheduler with so many workers, as README says to start them; its address, and what its workers keep."""
    from distributed import Client

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    cache = fresh_cache(here)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": ROOT}
    dask = [sys.executable, "-m", "dask"]
    local = ["--host", "127.0.0.1", "--no-dashboard"]
    started = [
        subprocess.Popen(
            [*dask, "scheduler", *local, "--port", address.rpartition(":")[2]], **quiet
        )
    ]
    worker = [*dask, "worker", address, *local, "--nthreads", "1"]
    preload = ["--preload", "tests.benchmarks.worker_cache", "--local-directory", str(here)]
    surroundings = os.environ | {FOLDER: str(cache)}
    started += [
        subprocess.Popen([*worker, *preload], env=surroundings, **quiet) for _ in range(workers)
    ]
    try:
        with Client(address, timeout=60) as client:
            client.wait_for_workers(workers, timeout=120)
        yield address, cache
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait()


if __name__ == "__main__":
    main()
