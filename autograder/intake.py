"""Notebooks out of a zip file, as learning management systems hand out a class's submissions.

No path inside the archive is used as one: what it says of student and exercise is read off it, and a file is written
where this class keeps that student's notebook.
"""

import re
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile, ZipFile, ZipInfo

from autograder.engine import write_whole
from autograder.notebooks import MAX_NOTEBOOK, SubmissionError
from autograder.source import exercise_paths

__all__ = ["unpack"]

SHOWN = 5
MAX_NAME = 100

# What stands in front of the file's own name where all lie in one folder (Canvas): name, perhaps LATE, two numbers.
FLAT = re.compile(r"(?P<name>.+?)(?:_LATE)?_(?P<number>\d+)_\d+_(?P<file>[^/]+)")
# The folder of one student (Moodle): full name and a number.
FOLDER = re.compile(r"(?P<name>.+)_(?P<number>\d+)_assignsubmission_\w+?_?")
# What browsers and systems add to the name of a second file: attention-1.ipynb, attention (1).ipynb.
AGAIN = re.compile(r"(?P<exercise>\w+?)(?:-\d+| ?\(\d+\))?\.ipynb")

# What zipfile raises for an encrypted member, a method it does not know, and data that are cut off.
UNREADABLE = (BadZipFile, RuntimeError, EOFError, ValueError, OSError, zlib.error)


def unpack(archive: Path, submitted: Path) -> list[str]:
    """Puts the notebooks of an archive where a class keeps them; returns what needs somebody's attention.

    Three forms are known: ``…/<student>/<exercise>.ipynb``, with the era between or without; Canvas's, all files in
    one folder; and Moodle's, a folder for each student. Of several files for one notebook the latest counts. A
    notebook that was there and is another is kept beside the new one.

    Raises:
        SubmissionError: this is no zip file, or it holds no notebook of the course.
    """
    notes: list[str] = []
    with _opened(archive) as opened:
        found, others = _sorted_out(opened)
        for (student, era, exercise), member in sorted(found.items()):
            try:
                text = _text(opened, member)
            except (SubmissionError, *UNREADABLE) as error:
                notes.append(f"{student}, {era}/{exercise}: not taken out of the archive: {error}")
            else:
                _put(submitted / student / era / f"{exercise}.ipynb", text)
    if not found:
        raise SubmissionError(
            f"{archive} holds no notebook of this course. Known are <student>/<exercise>.ipynb and the archives "
            "of Canvas and Moodle; the exercises are "
            f"{', '.join(path.stem for path in exercise_paths())}."
        )
    if others:
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        notes.append(f"not notebooks of this course: {', '.join(others[:SHOWN])}{more}")
    return notes


def _opened(archive: Path) -> ZipFile:
    try:
        return ZipFile(archive)
    except (BadZipFile, OSError) as error:
        raise SubmissionError(f"{archive} cannot be read as a zip file: {error}.") from error


def _sorted_out(archive: ZipFile) -> tuple[dict[tuple[str, str, str], ZipInfo], list[str]]:
    """The latest file for each student and exercise, and the names of what is neither."""
    eras = {path.stem: path.parent.name for path in exercise_paths()}
    found: dict[tuple[str, str, str], ZipInfo] = {}
    others = []
    for member in archive.infolist():
        if member.is_dir() or member.filename.startswith("__MACOSX/"):
            continue
        place = _place(PurePosixPath(member.filename), eras)
        if place is None:
            others.append(member.filename)
        elif place not in found or found[place].date_time <= member.date_time:
            found[place] = member
    return found, others


def _place(path: PurePosixPath, eras: dict[str, str]) -> tuple[str, str, str] | None:
    """Student, era and exercise of a file of the archive."""
    for student, file in _readings(path, eras.values()):
        if (named := AGAIN.fullmatch(file)) and (exercise := named["exercise"]) in eras:
            return _safe(student), eras[exercise], exercise
    return None


def _readings(path: PurePosixPath, eras: Collection[str]) -> Iterator[tuple[str, str]]:
    """Who may have handed in which file, by the forms that are known."""
    *folders, file = path.parts
    if canvas := FLAT.fullmatch(file):
        yield f"{canvas['name']}_{canvas['number']}", canvas["file"]
    if folders and folders[-1] in eras:
        folders.pop()
    if folders:
        moodle = FOLDER.fullmatch(folders[-1])
        yield f"{moodle['name']}_{moodle['number']}" if moodle else folders[-1], file


def _safe(name: str) -> str:
    """A name for a student's folder: letters, digits, ``_ . -``, and no dot in front."""
    return re.sub(r"[^\w.-]+", "_", name)[:MAX_NAME].strip("._") or "nameless"


def _text(archive: ZipFile, member: ZipInfo) -> bytes:
    # What the archive says of its size may be a lie; no more than is allowed is unpacked.
    with archive.open(member) as file:
        text = file.read(MAX_NOTEBOOK + 1)
    if len(text) > MAX_NOTEBOOK:
        raise SubmissionError(f"it has more than the {MAX_NOTEBOOK >> 20} MB that are allowed")
    return text


def _put(path: Path, text: bytes) -> None:
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise SubmissionError(f"{path} is in the way; remove it.")
    if path.is_file() and path.read_bytes() != text:
        kept = (path.with_name(f"{path.stem}.earlier-{n}.ipynb") for n in range(1, 10_000))
        path.rename(next(place for place in kept if not place.exists()))
    write_whole(path, text)
