"""The class report: one page for the instructor, to be read offline and without a script.

Scores come from the gradebook alone, misconceptions and timings from the results the grader has kept, and answers from
the notebooks it graded. Nothing is graded anew. A submission is hostile text: every value goes through the template,
which escapes it.
"""

import math
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import matplotlib
import nbformat
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup
from matplotlib.figure import Figure
from nbgrader.api import Assignment, Gradebook, SubmittedAssignment, SubmittedNotebook

from autograder import engine
from autograder.class_folder import ClassFolder
from autograder.gradebook import COURSE, lateness, marks
from autograder.misconceptions import misconceptions
from autograder.notebooks import SubmissionError, graded_cells, read_submission
from autograder.sandbox import Isolation
from autograder.similarity import Group, Likeness, compare
from autograder.source import (
    BEGIN_SOLUTION,
    END_SOLUTION,
    ROOT,
    Exercise,
    exercise_paths,
    read_exercise,
)
from lab.figures import COLOURS, _image, use_style

__all__ = ["discrimination", "write_report"]

TEMPLATES = ROOT / "autograder" / "templates"
MOST_BARS = 25
SLOWEST = 10
# Pairs whose texts the page shows, and how much of each: the page must open in a browser whatever was submitted.
MOST_GROUPS, MOST_TEXT, MOST_MESSAGE = 50, 6_000, 300
# A test is worth a second look when fewer pass it than this, or it goes along with the rest less than that.
FEW_PASS, LITTLE_DISCRIMINATION = 0.3, 0.2

Key = tuple[str, str]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Mark:
    """One cell's points as the gradebook has them."""

    student: str
    exercise: Key
    cell: str
    by_hand: bool
    points: float
    possible: float
    waiting: bool


@dataclass
class _Scores:
    """What the gradebook holds.

    Attributes:
        names: each student's name, ``""`` where the gradebook knows none.
        marks: the points of every cell of every notebook that was handed in.
        late: by how many seconds, for each student and era handed in late.
        penalties: points taken off for that.
    """

    names: dict[str, str] = field(default_factory=dict)
    marks: list[_Mark] = field(default_factory=list)
    late: dict[Key, float] = field(default_factory=dict)
    penalties: dict[Key, float] = field(default_factory=dict)


@dataclass
class _Graded:
    """A notebook that was graded, as far as its result is known.

    Attributes:
        answers: the text of each part's cell.
        tests: the verdict on each test; ``None`` where the result is not known.
        ended: cells and tests that ended the process, each with the reason.
        problem: why the file could not be graded, if it could not.
    """

    student: str
    exercise: Exercise
    answers: dict[str, str]
    tests: dict[str, dict] | None = None
    ended: list[tuple[str, str]] = field(default_factory=list)
    problem: str = ""

    @property
    def key(self) -> Key:
        return self.exercise.era, self.exercise.name

    @property
    def seconds(self) -> float:
        return sum(verdict["seconds"] for verdict in (self.tests or {}).values())


def write_report(
    where: ClassFolder, isolation: Isolation, progress: Progress = lambda *_: None
) -> Path:
    """Writes ``report.html`` into the class's folder and returns its path.

    Args:
        where: the class's folder, graded.
        isolation: what it was graded with; results are kept for each kind.
        progress: called with what is done, how much of it, and of how much.

    Raises:
        FileNotFoundError: there is no gradebook yet.
    """
    if where.database is None and not where.gradebook.is_file():
        raise FileNotFoundError(f"There is no {where.gradebook}; grade the class first.")
    scores = _scores(where)
    notebooks = _graded_notebooks(where, isolation, progress)
    tests = _test_rows(scores.marks)
    page = _template().render(
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        **_standing(scores, notebooks),
        **_score_table(where, scores),
        **_mistakes(notebooks),
        tests=tests,
        tests_picture=_test_picture(tests),
        **_timings(notebooks),
        **_alike(notebooks, progress),
    )
    path = where.folder / "report.html"
    engine.write_whole(path, page.encode("utf-8", "replace"))  # text may hold half a character
    return path


# -- what there is ----------------------------------------------------------------------------------------


