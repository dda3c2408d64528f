"""Grades many notebooks at once: one map over an executor, on this machine or on a cluster.

Results come back to the process that asked and are kept there, so the machines of a cluster need not share a disk.
"""

import contextlib
import itertools
import os
import platform
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    ProcessPoolExecutor,
    as_completed,
)
from typing import NamedTuple

from autograder import engine
from autograder.loader import find_exercise
from autograder.sandbox import Isolation, SandboxMissing, check_sandbox
from autograder.session import GradingFailed
from autograder.split.isolation import end_with_parent

__all__ = ["ROUNDS", "ClusterMissing", "Job", "grade_all", "processes"]

ROUNDS = 3
CONNECT_SECONDS = 15

# One pair of warm processes answers one question at a time, however many threads a worker has.
_one_at_a_time = threading.Lock()


class ClusterMissing(Exception):
    """No scheduler answers, or it stopped answering; the message says what to do."""


class Job(NamedTuple):
    """One notebook to grade.

    Attributes:
        era: of the exercise.
        name: of the exercise.
        cells: what :func:`autograder.notebooks.graded_cells` gives.
        key: :meth:`autograder.engine.Engine.key` of it here.
        record: what is known of it already.
    """

    era: str
    name: str
    cells: list[dict]
    key: str
    record: dict


def grade_all(
    jobs: Iterable[Job], isolation: Isolation, scheduler: str | None = None
) -> Iterator[tuple[int, str]]:
    """Grades notebooks into the cache; yields each job's number with its trouble or ``""``, as they are done.

    A worker that dies costs what it was grading another try, and nothing else.

    Args:
        jobs: the notebooks.
        isolation: as for :class:`autograder.engine.Engine`.
        scheduler: the address of a Dask scheduler; this machine's processors if ``None``.

    Raises:
        ClusterMissing: there is no scheduler at the address, or it has ended.
        SandboxMissing: no sandbox can be made here.
    """
    waiting = dict(enumerate(jobs))
    if not waiting:
        return
    if scheduler:
        with _cluster(scheduler) as pool:
            yield from _one_round(pool, waiting, isolation)
        return
    if isolation == "sandbox":
        check_sandbox()
    in_vain = 0
    while waiting and in_vain < ROUNDS:
        before = len(waiting)
        with contextlib.suppress(BrokenExecutor), processes(len(waiting)) as pool:
            _prepare(pool, waiting.values(), isolation)
            yield from _one_round(pool, waiting, isolation)
        in_vain = in_vain + 1 if len(waiting) == before else 0
    for number in waiting:
        yield number, f"the processes that grade were killed {ROUNDS} times in a row"


@contextlib.contextmanager
def processes(jobs: int) -> Iterator[Executor]:
    """This machine's processors, no more of them than there are jobs; they end when this process does."""
    workers = min(jobs, os.cpu_count() or 1)
    pool = ProcessPoolExecutor(workers, initializer=end_with_parent, initargs=(os.getpid(),))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[Executor]:
    from distributed import Client

    try:
        client = Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError, ImportError) as error:
        raise ClusterMissing(
            f"No Dask scheduler answers at {address} ({error}). Start one with `dask scheduler`, and a worker on each "
            "machine, in the course's folder, with `dask worker ADDRESS --nthreads 1`."
        ) from error
    with client:
        yield client.get_executor(retries=ROUNDS - 1, pure=False)


def _prepare(pool: Executor, jobs: Iterable[Job], isolation: Isolation) -> None:
    """Prepares each exercise once, not in every worker that meets it first."""
    exercises = sorted({(job.era, job.name) for job in jobs})
    for _ in pool.map(_prepare_one, exercises, itertools.repeat(isolation)):
        pass


def _one_round(
    pool: Executor, waiting: dict[int, Job], isolation: Isolation
) -> Iterator[tuple[int, str]]:
    """Yields what gets done and takes it out of ``waiting``."""
    here = engine.default(isolation)
    futures = {pool.submit(_grade_one, job, isolation): number for number, job in waiting.items()}
    for done in as_completed(futures):
        number = futures[done]
        try:
            record, trouble = done.result()
        except BrokenExecutor:
            raise
        except CancelledError as error:  # which nobody here has done
            raise ClusterMissing(
                "The Dask scheduler has stopped answering. What was graded is kept; the same command goes on."
            ) from error
        except Exception as error:  # what a cluster says of a worker that died again and again
            record, trouble = None, f"{type(error).__name__}: {error}"
        job = waiting.pop(number)
        if record is not None:
            here.keep(find_exercise(job.era, job.name), job.cells, record)
        yield number, trouble


def _prepare_one(exercise: tuple[str, str], isolation: Isolation) -> None:
    with contextlib.suppress(GradingFailed):  # grading will meet it again, and say so
        engine.default(isolation).prepare(find_exercise(*exercise))


def _grade_one(job: Job, isolation: Isolation) -> tuple[dict | None, str]:
    """What is known of the notebook now, or what prevented it."""
    here, exercise = engine.default(isolation), find_exercise(job.era, job.name)
    if here.key(exercise, job.cells) != job.key:
        return None, (
            f"the worker on {platform.node()} has another version of the course, another course secret "
            "(.course-secret or COURSE_SECRET) or another LAB_DEVICE"
        )
    try:
        with _one_at_a_time:
            here.keep(exercise, job.cells, job.record)
            here.find_out(exercise, job.cells)
            return here.record(exercise, job.cells), ""
    except (GradingFailed, SandboxMissing) as error:
        return None, f"on {platform.node()}: {error}"
