"""How `make test` spreads the tests over the processors (pytest-xdist, --dist loadgroup), and what it leaves out."""

import pytest

from tests import unchanged

# Each test of these files makes for itself what it needs, and so does one of an exercise: they may run anywhere. Those
# of any other file stay together, in one process: they share what is dear to make.
SPREAD = {"test_exercises.py", "test_fairness.py", "test_grading.py", "test_mutation.py"}
# The tests of a folder that share something: a browser, the processes that hostile submissions leave.
TOGETHER = {"book", "hostile"}


def pytest_addoption(parser):
    group = parser.getgroup("exercises")
    group.addoption(
        "--again",
        action="store_true",
        help="also the tests of exercises which have not changed since they passed (tests/unchanged.py)",
    )
    group.addoption(
        "--record",
        action="store_true",
        help="only the tests of exercises which have changed; keeps which exercises have passed",
    )


def pytest_configure(config):
    if config.getoption("record") and not hasattr(config, "workerinput"):
        if (
            config.option.keyword
            or config.option.markexpr
            or config.args != config.getini("testpaths")
        ):
            raise pytest.UsageError("--record wants all tests of an exercise: no -k, -m or files.")
        config.pluginmanager.register(Recorder(), "recorder")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    for item in items:
        folder = item.path.parent.name
        if item.path.name not in SPREAD and not item.get_closest_marker("of_exercise"):
            group = folder if folder in TOGETHER else f"{folder}/{item.path.name}"
            item.add_marker(pytest.mark.xdist_group(group))
    passed = set() if config.getoption("again") else unchanged.passed()
    only_of_exercises = config.getoption("record")
    kept, left_out = [], []
    for item in items:
        if item.get_closest_marker("of_exercise"):
            name = unchanged.named(item.callspec.params["exercise"])
            item.user_properties.append(("exercise", name))
            (left_out if name in passed else kept).append(item)
        else:
            (left_out if only_of_exercises else kept).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


def pytest_collection_finish(session):
    """Says so where pytest-xdist keeps no groups: what is dear would be made in every process, unnoticed."""
    if getattr(session.config.option, "loadgroup", False):
        for item in session.items:
            if item.get_closest_marker("xdist_group") and "@" not in item.nodeid:
                raise pytest.UsageError(
                    "pytest-xdist does not keep groups of tests under this pytest"
                )


def pytest_terminal_summary(terminalreporter, config):
    passed = unchanged.passed()
    if passed and not config.getoption("again"):
        terminalreporter.write_line(
            f"{len(passed)} exercises have not changed since they passed; --again tries all their wrong answers anew"
        )


class Recorder:
    """Keeps of which exercises every test has passed."""

    def __init__(self):
        self.tried, self.failed, self.whole = set(), set(), True

    def pytest_runtest_logreport(self, report):
        names = {name for what, name in report.user_properties if what == "exercise"}
        self.tried |= names
        if report.failed:
            self.failed |= names
            self.whole &= bool(names)  # a process that died does not say what it was at

    def pytest_sessionfinish(self, exitstatus):
        ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        if ended and self.whole:
            unchanged.record(self.tried - self.failed)