def _scores(where: ClassFolder) -> _Scores:
    """The gradebook, read with a few queries: nbgrader's own objects would ask for every notebook anew."""
    found = _Scores()
    handed_in = where.handed_in()
    with Gradebook(where.db_url, COURSE) as gradebook:
        for student in gradebook.students:
            names = (student.last_name, student.first_name)
            found.names[student.id] = ", ".join(name for name in names if name)
        found.late = {key: late for key, late in lateness(gradebook).items() if late > 0}
        penalties = (
            gradebook.db.query(
                SubmittedAssignment.student_id,
                Assignment.name,
                SubmittedNotebook.late_submission_penalty,
            )
            .join(SubmittedNotebook.assignment)
            .join(SubmittedAssignment.assignment)
            .filter(SubmittedNotebook.late_submission_penalty > 0)
        )
        for student, era, penalty in penalties:
            found.penalties[student, era] = found.penalties.get((student, era), 0.0) + penalty
        for mark in marks(gradebook):
            # nbgrader gives a notebook that is missing no points; here it has no row.
            if mark[:3] in handed_in or mark.points:
                found.marks.append(
                    _Mark(
                        mark.student,
                        (mark.era, mark.exercise),
                        mark.cell,
                        mark.by_hand,
                        mark.points,
                        mark.possible,
                        mark.waiting,
                    )
                )
    return found


def _graded_notebooks(
    where: ClassFolder, isolation: Isolation, progress: Progress
) -> list[_Graded]:
    """The notebooks that were graded, with what is known of each; nothing is graded for it."""
    exercises = {(p.parent.name, p.stem): read_exercise(p) for p in exercise_paths()}
    paths = [p for p in sorted(where.intake.glob("*/*/*.ipynb")) if _place(p)[1:] in exercises]
    grader = engine.default(isolation)
    found = []
    for number, path in enumerate(paths, start=1):
        student, era, name = _place(path)
        exercise = exercises[era, name]
        # Our own writing, and valid: `nbformat.read` would check it, which takes most of its time.
        notebook = nbformat.v4.reads(path.read_text("utf-8"))
        cells = graded_cells(notebook, exercise)
        graded = _Graded(student, exercise, {c["name"]: c["source"] for c in cells if c["name"]})
        if result := grader.known(exercise, cells):
            _add_result(graded, cells, result)
        graded.problem = _problem(where.submitted / student / era / path.name, graded)
        found.append(graded)
        progress("reading results", number, len(paths))
    return found


def _add_result(graded: _Graded, cells: list[dict], result: dict) -> None:
    """Takes over what the page says of a result, and not the pictures and logs of ten thousand notebooks."""
    graded.tests = {
        test: {key: verdict[key] for key in ("passed", "misconception", "seconds")}
        for test, verdict in result["tests"].items()
    }
    for cell, outcome in zip(cells, result["cells"], strict=True):
        if outcome.get("fatal"):
            where = f"the cell {cell['name'] or cell['id']}"
            graded.ended.append((where, outcome["error"][1][:MOST_MESSAGE]))
    for test, verdict in result["tests"].items():
        if verdict["ended"]:
            graded.ended.append((test, verdict["message"][:MOST_MESSAGE]))


def _problem(submitted: Path, graded: _Graded) -> str:
    """Why what was handed in could not be graded; ``""`` where it could."""
    answered = any(verdict["passed"] for verdict in (graded.tests or {}).values())
    if answered or not (submitted.exists() or submitted.is_symlink()):
        return ""  # in the place of a file that cannot be read an empty notebook is graded
    try:
        read_submission(submitted, graded.exercise)
    except SubmissionError as error:
        return str(error)
    return ""


def _place(path: Path) -> tuple[str, str, str]:
    return path.parent.parent.name, path.parent.name, path.stem


# -- how the class stands ---------------------------------------------------------------------------------


def _standing(scores: _Scores, notebooks: list[_Graded]) -> dict:
    """How many notebooks there are of each exercise, and which of them still need somebody."""
    handed_in = _students_by_exercise(scores.marks)
    waiting = _students_by_exercise(mark for mark in scores.marks if mark.waiting)
    failed = [n for n in notebooks if n.problem]
    unknown = defaultdict(set)
    results = {(n.student, *n.key) for n in notebooks if n.tests is not None or n.problem}
    for exercise, students in handed_in.items():
        unknown[exercise] = {s for s in students if (s, *exercise) not in results}
    rows = [
        {
            "exercise": exercise,
            "handed_in": len(students),
            "waiting": sorted(waiting[exercise]),
            "unknown": sorted(unknown[exercise]),
        }
        for exercise, students in handed_in.items()
    ]
    late = [
        {"student": student, "era": era, "span": _span(seconds)}
        for (student, era), seconds in sorted(scores.late.items(), key=lambda item: -item[1])
    ]
    return {
        "students": len(scores.names),
        "handed_in": sum(row["handed_in"] for row in rows),
        "standing": rows,
        "late": late,
        "failed": sorted(failed, key=lambda n: (n.student, n.key)),
        "waiting": sum(len(row["waiting"]) for row in rows),
        "unknown": sum(len(row["unknown"]) for row in rows),
    }


