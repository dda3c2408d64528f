"""Grades notebooks, each distinct one once: results are kept under a hash of all they depend on."""

import atexit
import functools
import importlib.metadata
import json
import os
import tempfile
from pathlib import Path

from autograder.sandbox import Isolation
from autograder.secret import course_secret
from autograder.session import GradingFailed, Session
from autograder.source import ROOT, Exercise
from autograder.verdicts import assembled, hashed, joined

__all__ = ["Engine", "default", "write_whole"]

CACHE = ROOT / "_build" / "results"
LEAST_SECONDS, TIMES_REFERENCE = 10.0, 20.0
# A changed answer that computes for longer than this in a test counts as noticed; the reference takes a tenth.
CHANGED_SECONDS = 4.0
TRIES = 3
# The modules of this package that a result depends on; a change of the others grades nobody anew.
GRADER = (
    "engine",
    "examiner",
    "hidden",
    "loader",
    "sandbox",
    "secret",
    "session",
    "source",
    "verdicts",
)


class Engine:
    """Grades the cells of notebooks with one pair of warm processes, started when first needed."""

    def __init__(self, isolation: Isolation = "sandbox", cache: Path = CACHE) -> None:
        self.isolation = isolation
        self.cache = cache
        self._session: Session | None = None
        self._kept: dict[str, dict[str, float]] = {}

    def grade(self, exercise: Exercise, cells: list[dict]) -> dict:
        """The result for a notebook (:func:`autograder.verdicts.assembled`); only tests not yet known are run.

        Raises:
            GradingFailed: the grader itself failed, several times over.
            SandboxMissing: no sandbox can be made here.
        """
        result = self.known(exercise, cells)
        if result is None:
            self.find_out(exercise, cells)
            result = self.known(exercise, cells)
        return result

    def known(self, exercise: Exercise, cells: list[dict]) -> dict | None:
        """The result for a notebook where every test is known, ``None`` where one would have to run."""
        return assembled(exercise, self.record(exercise, cells))

    def record(self, exercise: Exercise, cells: list[dict]) -> dict:
        """All that is known of a notebook (:mod:`autograder.verdicts`)."""
        path = self._path(exercise, cells)
        return json.loads(path.read_text()) if path.is_file() else joined()

    def keep(self, exercise: Exercise, cells: list[dict], record: dict) -> None:
        """Adds to what is known of a notebook."""
        whole = joined(self.record(exercise, cells), record)
        write_whole(self._path(exercise, cells), json.dumps(whole).encode())

    def find_out(self, exercise: Exercise, cells: list[dict]) -> None:
        """Runs the tests of a notebook that are not known yet, and keeps what they find.

        Raises:
            GradingFailed: the grader itself failed, several times over.
            SandboxMissing: no sandbox can be made here.
        """
        passed = {k: v["passed"] for k, v in self.record(exercise, cells)["tests"].items()}
        for attempt in range(1, TRIES + 1):
            try:
                limits = self._prepared(exercise)
                name = f"{exercise.era}/{exercise.name}"
                found = self._warm().grade(name, cells, limits, passed)
                self.keep(exercise, cells, found)
                return
            except GradingFailed:
                self.close()
                if attempt == TRIES:
                    raise

    def prepare(self, exercise: Exercise) -> None:
        """Has what an exercise is prepared with computed and kept, if it is not yet.

        Raises:
            GradingFailed: the grader itself failed.
            SandboxMissing: no sandbox can be made here.
        """
        self._prepared(exercise)

    def notice(self, exercise: Exercise, changes: list[dict]) -> list[str]:
        """The first test that fails for each changed answer (:func:`autograder.examiner.notice`).

        Raises:
            GradingFailed: the grader itself failed.
            SandboxMissing: no sandbox can be made here.
        """
        limits = {cell.name: CHANGED_SECONDS for cell in exercise.cells if cell.kind == "test"}
        return self._warm().notice(f"{exercise.era}/{exercise.name}", changes, limits)

    def key(self, exercise: Exercise, cells: list[dict]) -> str:
        """A hash of everything the result depends on: answers, tests, bank, secret, grader, device."""
        return hashed(self._exercise_key(exercise), self._notebook_key(exercise, cells))

    def close(self) -> None:
        """Ends the warm processes."""
        if self._session:
            self._session.close()
            self._session = None
            self._kept.clear()

    def _path(self, exercise: Exercise, cells: list[dict]) -> Path:
        return self.cache / f"{self._notebook_key(exercise, cells)}.json"

    def _warm(self) -> Session:
        """The warm processes, started when first asked for."""
        if self._session is None:
            self._session = Session(self.isolation)
        return self._session

    def _prepared(self, exercise: Exercise) -> dict[str, float]:
        """Has the warm examiner know the exercise; returns the seconds each test may take."""
        name = f"{exercise.era}/{exercise.name}"
        if name not in self._kept:
            path = self.cache / f"{self._exercise_key(exercise)}.prepared"
            if path.is_file():
                size = int.from_bytes((raw := path.read_bytes())[:8], "big")
                seconds, prepared = json.loads(raw[8 : 8 + size]), raw[8 + size :]
            else:
                seconds, prepared = self._warm().prepare(name)
                head = json.dumps(seconds).encode()
                write_whole(path, len(head).to_bytes(8, "big") + head + prepared)
            self._warm().keep(name, prepared)
            self._kept[name] = {
                test: max(LEAST_SECONDS, TIMES_REFERENCE * taken) for test, taken in seconds.items()
            }
        return self._kept[name]

    def _exercise_key(self, exercise: Exercise) -> str:
        """A hash of what an exercise is prepared from: a better sentence in its text changes nothing."""
        bank = ROOT / "autograder" / "misconceptions" / exercise.era / f"{exercise.name}.py"
        return hashed(
            _code(exercise, "given", "solution", "test"),
            bank.read_text() if bank.is_file() else "",
            *_surroundings(),
        )

    def _notebook_key(self, exercise: Exercise, cells: list[dict]) -> str:
        """A hash of what every verdict on a notebook depends on, whichever the test."""
        answers = [[cell["name"], cell["source"]] for cell in cells]
        code = _code(exercise, "given", "solution")
        return hashed(code, self.isolation, json.dumps(answers), *_surroundings())


@functools.cache
def default(isolation: Isolation = "sandbox") -> Engine:
    """The engine of this process, closed when it ends."""
    engine = Engine(isolation)
    atexit.register(engine.close)
    return engine


def _code(exercise: Exercise, *kinds: str) -> str:
    cells = [[cell.kind, cell.name, cell.source] for cell in exercise.cells if cell.kind in kinds]
    return json.dumps([exercise.era, exercise.name, cells])


def _surroundings() -> tuple[str, str, str]:
    return course_secret(), _grader_version(), os.environ.get("LAB_DEVICE", "cpu")


@functools.cache
def _grader_version() -> str:
    files = [ROOT / "autograder" / f"{name}.py" for name in GRADER]
    for folder in ("autograder/split", "autograder/misconceptions", "lab"):
        files += sorted((ROOT / folder).glob("*.py"))
    return hashed(importlib.metadata.version("torch"), *(file.read_text() for file in files))


def write_whole(path: Path, data: bytes) -> None:
    """The whole file or none of it, whenever the process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    Path(name).replace(path)
