"""What is kept of a grading, and when it no longer counts."""

import subprocess
import sys

from autograder.engine import GRADER

LOADED = """
import sys
import autograder.engine, autograder.examiner, autograder.hidden
print(*(name for name in sys.modules if name.startswith("autograder.") and name.count(".") == 1))
"""


def test_a_result_depends_on_every_module_that_grading_loads():
    loaded = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, check=True
    ).stdout.split()
    folders = {"autograder.split", "autograder.misconceptions"}  # as a whole
    assert set(loaded) - folders == {f"autograder.{name}" for name in GRADER}
