"""Grades with otter-grader what it is told line by line; runs in otter's own environment, not in the course's.

Otter's command ``otter run`` does the same for one notebook: its imports are paid here once, and not counted.
"""

import json
import os
import sys
import time

from otter.run import main as grade


def answer(answers) -> None:
    """Reads ``[notebook, tests, folder]``; says the seconds it took, and the points."""
    for line in sys.stdin:
        notebook, tests, folder = json.loads(line)
        start = time.perf_counter()
        results = grade(notebook, autograder=tests, output_dir=folder, no_logo=True)
        seconds = time.perf_counter() - start
        print(json.dumps([seconds, results.total, results.possible]), file=answers, flush=True)


if __name__ == "__main__":
    # What otter prints goes elsewhere than the answers.
    ours = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    answer(ours)
