"""The command ``autograder``: build, check, grade, and the sample class."""

import functools
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from autograder.source import ROOT, SourceError

__all__ = ["main"]

app = typer.Typer(
    help="Builds the learners' notebooks, grades them, and says how they did.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console(highlight=False)

IsolationOption = Annotated[
    str,
    typer.Option(
        help="'sandbox', or 'process' where there are no Linux namespaces (see SECURITY.md)."
    ),
]


DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--db",
        help="The gradebook, as SQLAlchemy names it (postgresql+psycopg://…); FOLDER/gradebook.db if none.",
    ),
]


@app.command()
def build(
    check: Annotated[
        bool, typer.Option(help="Change nothing; fail when exercises/ is stale.")
    ] = False,
) -> None:
    """Generate exercises/ from solutions/."""
    from autograder import build as builder

    if check:
        old = builder.stale()
        if old:
            _stop(
                f"exercises/ is stale ({', '.join(old)}): run `make exercises` and commit what it writes."
            )
        console.print("exercises/ is up to date.")
        return
    for path in builder.build():
        console.print(f"  {path.relative_to(ROOT)}")


@app.command("check")
def check_notebook(
    notebook: Annotated[Path, typer.Argument(help="A notebook of exercises/, answered.")],
    isolation: IsolationOption = "sandbox",
) -> None:
    """Grade one notebook at once and say what each test found."""
    from autograder.engine import default
    from autograder.loader import find_exercise
    from autograder.notebooks import graded_cells, read_submission, rebuilt_notebook

    exercise = find_exercise(_era_of(notebook), notebook.stem)
    submission = read_submission(notebook, exercise)
    with console.status("grading"):
        result = default(isolation).grade(
            exercise, graded_cells(rebuilt_notebook(exercise, submission), exercise)
        )
    _show_result(exercise, result)
    if not all(verdict["passed"] for verdict in result["tests"].values()):
        raise typer.Exit(1)


@app.command()
def grade(
    folder: Annotated[
        Path,
        typer.Argument(
            help="The class: FOLDER/submitted/<student>/<era>/<exercise>.ipynb; or the zip file in which Canvas or "
            "Moodle hand out its submissions, unpacked into the folder of its name."
        ),
    ] = ROOT,
    isolation: IsolationOption = "sandbox",
    due: Annotated[
        str | None, typer.Option(help="Due date, e.g. '2025-03-03 12:00:00 UTC'.")
    ] = None,
    database: DatabaseOption = None,
    scheduler: Annotated[
        str | None,
        typer.Option(help="Grade on the workers of this Dask scheduler, e.g. tcp://10.0.0.1:8786."),
    ] = None,
) -> None:
    """Grade a class into its gradebook and write feedback and the report."""
    from autograder.classes import ClassFolder, check_database
    from autograder.intake import unpack

    if database:
        check_database(database)
    notes = []
    if folder.suffix == ".zip":
        archive, folder = folder, folder.with_suffix("")
        notes = unpack(archive, ClassFolder(folder).submitted)
    _grade(ClassFolder(folder, database), isolation, due, scheduler, notes)


@app.command("sample-class")
def sample_class(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Where to write and grade it; an earlier sample class there is replaced."
        ),
    ],
) -> None:
    """Write a class of right, wrong and hostile submissions to every exercise, and grade it.

    Where no sandbox can be made, the hostile ones are left out and the rest is graded without one.
    """
    from autograder.classes import ClassFolder
    from autograder.sample_class.make import DUE, make_sample_class
    from autograder.sandbox import SandboxMissing, check_sandbox

    isolation = "sandbox"
    try:
        check_sandbox()
    except SandboxMissing as missing:
        isolation = "process"
        console.print(
            f"{escape(str(missing))}\n[yellow]The harmless part of the sample class is graded that way.[/]"
        )
    try:
        make_sample_class(folder, harmless=isolation == "process")
    except FileExistsError as error:
        raise typer.BadParameter(str(error)) from error
    _grade(ClassFolder(folder), isolation, DUE)


