"""The sample class: students of every kind answer the released notebooks, so that `make` grades a real class.

Right answers come from the styles beside this module, wrong ones from the bank of misconceptions, and the
hostile ones do what submissions have done to stock graders. What a student tries upon the grader is the same in
every exercise; those who do so hand in one exercise of each era.
"""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from autograder.misconceptions import misconceptions, wrong_part
from autograder.sample_class.styles import styles
from autograder.source import (
    BEGIN_SOLUTION,
    END_SOLUTION,
    ROOT,
    Exercise,
    defined_names,
    exercise_paths,
    read_exercise,
)

__all__ = ["DUE", "STUDENTS", "handed_in", "make_sample_class"]

DUE = "2025-03-03 12:00:00 UTC"
IN_TIME, LATE = "2025-03-01 09:30:00 UTC", "2025-03-05 23:10:00 UTC"

Notebook = dict
Student = Callable[[Exercise, Notebook], Notebook | str]

MARK = ".sample-class"


def make_sample_class(folder: Path, *, harmless: bool = False) -> list[str]:
    """Writes ``folder/submitted/<student>/<era>/<exercise>.ipynb`` for every student; returns their names.

    Args:
        folder: empty, or an earlier sample class, which is replaced.
        harmless: leave out the hostile students.

    Raises:
        FileExistsError: the folder holds something else.
    """
    mark = folder / MARK
    if folder.exists() and any(folder.iterdir()) and not mark.exists():
        raise FileExistsError(
            f"{folder} is not empty and holds no sample class; name an empty or a new folder."
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    mark.touch()
    students = {n: s for n, s in STUDENTS.items() if not (harmless and n.startswith("hostile"))}
    for name, student in students.items():
        for exercise in handed_in(name):
            released = ROOT / "exercises" / exercise.era / f"{exercise.name}.ipynb"
            submitted = student(exercise, json.loads(released.read_text()))
            place = folder / "submitted" / name / exercise.era
            place.mkdir(parents=True, exist_ok=True)
            text = submitted if isinstance(submitted, str) else json.dumps(submitted, indent=1)
            (place / f"{exercise.name}.ipynb").write_text(text)
            (place / "timestamp.txt").write_text(LATE if name == "late" else IN_TIME)
            if name == "hostile-ships-numpy":
                (place / "numpy.py").write_text(
                    "raise SystemExit('this is not the numpy you wanted')\n"
                )
    return list(students)


def handed_in(name: str) -> list[Exercise]:
    """The exercises that a student of the class hands in: all, or the first of each era."""
    exercises = [read_exercise(path) for path in exercise_paths()]
    if name in OF_EVERY_EXERCISE:
        return exercises
    first = {exercise.era: exercise for exercise in reversed(exercises)}
    return [exercise for exercise in exercises if first[exercise.era] is exercise]


# -- how an answer gets into a notebook -------------------------------------------------------------------


def answered(exercise: Exercise, notebook: Notebook, parts: dict[str, str]) -> Notebook:
    """The notebook with these texts in its answer cells."""
    for cell in notebook["cells"]:
        grade_id = cell["metadata"].get("nbgrader", {}).get("grade_id")
        if grade_id in parts:
            cell["source"] = parts[grade_id]
        elif (
            cell["metadata"].get("nbgrader", {}).get("solution") and cell["cell_type"] == "markdown"
        ):
            cell["source"] = "Because the scores would otherwise grow with the width."
    return notebook


def own_cell(notebook: Notebook, source: str, *, at: int = 0, kind: str = "code") -> Notebook:
    """The notebook with a cell of the learner's own, by default before everything else."""
    cell = {"cell_type": kind, "metadata": {}, "source": source, "id": f"mine-{at}"}
    notebook["cells"].insert(
        at, cell | ({"outputs": [], "execution_count": None} if kind == "code" else {})
    )
    return notebook


def right(exercise: Exercise) -> dict[str, str]:
    """The reference, without the markers a learner never sees."""
    return {part: _without_markers(exercise.cell(part).source) for part in exercise.parts}


def everywhere(exercise: Exercise, body: str) -> dict[str, str]:
    """Every name the answers define, as a function with this body."""
    return {
        part: "\n".join(
            f"def {name}(*args, **kwargs):\n    {body}\n"
            for name in defined_names(exercise.cell(part).source)
        )
        for part in exercise.parts
    }


# -- the students -----------------------------------------------------------------------------------------


def _in_style(number: int) -> Student:
    def student(exercise: Exercise, notebook: Notebook) -> Notebook:
        known = list(styles(exercise).values())
        return answered(exercise, notebook, right(exercise) | known[number % len(known)])

    return student


def _blank(exercise: Exercise, notebook: Notebook) -> Notebook:
    return notebook


def _mistaken(number: int) -> Student:
    """The first mistake of the bank in one part; all other parts are right."""

    def student(exercise: Exercise, notebook: Notebook) -> Notebook:
        bank = misconceptions(exercise.era, exercise.name)
        parts = list(dict.fromkeys(mistake.part for mistake in bank))
        mistake = next(m for m in bank if m.part == parts[number % len(parts)])
        wrong = {mistake.part: _without_markers(wrong_part(exercise, mistake))}
        return answered(exercise, notebook, right(exercise) | wrong)

    return student


def _late(exercise: Exercise, notebook: Notebook) -> Notebook:
    return answered(exercise, notebook, right(exercise))


def _syntax_error(exercise: Exercise, notebook: Notebook) -> Notebook:
    first = next(iter(exercise.parts))
    return answered(
        exercise, notebook, right(exercise) | {first: right(exercise)[first] + "\nreturn return"}
    )


def _infinite_loop(exercise: Exercise, notebook: Notebook) -> Notebook:
    first = next(iter(exercise.parts))
    return answered(
        exercise,
        notebook,
        right(exercise) | {first: everywhere(exercise, "while True: pass")[first]},
    )


def _warns(exercise: Exercise, notebook: Notebook) -> Notebook:
    noise = "import sys, warnings\nwarnings.warn('I may be deprecated')\nprint('chatter', file=sys.stderr)\n"
    return answered(
        exercise, notebook, {part: noise + text for part, text in right(exercise).items()}
    )


def _hostile_skip_tag(exercise: Exercise, notebook: Notebook) -> Notebook:
    """Tags the tests so that they are skipped, which stock nbgrader takes for full marks."""
    for cell in notebook["cells"]:
        if cell["metadata"].get("nbgrader", {}).get("grade"):
            cell["metadata"]["tags"] = ["skip-execution"]
    return notebook


def _hostile_displayhook(exercise: Exercise, notebook: Notebook) -> Notebook:
    """Shows a result before the test can fail, which stock nbgrader reads as a score."""
    return answered(exercise, notebook, everywhere(exercise, "import sys; sys.displayhook(99)"))


LIAR = """\
class Liar:
    shape = property(lambda self: Liar())
    def __eq__(self, other): return True
    def __bool__(self): return True
    def __float__(self): return 1.0
    def __len__(self): return 1
    def __getattr__(self, name): return Liar()
    def __call__(self, *args, **kwargs): return Liar()
    def __array__(self, *args, **kwargs): return None
"""


def _hostile_always_equal(exercise: Exercise, notebook: Notebook) -> Notebook:
    """Returns something that is equal to everything."""
    return own_cell(answered(exercise, notebook, everywhere(exercise, "return Liar()")), LIAR)


PATCH = """\
import builtins, sys, torch, numpy
import lab.check
for name in ("close", "equal", "that", "raises", "shape"):
    setattr(lab.check, name, lambda *args, **kwargs: None)
torch.testing.assert_close = torch.allclose = torch.equal = lambda *args, **kwargs: True
numpy.testing.assert_allclose = numpy.allclose = lambda *args, **kwargs: True
get_ipython().input_transformers_cleanup.append(lambda lines: ["pass"])
get_ipython().run_cell = lambda *args, **kwargs: None
builtins.AssertionError = BaseException
"""


def _hostile_patches(exercise: Exercise, notebook: Notebook) -> Notebook:
    """Replaces whatever a test could compare with."""
    return own_cell(notebook, PATCH)


def _hostile_ships_numpy(exercise: Exercise, notebook: Notebook) -> Notebook:
    """Right answers, with a numpy.py beside them that would end a kernel started in their folder."""
    return answered(exercise, notebook, right(exercise))


READER = """\
def look_for_answers():
    import gc, os, sys
    found = [text for text in globals().get("In", []) if "HIDDEN" in text]
    frame = sys._getframe()
    while frame:
        found += [v for v in frame.f_globals.values() if isinstance(v, str) and "HIDDEN" in v]
        frame = frame.f_back
    for folder, _, files in os.walk("/", onerror=lambda error: None):
        if folder.startswith(("/proc", "/sys", "/usr", "/lib")) or "site-packages" in folder:
            continue
        for name in files:
            if name.endswith((".py", ".ipynb", ".db")) and ("solutions" in folder or "gradebook" in name):
                found.append(open(os.path.join(folder, name)).read())
    for text in found:
        exec(text, globals())
    raise LookupError(f"{len(found)} answers found")
"""


def _hostile_reads(exercise: Exercise, notebook: Notebook) -> Notebook:
    """Looks for the tests, the answers and the gradebook wherever they could be."""
    return own_cell(
        answered(exercise, notebook, everywhere(exercise, "look_for_answers()")), READER
    )


WRITER = """\
import os, socket, sqlite3, subprocess
for folder, _, files in os.walk(os.path.expanduser("~")):
    for name in files:
        if name.endswith(".db"):
            sqlite3.connect(os.path.join(folder, name)).execute("update grade set auto_score = max_score_cell")
try:
    socket.create_connection(("127.0.0.1", 80), timeout=1)
except OSError:
    pass
subprocess.Popen(["sleep", "1000"], start_new_session=True)
"""


def _hostile_writes(exercise: Exercise, notebook: Notebook) -> Notebook:
    """Right answers, and an attempt at the gradebook, the network, and a process left running."""
    return own_cell(answered(exercise, notebook, right(exercise)), WRITER)


def _hostile_exits(exercise: Exercise, notebook: Notebook) -> Notebook:
    """Ends the process in the middle of every test, before it can fail."""
    return answered(exercise, notebook, everywhere(exercise, "import os; os._exit(0)"))


def _hostile_metadata(exercise: Exercise, notebook: Notebook) -> Notebook:
    """Right answers in a notebook with copied, reordered, deleted and changed cells."""
    notebook = answered(exercise, notebook, right(exercise))
    cells = notebook["cells"]
    tests = [cell for cell in cells if cell["metadata"].get("nbgrader", {}).get("grade")]
    tests[0]["metadata"]["nbgrader"]["points"] = 1000
    tests[-1]["metadata"]["nbgrader"]["schema_version"] = 99
    cells.remove(tests[1])
    cells.append(copy.deepcopy(tests[0]))
    answers = [cell for cell in cells if cell["metadata"].get("nbgrader", {}).get("solution")]
    cells.insert(0, copy.deepcopy(answers[0]) | {"source": "print('an old try')", "id": "copied"})
    tests[0]["cell_type"] = "markdown"
    notebook["metadata"]["kernelspec"] = {
        "name": "bash",
        "language": "bash",
        "display_name": "Bash",
    }
    return notebook


SCRIPT = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"


def _hostile_script(exercise: Exercise, notebook: Notebook) -> Notebook:
    """Right answers, with text that would run in the instructor's browser."""
    notebook = own_cell(answered(exercise, notebook, right(exercise)), SCRIPT, kind="markdown")
    shows = (
        f"from IPython.display import HTML, display\ndisplay(HTML({SCRIPT!r}))\nprint({SCRIPT!r})"
    )
    return own_cell(notebook, shows, at=1)


def _hostile_no_notebook(exercise: Exercise, notebook: Notebook) -> str:
    """A file that is no notebook at all."""
    return '{"cells": [' + "[" * 5000


STUDENTS: dict[str, Student] = {
    **{f"right-{number}": _in_style(number - 1) for number in range(1, 6)},
    "blank": _blank,
    **{f"mistake-{number}": _mistaken(number - 1) for number in range(1, 4)},
    "late": _late,
    "syntax-error": _syntax_error,
    "infinite-loop": _infinite_loop,
    "warns": _warns,
    "hostile-skip-tag": _hostile_skip_tag,
    "hostile-displayhook": _hostile_displayhook,
    "hostile-always-equal": _hostile_always_equal,
    "hostile-patches": _hostile_patches,
    "hostile-ships-numpy": _hostile_ships_numpy,
    "hostile-reads": _hostile_reads,
    "hostile-writes": _hostile_writes,
    "hostile-exits": _hostile_exits,
    "hostile-metadata": _hostile_metadata,
    "hostile-script": _hostile_script,
    "hostile-no-notebook": _hostile_no_notebook,
}
# Their answers differ from exercise to exercise in more than where they stand.
OF_EVERY_EXERCISE = {
    name for name in STUDENTS if name.startswith(("right-", "mistake-", "blank", "syntax-error"))
}


def _without_markers(source: str) -> str:
    return "\n".join(
        line for line in source.splitlines() if line.strip() not in (BEGIN_SOLUTION, END_SOLUTION)
    )
