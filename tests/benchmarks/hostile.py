"""What hostile submissions do to stock nbgrader and to this course's grader: the same files, by what they try.

    python -m tests.benchmarks.hostile

Each submission of ``tests/hostile/corpus.py`` is handed in to a class of its own, in which another student comes after
it, and graded by nbgrader's ``Autograde`` as nbgrader ships it. These are real attacks, and stock nbgrader runs them
in a kernel that may do all its user may; so each class lies in a sandbox without a network, under a user of its own,
with limits on processes, memory, files and time. Here, all of them are one class. It takes about half an hour;
outcomes are kept, so it can be interrupted and run again.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from nbgrader.api import Gradebook
from rich.console import Console
from rich.progress import track

from autograder.build import register
from autograder.sandbox import SYSTEM, check_sandbox
from autograder.secret import course_secret
from autograder.source import ROOT
from tests.hostile.classroom import graded_class
from tests.hostile.corpus import CORPUS, EXERCISE, HIDDEN, POINTS, ROWS

COURSE, ERA, NAME = "from-attention-to-reasoning", "transformer", "attention"
# nbgrader grades in the order of names; `after` is no notebook, so its turn costs next to nothing and is in the log.
STUDENT, AFTER = "a-student", "the-next-one"
# nbgrader gives a cell 30 seconds; here more, lest a busy machine make a right answer look late.
CELL_SECONDS, SECONDS = 60, 600
AT_A_TIME = 3
PROCESSES, MEMORY, FILE_SIZE = 48, 3 << 30, 400 << 20
FIRST_USER = 60_000
KEPT = ROOT / "_build" / "hostile"

STOCK = f"""
import logging
logging.basicConfig(level=logging.ERROR)
from nbgrader.converters import Autograde
from nbgrader.coursedir import CourseDirectory
from traitlets.config import Config
config = Config()
config.CourseDirectory.update(root="/class", course_id="{COURSE}", assignment_id="{ERA}")
config.Execute.timeout = {CELL_SECONDS}
converter = Autograde(coursedir=CourseDirectory(config=config), config=config, force=True)
converter.start()
"""


@dataclass(frozen=True)
class Outcome:
    """What stock nbgrader made of a submission.

    Attributes:
        points: what the gradebook holds in the end.
        stopped: the next student's turn never came.
        shown: a line of a hidden test is in an output of the graded notebook, which the feedback shows.
    """

    points: float
    stopped: bool
    shown: bool


def main() -> None:
    """Grades the corpus twice and prints the table."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        here.chmod(0o711)
        stock = by_stock(here)
        ours = graded_class(here / "ours")
    table(stock, ours)


def by_stock(here: Path) -> dict[str, Outcome]:
    """The outcome of each submission under stock nbgrader."""
    template = course(here / "template")
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        outcomes = pool.map(
            lambda numbered: kept(here / str(numbered[0]), template, *numbered), enumerate(CORPUS)
        )
        seen = track(outcomes, "stock", len(CORPUS), console=Console(stderr=True))
        return {submission.name: outcome for submission, outcome in zip(CORPUS, seen, strict=True)}


def course(folder: Path) -> Path:
    """What an instructor has before the first submission comes: the gradebook and the source notebooks."""
    folder.mkdir()
    register(f"sqlite:///{folder}/gradebook.db")
    shutil.copytree(ROOT / "_build" / "source", folder / "source")
    return folder


def kept(folder: Path, template: Path, number: int, submission) -> Outcome:
    """The outcome of a submission, from an earlier run where that had the same files."""
    path = KEPT / f"{digest(folder, submission)}.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(alone(folder, template, number, submission))))
    return Outcome(**json.loads(path.read_text()))


def digest(folder: Path, submission) -> str:
    """A hash of what is handed in, and of the exercise and the nbgrader that grade it."""
    whole = hashlib.sha256(f"{version('nbgrader')} {STOCK}".encode())
    for cell in EXERCISE.cells:
        whole.update(cell.source.encode())
    for write in hand_ins(submission):
        folder.mkdir()
        write(folder)
        for path in sorted(folder.rglob("*")):
            whole.update(f"{path.relative_to(folder)} {path.lstat().st_mode}".encode())
            if path.is_symlink():
                whole.update(str(path.readlink()).encode())
            elif path.is_file():
                whole.update(path.read_bytes())
        shutil.rmtree(folder)
    return whole.hexdigest()


def hand_ins(submission) -> list:
    """What writes each of the files that a student handed in, one after the other."""
    return [write for write in (submission.earlier, submission.write) if write]


def alone(folder: Path, template: Path, number: int, submission) -> Outcome:
    """One submission in a class with one more student."""
    shutil.copytree(template, folder)
    place, after = (folder / "submitted" / student / ERA for student in (STUDENT, AFTER))
    after.mkdir(parents=True)
    (after / f"{NAME}.ipynb").write_text("no notebook")
    for write in hand_ins(submission):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        write(place)
        log = graded(folder, FIRST_USER + number)
    outcome = Outcome(points_of(folder), f"{AFTER}/{ERA}" not in log, shows_hidden(folder))
    shutil.rmtree(folder)
    return outcome