def _grade(
    where: "ClassFolder",
    isolation: str,
    due: str | None,
    scheduler: str | None = None,
    notes: Iterable[str] = (),
) -> None:
    from autograder.classes import grade_class, relative
    from autograder.report import write_report

    with _progress() as bar:
        show = _shown_in(bar)
        notes = [*notes, *grade_class(where, isolation, show, due, scheduler)]
        page = write_report(where, isolation, show)
    show_scores(where)
    for note in notes:
        console.print(f"[yellow]![/] {escape(note)}")
    gradebook = _without_password(where.database) if where.database else relative(where.gradebook)
    console.print(
        f"gradebook  {gradebook}\nfeedback   {relative(where.feedback)}\nreport     {relative(page)}"
    )


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="The class's folder.")] = ROOT,
    database: DatabaseOption = None,
    isolation: IsolationOption = "sandbox",
) -> None:
    """Write report.html: how a graded class stands, its misconceptions, its tests, answers that are alike.

    Nothing is graded for it; --isolation says how the class was graded.
    """
    from autograder.classes import ClassFolder, check_database, relative
    from autograder.report import write_report

    if database:
        check_database(database)
    with _progress() as bar:
        page = write_report(ClassFolder(folder, database), isolation, _shown_in(bar))
    console.print(f"report     {relative(page)}")


@app.command()
def scores(
    folder: Annotated[Path, typer.Argument(help="The class's folder.")] = ROOT,
    database: DatabaseOption = None,
) -> None:
    """Print the scores a class's gradebook holds."""
    from autograder.classes import ClassFolder, check_database

    if database:
        check_database(database)
    show_scores(ClassFolder(folder, database))


@app.command()
def mutate(
    exercises: Annotated[
        list[str] | None,
        typer.Argument(
            help="Which, as <era>/<exercise>; those changed since the last run if none."
        ),
    ] = None,
    isolation: IsolationOption = "sandbox",
) -> None:
    """Change every answer in every small way and list the changes that no test notices."""
    from autograder.mutation import is_recorded, record, try_all
    from autograder.source import exercise_paths, read_exercise

    every = {f"{path.parent.name}/{path.stem}": path for path in exercise_paths()}
    if unknown := set(exercises or []) - every.keys():
        raise FileNotFoundError(
            f"There is no exercise {sorted(unknown)[0]}. There are: {', '.join(every)}."
        )
    clean = True
    for name in exercises or every:
        exercise = read_exercise(every[name])
        if not exercises and is_recorded(exercise):
            console.print(f"{name}: tried as it is")
            continue
        with _progress() as bar:
            update = functools.partial(bar.update, bar.add_task(name))
            found = try_all(
                exercise, isolation, lambda done, total, to=update: to(completed=done, total=total)
            )
        _show_found(found)
        clean &= found.clean
        if found.clean:
            record(exercise, found)
    if not clean:
        raise typer.Exit(1)


def _show_found(found: "Found") -> None:
    noticed = found.mutants - found.equivalent - len(found.unnoticed)
    console.print(
        f"  {found.mutants} changes: {noticed} noticed by a test, {found.equivalent} known to be equivalent, "
        f"[{'red' if found.unnoticed else 'green'}]{len(found.unnoticed)} unnoticed[/]"
    )
    for mutant in found.unnoticed:
        console.print(f"  [red]unnoticed[/] in {mutant.part}")
        for mark, text in (("-", mutant.before), ("+", mutant.after)):
            for line in text.splitlines():
                console.print(f"    {mark} {escape(line)}", soft_wrap=True)
    for listed in found.noticed_after_all:
        console.print(
            f"  [red]listed as equivalent in {listed.part}, but noticed or no change:[/] {escape(listed.after)}"
        )
    for listed, seed in found.different:
        console.print(
            f"  [red]listed as equivalent in {listed.part}, but different for seed {seed}:[/] {escape(listed.after)}"
        )


def show_scores(where: "ClassFolder") -> None:
    """Prints a table: a row for each student, a column for each exercise, for each era, or for all, as they fit."""
    from autograder.classes import scores as read_scores

    handed_in = where.handed_in()
    found = [
        score
        for score in read_scores(where.db_url)
        if (score.student, score.era, score.exercise) in handed_in or score.auto or score.manual
    ]
    tables = [_score_table(found, by) for by in ("exercise", "era", "course")]
    unbounded = console.options.update_width(10_000)
    widths = [console.measure(table, options=unbounded).maximum for table in tables]
    fits = [table for table, width in zip(tables, widths, strict=True) if width <= console.width]
    table = fits[0] if fits else tables[-1]
    if table is not tables[0]:
        table.caption = f"By exercise: autograder report, or a terminal {widths[0]} columns wide"
    console.print(table)


