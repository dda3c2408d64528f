"""How `make test` spreads the tests over the processors (pytest-xdist, --dist loadgroup)."""

import pytest

# Each test of these files makes for itself what it needs, so they may run anywhere. Those of any other file stay
# together, in one process: they share what is dear to make.
SPREAD = {"test_exercises.py", "test_fairness.py", "test_grading.py", "test_mutation.py"}
# The tests of a folder that share something: a browser, the processes that hostile submissions leave.
TOGETHER = {"book", "hostile"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        folder = item.path.parent.name
        if item.path.name not in SPREAD:
            group = folder if folder in TOGETHER else f"{folder}/{item.path.name}"
            item.add_marker(pytest.mark.xdist_group(group))
