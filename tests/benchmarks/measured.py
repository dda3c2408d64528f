"""Grades a class in a process of its own and measures it: the time of each stage, and the memory of the whole tree."""

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from autograder import engine as engines
from autograder.classes import ClassFolder, grade_class
from autograder.engine import Engine
from autograder.sample_class.make import DUE

SAMPLE_SECONDS = 1.0
Progress = Callable[[str, int, int], None]


@dataclass
class Stage:
    """A stage of grading.

    Attributes:
        started: when the stage before it ended.
        first: when the first of it were done.
        early: how many those were.
        last: when the latest were done.
        done: how many then.
    """

    started: float
    first: float
    early: int
    last: float = 0.0
    done: int = 0

    @property
    def seconds(self) -> float:
        """From the end of the stage before to the end of this one."""
        return self.last - self.started

    @property
    def each(self) -> float:
        """Seconds for one more, once the first are done: what starting processes takes is not in it."""
        if self.done == self.early:
            return self.seconds / self.done
        return (self.last - self.first) / (self.done - self.early)


@dataclass
class Graded:
    """What the grading of a class took.

    Attributes:
        wall: seconds from the call to the last feedback, processes started included, imports not.
        peak: bytes of the whole tree of processes at its greatest. Of pages that several share, as forks do, each
            has its part.
        stages: by what :func:`autograder.classes.grade_class` calls them.
        notes: what it wants somebody to look at.
    """

    wall: float = 0.0
    peak: int = 0
    stages: dict[str, Stage] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def seconds(self, kind: str) -> float:
        """Seconds of all stages whose names begin so: each era is recorded in one of its own."""
        return sum(stage.seconds for name, stage in self.stages.items() if name.startswith(kind))


def graded(
    folder: Path,
    cache: Path,
    scheduler: str | None = None,
    progress: Progress = lambda *_: None,
    processors: int | None = None,
) -> Graded:
    """Grades the class in ``folder``, with results kept in ``cache``, and measures it.

    Args:
        folder: the class's.
        cache: where results are kept, and what exercises are prepared with.
        scheduler: of a Dask cluster; this machine's pool if ``None``.
        progress: as for :func:`autograder.classes.grade_class`.
        processors: how many it is to believe there are; all if ``None``.

    Raises:
        RuntimeError: the process that graded ended early.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_grade, args=(folder, cache, scheduler, processors, theirs))
    process.start()
    theirs.close()
    try:
        found = _followed(ours, psutil.Process(process.pid), progress)
        process.join()
    finally:
        process.terminate()
        process.join()
    return found


def _grade(
    folder: Path, cache: Path, scheduler: str | None, processors: int | None, to: Connection
) -> None:
    here = Engine(cache=cache)
    if processors:
        os.cpu_count = lambda: processors
    engines.default = lambda isolation: here  # inherited by the pool, which forks

    def say(*step: str | int) -> None:
        to.send((time.perf_counter(), *step))

    say("", 0, 0)
    notes = grade_class(ClassFolder(folder), "sandbox", say, DUE, scheduler)
    say("", 1, 0)
    to.send(notes)


def _followed(steps: Connection, process: psutil.Process, progress: Progress) -> Graded:
    """Hears what is done and samples the memory until all is."""
    found, before, sampled, start = Graded(), 0.0, 0.0, 0.0
    while True:
        if time.monotonic() - sampled > SAMPLE_SECONDS:
            found.peak, sampled = max(found.peak, memory(process)), time.monotonic()
        if not steps.poll(SAMPLE_SECONDS):
            continue
        try:
            now, what, done, total = steps.recv()
        except EOFError:
            raise RuntimeError("the process that grades ended early") from None
        if not what and not done:
            start = before = now
        elif not what:
            found.wall, found.notes = now - start, steps.recv()
            return found
        elif done:  # 0 only says that a stage begins
            stage = found.stages.setdefault(what, Stage(before, now, done))
            stage.last, stage.done = now, done
            before = now
        if what:
            progress(what, done, total)


def memory(process: psutil.Process) -> int:
    """Bytes of a process and all that it started."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            try:
                total += each.memory_full_info().pss
            except psutil.AccessDenied:  # more than its part, but never less
                total += each.memory_info().rss
    return total