def _score_table(found: list["Score"], by: Literal["exercise", "era", "course"]) -> Table:
    """The points of each student, summed over each exercise, each era, or the whole course."""

    def column(score: "Score") -> str:
        return "points" if by == "course" else getattr(score, by)

    possible: dict[str, float] = {}
    for _, score in sorted({(s.era, s.exercise): s for s in found}.items()):
        possible[column(score)] = possible.get(column(score), 0) + score.possible_auto
    table = Table(title="Points found by tests (written answers are graded by hand)")
    table.add_column("student")
    for name, points in possible.items():
        table.add_column(f"{name}\nof {points:g}", justify="right")
    for student in sorted({score.student for score in found}):
        own = [score for score in found if score.student == student]
        points = {name: [s.auto for s in own if column(s) == name] for name in possible}
        late = any(score.late_seconds > 0 for score in own)
        table.add_row(
            escape(student) + (" (late)" if late else ""),
            *(f"{sum(some):g}" if some else "–" for some in points.values()),
        )
    return table


def main() -> None:
    """Entry of the command; errors that the user can mend are one message, not a traceback."""
    from autograder.classes import GradebookMissing
    from autograder.notebooks import SubmissionError
    from autograder.pool import ClusterMissing
    from autograder.sandbox import SandboxMissing

    try:
        app()
    except (
        SourceError,
        ClusterMissing,
        GradebookMissing,
        SandboxMissing,
        SubmissionError,
        FileNotFoundError,
    ) as error:
        _stop(str(error))
    except KeyboardInterrupt:
        _stop("Interrupted. What was graded is kept; run the same command again to continue.")


def _show_result(exercise: "Exercise", result: dict) -> None:
    for outcome in result["cells"]:
        if outcome["error"] and outcome["error"][0] != "NotImplementedError":
            console.print(f"[yellow]a cell raised[/] {escape(': '.join(outcome['error']))}")
    reached = 0
    for test, verdict in result["tests"].items():
        points = exercise.cell(test).points
        reached += points * verdict["passed"]
        mark = "[green]passed[/]" if verdict["passed"] else "[red]not yet[/]"
        console.print(f"{mark}  {test}  {points * verdict['passed']}/{points}")
        if verdict["message"]:
            console.print(Padding(escape(verdict["message"]), (0, 0, 0, 4)))
    possible = sum(exercise.cell(test).points for test in result["tests"])
    by_hand = exercise.points - possible
    console.print(
        f"{reached} of {possible} points"
        + (f"; {by_hand} more are graded by hand" if by_hand else "")
    )


def _era_of(notebook: Path) -> str:
    """The era of a notebook: its folder, or the folder of the exercise that has its name."""
    if not notebook.is_file():
        raise FileNotFoundError(f"There is no file {notebook}.")
    eras = [path.parent.name for path in (ROOT / "solutions").glob(f"*/{notebook.stem}.py")]
    if notebook.resolve().parent.name in eras:
        return notebook.resolve().parent.name
    if len(eras) != 1:
        known = ", ".join(
            json.dumps(path.stem) for path in sorted((ROOT / "solutions").glob("*/*.py"))
        )
        raise FileNotFoundError(
            f"{notebook.name} is named like no exercise. The exercises are {known}."
        )
    return eras[0]


def _without_password(database: str) -> str:
    from sqlalchemy import make_url

    return make_url(database).render_as_string(hide_password=True)


def _progress() -> Progress:
    columns = [
        TextColumn("{task.description:26}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    ]
    return Progress(*columns, console=console)


def _shown_in(bar: Progress) -> Callable[[str, int, int], None]:
    """Shows what is done, how much of it, and of how much, each with a bar of its own."""
    tasks: dict[str, TaskID] = {}

    def show(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total)
        bar.update(tasks[what], completed=done)

    return show


def _stop(message: str) -> None:
    print(message, file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