def graded(folder: Path, user: int) -> str:
    """Lets stock nbgrader grade a class, in a sandbox; returns its log."""
    path = folder.parent / f"{folder.name}.log"
    with path.open("wb") as log:
        if os.geteuid() == 0:
            subprocess.run(["chown", "-hR", f"{user}:{user}", folder], check=True)
        process = subprocess.Popen(
            sandboxed(folder, user), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()  # and with it everything in its namespaces
            process.wait()
    return path.read_text(errors="replace")


def sandboxed(folder: Path, user: int) -> list[str]:
    """The command that grades a class where it can hurt nobody.

    The kernel does not bound root's processes, not even in a namespace that calls root otherwise; where root runs this,
    another user has to take over inside.
    """
    arguments = [check_sandbox(), "--die-with-parent", "--new-session", "--unshare-pid"]
    arguments += ["--unshare-net", "--unshare-ipc", "--unshare-uts", "--proc", "/proc"]
    arguments += [
        "--dev",
        "/dev",
        "--size",
        str(64 << 20),
        "--perms",
        "1777",
        "--tmpfs",
        "/dev/shm",
    ]
    arguments += ["--size", str(1 << 30), "--perms", "1777", "--tmpfs", "/tmp"]
    arguments += ["--bind", str(folder), "/class"]
    visible = [path for path in SYSTEM if Path(path).exists()]
    visible += [sys.base_prefix, sys.prefix]
    # Hidden tests import these; without them no right answer could pass.
    visible += [str(ROOT / name) for name in ("autograder", "lab", "solutions")]
    for path in visible:
        arguments += ["--ro-bind", path, path]
    for parent in sorted({parent for path in visible for parent in Path(path).parents}):
        if not any(
            parent.is_relative_to(path) for path in visible
        ):  # made by bubblewrap for itself alone
            arguments += ["--chmod", "0755", str(parent)]
    arguments += ["--chdir", "/class", "--remount-ro", "/", "--clearenv"]
    for name, value in environment().items():
        arguments += ["--setenv", name, value]
    become = []
    if os.geteuid() == 0:
        arguments += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        become += ["--inh-caps=-all", "--no-new-privs"]
    bounds = ["prlimit", f"--nproc={PROCESSES}", f"--data={MEMORY}", f"--fsize={FILE_SIZE}"]
    return [*arguments, "--", *become, *bounds, "--core=0", sys.executable, "-P", "-c", STOCK]


def environment() -> dict[str, str]:
    """What a grading process needs to know."""
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": "/tmp",
        "MPLCONFIGDIR": "/tmp/matplotlib",
        "MPLBACKEND": "agg",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(ROOT),
        "LANG": "C.UTF-8",
        "LAB_DEVICE": "cpu",
        "COURSE_SECRET": course_secret(),
    }


def points_of(folder: Path) -> float:
    """What the tests have given, as the gradebook has it."""
    with Gradebook(f"sqlite:///{folder}/gradebook.db", COURSE) as book:
        submissions = [s for s in book.assignment_submissions(ERA) if s.student_id == STUDENT]
        return sum(
            grade.score
            for submission in submissions
            for notebook in submission.notebooks
            for grade in notebook.grades
            if notebook.name == NAME and grade.cell.cell_type == "code"
        )


def shows_hidden(folder: Path) -> bool:
    """Whether an output of the graded notebook holds a line of a hidden test."""
    path = folder / "autograded" / STUDENT / ERA / f"{NAME}.ipynb"
    if not path.is_file():
        return False
    cells = json.loads(path.read_text(errors="replace"))["cells"]
    # Tracebacks are coloured between any two tokens.
    outputs = plain(json.dumps([cell.get("outputs") for cell in cells]))
    return any(plain(json.dumps(line)[1:-1]) in outputs for line in HIDDEN)


def plain(text: str) -> str:
    """Text without colours and white space."""
    return re.sub(r"\\u001b\[[\d;]*m|\s+", "", text)


def table(stock: dict[str, Outcome], ours) -> None:
    """Prints, for each row, what was tried and what came of it."""
    count: dict[int, Counter] = {row: Counter() for row in ROWS}
    names: dict[str, list[str]] = {}
    for submission in CORPUS:
        for what in said(submission, stock[submission.name], ours):
            count[submission.row][what] += 1
            names.setdefault(what, []).append(submission.name)
    print(f"nbgrader {version('nbgrader')}, {len(CORPUS)} submissions\n")
    columns = ("tried", "held here", "forged", "lost", "class stopped", "hidden test shown")
    print(f"| row | what it tries | {' | '.join(columns)} |")
    print(f"| ---: | --- |{' ---: |' * len(columns)}")
    for row, about in ROWS.items():
        print(f"| {row} | {about} | {' | '.join(str(count[row][c]) for c in columns)} |")
    total = sum(count.values(), Counter())
    print(f"| | all | {' | '.join(str(total[c]) for c in columns)} |\n")
    for what in columns[2:]:
        print(f"{what}: {', '.join(names.get(what, ['none']))}\n")


def said(submission, stock: Outcome, ours) -> list[str]:
    """In which columns of the table a submission counts."""
    expected = sum(POINTS[test] for test in submission.passes)
    held = ours.points(submission) == expected and not ours.shown(submission)
    return ["tried"] + [
        what
        for what, is_so in {
            "held here": held,
            "forged": stock.points > expected,
            "lost": stock.points < expected,
            "class stopped": stock.stopped,
            "hidden test shown": stock.shown,
        }.items()
        if is_so
    ]


if __name__ == "__main__":
    main()
