"""From ``solutions/`` to ``exercises/``: our source notebooks, nbgrader's own ``generate_assignment``."""

import contextlib
import filecmp
import hashlib
import importlib.metadata
import itertools
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock
from nbgrader.converters import GenerateAssignment
from nbgrader.coursedir import CourseDirectory
from sqlalchemy import make_url
from traitlets.config import Config, PyFileConfigLoader

from autograder.gradebook import known_sources, note_sources
from autograder.notebooks import source_notebook, written
from autograder.source import ROOT, exercise_paths, read_exercise
from autograder.verdicts import hashed

__all__ = ["build", "course_config", "register", "stale"]

SOURCES = ROOT / "_build" / "source"
RELEASED = ROOT / "exercises"
REGISTERED = ROOT / "_build" / "registered"
MINE = "-mine-"  # in the name of a notebook that was moved aside


def build(release: Path = RELEASED) -> list[Path]:
    """Generates the learners' notebooks of all exercises; returns their paths.

    Raises:
        SourceError: an exercise breaks a rule. Nothing has been written to ``release`` then.
    """
    with _alone():
        return _build(release)


def stale() -> list[str]:
    """What ``exercises/`` has that a build would not give, or lacks, or has otherwise."""
    fresh = ROOT / "_build" / "fresh"
    with _alone():
        _build(fresh)
        return _differing(fresh)


def register(db_url: str) -> list[str]:
    """Makes a gradebook know the exercises as they are now; returns the eras.

    nbgrader keeps the cells and points of an assignment in the gradebook; ``generate_assignment`` puts them there. That
    takes it a second an exercise, so it is done when the exercises have changed, and once for all new SQLite files.
    """
    with _alone():
        eras = _write_sources()
        of = _digest_of_sources()
        place = make_url(db_url)
        if place.drivername == "sqlite" and place.database and not Path(place.database).exists():
            unfinished = Path(f"{place.database}.unfinished")
            shutil.copyfile(_new_gradebook(eras, of), unfinished)
            unfinished.rename(place.database)
        elif known_sources(db_url, eras) != of:
            _register(db_url, eras, of)
        return eras


def course_config(**course: object) -> Config:
    """The course's nbgrader configuration, with some traits of its ``CourseDirectory`` set otherwise."""
    config = PyFileConfigLoader("nbgrader_config.py", path=str(ROOT)).load_config()
    for name, value in course.items():
        config.CourseDirectory[name] = str(value) if isinstance(value, Path) else value
    return config


def quiet_log(name: str) -> logging.Logger:
    """nbgrader reports every file it copies; only what needs somebody's attention is passed on."""
    log = logging.getLogger(f"course.{name}")
    log.setLevel(logging.ERROR)
    return log


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Two commands in one checkout write the same scratch folders: the second waits here for the first."""
    (ROOT / "_build").mkdir(exist_ok=True)
    # A new lock each time: one that was made before a fork is of no use after it.
    with FileLock(ROOT / "_build" / ".building"):
        yield


def _build(release: Path) -> list[Path]:
    scratch = ROOT / "_build" / "release"
    eras = _write_sources()
    shutil.rmtree(scratch, ignore_errors=True)
    for era in eras:
        config = course_config(release_directory=scratch, assignment_id=era)
        config.SaveCells.enabled = False
        _generate(config, no_database=True)
    return _mirror(scratch, release)


def _new_gradebook(eras: list[str], of: str) -> Path:
    """A gradebook that knows the exercises and no students."""
    kept = REGISTERED / f"{of}.db"
    if not kept.exists():
        shutil.rmtree(REGISTERED, ignore_errors=True)
        REGISTERED.mkdir(parents=True)
        unfinished = kept.with_suffix(".unfinished")
        _register(f"sqlite:///{unfinished}", eras, of)
        unfinished.rename(kept)
    return kept


def _register(db_url: str, eras: list[str], of: str) -> None:
    for era in eras:
        config = course_config(release_directory=REGISTERED, assignment_id=era)
        config.CourseDirectory.db_url = db_url
        _generate(config, no_database=False)
    note_sources(db_url, of)


def _differing(fresh: Path) -> list[str]:
    names = {
        str(path.relative_to(folder))
        for folder in (fresh, RELEASED)
        for path in folder.glob("*/*")
        if MINE not in path.name
    }
    return sorted(
        name
        for name in names
        if not (fresh / name).is_file()
        or not (RELEASED / name).is_file()
        or not filecmp.cmp(fresh / name, RELEASED / name, shallow=False)
    )


def _write_sources() -> list[str]:
    """Writes the nbgrader source notebooks of all exercises; returns the eras.

    Raises:
        SourceError: an exercise breaks a rule. Nothing has been written then.
    """
    notebooks = {path: written(source_notebook(read_exercise(path))) for path in exercise_paths()}
    shutil.rmtree(SOURCES, ignore_errors=True)
    for path, text in notebooks.items():
        target = SOURCES / path.parent.name / f"{path.stem}.ipynb"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return sorted({path.parent.name for path in notebooks})


def _digest_of_sources() -> str:
    texts = [path.read_text(encoding="utf-8") for path in sorted(SOURCES.glob("*/*.ipynb"))]
    return hashed(importlib.metadata.version("nbgrader"), *texts)


def _generate(config: Config, *, no_database: bool) -> None:
    # nbgrader starts `alembic` by its name; it lies beside this interpreter, on PATH or not.
    os.environ["PATH"] = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    )
    course = CourseDirectory(config=config)
    converter = GenerateAssignment(
        coursedir=course, config=config, no_database=no_database, force=True
    )
    converter.log = course.log = quiet_log("build")
    converter.start()


def _mirror(fresh: Path, release: Path) -> list[Path]:
    """Makes ``release`` hold the fresh notebooks, touching only what differs; returns their paths.

    What somebody has written is kept: a notebook that no build wrote is not removed, and one that was changed since
    is moved aside before the fresh one takes its place.
    """
    place = hashlib.sha256(str(release.resolve()).encode()).hexdigest()[:16]
    record = ROOT / "_build" / "built" / f"{place}.json"
    built = json.loads(record.read_text()) if record.is_file() else {}
    wanted = {str(path.relative_to(fresh)) for path in fresh.glob("*/*.ipynb")}
    for name in sorted(wanted):
        target = release / name
        if target.is_file() and filecmp.cmp(fresh / name, target, shallow=False):
            continue
        if target.is_file() and _digest(target) != built.get(name):
            print(f"{target} was changed by hand; it is now {_move_aside(target)}")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(fresh / name, target)
    for path in release.glob("*/*.ipynb"):
        name = str(path.relative_to(release))
        if name not in wanted and _digest(path) == built.get(name):
            path.unlink()
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({name: _digest(release / name) for name in sorted(wanted)}))
    return [release / name for name in sorted(wanted)]


def _move_aside(path: Path) -> Path:
    for number in itertools.count(1):
        aside = path.with_name(f"{path.stem}{MINE}{number}.ipynb")
        if not aside.exists():
            return path.rename(aside)
    raise AssertionError("unreachable")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