def _students_by_exercise(marks: Iterable[_Mark]) -> dict[Key, set[str]]:
    found: dict[Key, set[str]] = defaultdict(set)
    for mark in marks:
        found[mark.exercise].add(mark.student)
    return found


def _span(seconds: float) -> str:
    """A time as one says it: in days and hours, or hours and minutes."""
    span = timedelta(seconds=seconds)
    hours, minutes = divmod(span.seconds // 60, 60)
    if span.days:
        return f"{span.days} d {hours} h"
    return f"{hours} h {minutes} min"


# -- scores -----------------------------------------------------------------------------------------------


def _score_table(where: ClassFolder, scores: _Scores) -> dict:
    """The points of each student in each exercise, their totals, and how they are distributed."""
    points: dict[tuple[str, Key], float] = defaultdict(float)
    waiting: set[tuple[str, Key]] = set()
    cells: dict[Key, dict[str, float]] = defaultdict(dict)
    for mark in scores.marks:
        points[mark.student, mark.exercise] += mark.points
        cells[mark.exercise][mark.cell] = mark.possible
        if mark.waiting:
            waiting.add((mark.student, mark.exercise))
    possible = {exercise: sum(of.values()) for exercise, of in cells.items()}
    late: dict[str, list[str]] = defaultdict(list)
    for student, era in scores.late:
        late[student].append(era)
    pages = {_place(path) for path in where.feedback.glob("*/*/*.html")}
    rows = []
    for student, name in sorted(scores.names.items()):
        own = {exercise: points.get((student, exercise)) for exercise in possible}
        rows.append(
            {
                "student": student,
                "name": name,
                "late": sorted(late[student]),
                "cells": [
                    {
                        "points": reached,
                        "fifth": _fifth(reached, possible[exercise]),
                        "waiting": (student, exercise) in waiting,
                        "page": _link(student, exercise, pages),
                    }
                    for exercise, reached in own.items()
                ],
                "total": _total(own, {era: scores.penalties.get((student, era)) for era, _ in own}),
            }
        )
    by_exercise: dict[Key, list[float]] = defaultdict(list)
    for (_, exercise), reached in points.items():
        by_exercise[exercise].append(reached)
    return {
        "possible": possible,
        "scores": rows,
        "histograms": [
            _histogram(exercise, by_exercise[exercise], of) for exercise, of in possible.items()
        ],
    }


def _total(own: dict[Key, float | None], penalties: dict[str, float | None]) -> float:
    """All points, less what an era takes off for being late, and never less than nothing for an era."""
    by_era: dict[str, float] = defaultdict(float)
    for (era, _), reached in own.items():
        by_era[era] += reached or 0.0
    return sum(max(0.0, reached - (penalties[era] or 0.0)) for era, reached in by_era.items())


def _fifth(reached: float | None, possible: float) -> int | None:
    """Which fifth of the possible points these are: 0 to 4."""
    if reached is None or not possible:
        return None
    return max(0, min(4, int(5 * reached / possible)))


def _link(student: str, exercise: Key, pages: set[tuple[str, str, str]]) -> str:
    """The feedback page, as the report beside its folder names it; ``""`` where there is none."""
    place = (student, *exercise)
    return (
        f"feedback/{'/'.join(quote(part, safe='') for part in place)}.html"
        if place in pages
        else ""
    )


def _histogram(exercise: Key, reached: list[float], possible: float) -> dict:
    """How often each number of points was reached: a picture, and the same in words."""
    width = max(1, math.ceil(possible / MOST_BARS))
    bars = [0] * (int(possible) // width + 1)
    for points in reached:
        bars[max(0, min(len(bars) - 1, int(points // width)))] += 1
    middle = statistics.median(reached)
    label = f"{exercise[1]}: {len(reached)} notebooks, median {_number(middle)} of {_number(possible)} points"
    told = "; ".join(
        f"{_bar(at * width, width)}: {count}" for at, count in enumerate(bars) if count
    )
    with matplotlib.rc_context():
        use_style()
        figure = Figure(figsize=(4.4, 2.4))
        axes = figure.subplots()
        axes.bar([at * width for at in range(len(bars))], bars, width=0.8 * width, color=COLOURS[0])
        axes.set_xlabel("points")
        axes.set_ylabel("notebooks")
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_major_locator().set_params(integer=True)
        axes.set_xlim(-0.7 * width, possible + 0.7 * width)
        told = f"Histogram of {label}. Notebooks for each number of points: {told}."
        return {"label": label, "picture": _picture(figure, told)}


def _picture(figure: Figure, told: str) -> Markup:
    """A figure as part of the page, with what it shows in words."""
    # An HTML page needs no namespaces, and this one names no address at all.
    return Markup(re.sub(r' xmlns(:\w+)?="[^"]*"', "", _image(figure, told)))


def _bar(start: int, width: int) -> str:
    return str(start) if width == 1 else f"{start} to {start + width - 1}"


# -- misconceptions ---------------------------------------------------------------------------------------


def _mistakes(notebooks: list[_Graded]) -> dict:
    """The misconceptions that were met, those of most students first, and how many failures no known one explains."""
    who: dict[tuple[Key, str], set[str]] = defaultdict(set)
    tests: dict[tuple[Key, str], set[str]] = defaultdict(set)
    unexplained = failures = 0
    for notebook in notebooks:
        for test, verdict in (notebook.tests or {}).items():
            failures += not verdict["passed"]
            if verdict["misconception"]:
                who[notebook.key, verdict["misconception"]].add(notebook.student)
                tests[notebook.key, verdict["misconception"]].add(test)
            elif not verdict["passed"]:
                unexplained += 1
    rows = []
    for key, name in who:
        bank = {mistake.name: mistake for mistake in misconceptions(*key)}
        rows.append(
            {
                "exercise": key,
                "part": bank[name].part,
                "says": bank[name].says,
                "tests": sorted(tests[key, name]),
                "students": sorted(who[key, name]),
            }
        )
    rows.sort(key=lambda row: (-len(row["students"]), row["exercise"], row["part"], row["says"]))
    return {"mistakes": rows, "failures": failures, "unexplained": unexplained}


# -- tests ------------------------------------------------------------------------------------------------


def _test_rows(marks: list[_Mark]) -> list[dict]:
    """Each test with how many passed it; what needs attention first, then the hardest."""
    own: dict[Key, dict[str, dict[str, _Mark]]] = defaultdict(lambda: defaultdict(dict))
    for mark in marks:
        if not mark.by_hand:
            own[mark.exercise][mark.cell][mark.student] = mark
    rows = []
    for exercise, tests in own.items():
        sums: dict[str, float] = defaultdict(float)
        for of_students in tests.values():
            for student, mark in of_students.items():
                sums[student] += mark.points
        for test, of_students in tests.items():
            passed = [mark.points >= mark.possible for mark in of_students.values()]
            rest = [sums[student] - mark.points for student, mark in of_students.items()]
            share, together = statistics.fmean(passed), discrimination(passed, rest)
            rows.append(
                {
                    "exercise": exercise,
                    "test": test,
                    "points": next(iter(of_students.values())).possible,
                    "passed": sum(passed),
                    "of": len(passed),
                    "share": share,
                    "discrimination": together,
                    "remark": _remark(share, together),
                }
            )
    return sorted(rows, key=lambda r: (not r["remark"], r["share"], r["exercise"], r["test"]))


def discrimination(passed: list[bool], rest: list[float]) -> float | None:
    """The point-biserial correlation of passing a test and the points of the rest; ``None`` if either never varies."""
    if len(set(passed)) < 2 or len(set(rest)) < 2:
        return None
    return statistics.correlation([float(one) for one in passed], rest)


def _remark(share: float, together: float | None) -> str:
    """Why a test deserves a second look; ``""`` where it does not."""
    if share == 0:
        return "Nobody passes."
    if together is not None and together < 0:
        return "Those who do better elsewhere pass it less often."
    if together is not None and together < LITTLE_DISCRIMINATION:
        return "Passing says little about the rest."
    return "Few pass." if share < FEW_PASS else ""


def _test_picture(rows: list[dict]) -> Markup | None:
    """Each test as a point by difficulty and discrimination; ``None`` where no test has both."""
    placed = [row for row in rows if row["discrimination"] is not None]
    noted = [row for row in placed if row["remark"]]
    if not placed:
        return None
    with matplotlib.rc_context():
        use_style()
        figure = Figure(figsize=(6.4, 3.2))
        axes = figure.subplots()
        for label, group in (
            ("no remark", [row for row in placed if not row["remark"]]),
            ("with a remark", noted),
        ):
            places = [row["share"] for row in group], [row["discrimination"] for row in group]
            axes.scatter(
                *places,
                alpha=0.7,
                marker="D" if group is noted else "o",
                label=f"{label}: {len(group)}",
            )
        axes.set_xlabel("difficulty: the share that passed")
        axes.set_ylabel("discrimination")
        axes.set_xlim(-0.03, 1.03)
        axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
        return _picture(figure, _told(placed, noted))


def _told(placed: list[dict], noted: list[dict]) -> str:
    """What the picture of the tests shows, in words."""
    named = "; ".join(
        f"{row['test']} of {row['exercise'][1]} ({row['share']:.2f} and {row['discrimination']:.2f})"
        for row in noted
    )
    return (
        f"{len(placed)} tests as points by difficulty and discrimination, as in the table below. "
        + (f"With a remark: {named}." if named else "None has a remark.")
    )


# -- timings ----------------------------------------------------------------------------------------------


def _timings(notebooks: list[_Graded]) -> dict:
    """What ended its process, by student, exercise and reason, and the notebooks whose tests took longest."""
    ended: dict[tuple[str, Key, str], list[str]] = defaultdict(list)
    for notebook in notebooks:
        for where, why in notebook.ended:
            ended[notebook.student, notebook.key, why].append(where)
    timed = [n for n in notebooks if n.tests is not None]
    return {
        "ended": [
            {"student": student, "exercise": key, "why": why, "where": where}
            for (student, key, why), where in sorted(ended.items())
        ],
        "slowest": sorted(timed, key=lambda n: -n.seconds)[:SLOWEST],
        "usual_seconds": statistics.median(n.seconds for n in timed) if timed else 0.0,
    }


# -- answers that are alike -------------------------------------------------------------------------------


def _alike(notebooks: list[_Graded], progress: Progress) -> dict:
    """How alike the answers to each part are, and those worth a look, what is least to be expected first."""
    by_exercise: dict[Key, list[_Graded]] = defaultdict(list)
    for notebook in notebooks:
        by_exercise[notebook.key].append(notebook)
    parts = [(own, part) for own in by_exercise.values() for part in own[0].exercise.parts]
    rows, groups = [], []
    for number, (own, part) in enumerate(parts, start=1):
        exercise = own[0].exercise
        source = exercise.cell(part).source
        found = compare({n.student: n.answers.get(part, "") for n in own}, _stub(source), source)
        rows.append({"exercise": own[0].key, "part": part, "found": found})
        groups += [
            {"exercise": own[0].key, "part": part, "group": group, "typical": found.typical}
            | {"texts": [(who, _shortened(text)) for who, text in group.texts]}
            | {"excess": _excess(group, found)}
            for group in found.groups
        ]
        progress("comparing answers", number, len(parts))
    groups.sort(key=lambda row: -row["excess"])
    return {
        "likeness": rows,
        "alike": groups[:MOST_GROUPS],
        "more_alike": len(groups[MOST_GROUPS:]),
    }


def _stub(source: str) -> str:
    """A solution cell as it is released."""
    region = re.compile(rf"^( *){BEGIN_SOLUTION}.*?{END_SOLUTION}", flags=re.MULTILINE | re.DOTALL)
    return region.sub(r"\1raise NotImplementedError()", source)


def _excess(group: Group, found: Likeness) -> float:
    """How much more two answers have in common than is typical; where nothing is typical yet, than is noticed."""
    return group.share[1] - (found.cutoff if found.typical is None else found.typical)


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}\n… (cut here)"


# -- the page ---------------------------------------------------------------------------------------------


def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "whole": "{:,}".format}
    return environment.get_template("report.html.j2")


def _number(points: float) -> str:
    return f"{points:.2f}".rstrip("0").rstrip(".")
