"""What is left out because it has passed as it is: nothing that could have changed is."""

from types import SimpleNamespace

import pytest

from autograder.loader import find_exercise
from autograder.source import read_exercise
from tests import unchanged
from tests.conftest import Recorder
from tests.unchanged import key, passed, record

ATTENTION = find_exercise("transformer", "attention")
QUANTIZATION = find_exercise("open_weights", "quantization")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(unchanged, "PASSED", tmp_path / "passed.json")


@pytest.fixture
def key_with(tmp_path):
    """The key of attention with one text of it replaced."""
    path = tmp_path / "transformer" / "attention.py"
    path.parent.mkdir(exist_ok=True)

    def changed(before, after):
        text = ATTENTION.path.read_text()
        assert before in text
        path.write_text(text.replace(before, after))
        return key(read_exercise(path))

    return changed


@pytest.mark.parametrize(
    "before, after",
    [
        ("math.sqrt(d_k)", "d_k ** 0.5"),
        ("### BEGIN HIDDEN TESTS", "### BEGIN HIDDEN TESTS\nassert True"),
    ],
    ids=["an answer", "a test"],
)
def test_an_exercise_with_changed_code_has_changed(key_with, before, after):
    assert key_with(before, after) != key(ATTENTION)


def test_an_exercise_with_changed_prose_has_not(key_with):
    assert key_with("# # Attention", "# # Attention, again") == key(ATTENTION)


@pytest.mark.parametrize(
    "file",
    [
        "autograder/examiner.py",
        "autograder/split/zygote.py",
        "autograder/misconceptions/open_weights/quantization.py",
        "autograder/sample_class/open_weights/quantization.py",
        "lab/check.py",  # which a test imports
        "lab/seeds.py",  # which another module of lab imports
        "tests/solutions/test_exercises.py",
    ],
)
def test_an_exercise_has_changed_with_what_its_tests_depend_on(monkeypatch, file):
    before, digest = key(QUANTIZATION), unchanged._digest
    monkeypatch.setattr(unchanged, "_digest", lambda f: "another" if f == file else digest(f))
    assert key(QUANTIZATION) != before


@pytest.mark.parametrize(
    "file",
    ["lab/scenes.py", "autograder/report.py", "autograder/misconceptions/transformer/block.py"],
)
def test_an_exercise_has_not_changed_with_what_they_do_not_depend_on(monkeypatch, file):
    before, digest = key(QUANTIZATION), unchanged._digest
    monkeypatch.setattr(unchanged, "_digest", lambda f: "another" if f == file else digest(f))
    assert key(QUANTIZATION) == before


def test_an_exercise_whose_tests_read_checkpoints_has_changed_with_them(monkeypatch, key_with):
    imports = ("import math\n", "import math\nfrom lab.checkpoints import load\n")
    before, digest = key_with(*imports), unchanged._digest
    weights = "lab/weights/gpt.safetensors"
    monkeypatch.setattr(unchanged, "_digest", lambda f: "another" if f == weights else digest(f))
    assert key_with(*imports) != before


def test_what_is_recorded_has_passed_until_it_changes(monkeypatch):
    assert passed() == set()
    record(["transformer/attention", "open_weights/quantization"])
    assert passed() == {"transformer/attention", "open_weights/quantization"}
    monkeypatch.setattr(unchanged, "key", lambda exercise: "another")
    assert passed() == set()


def report(outcome, exercise=None):
    properties = [["exercise", exercise]] if exercise else []
    return SimpleNamespace(failed=outcome == "failed", user_properties=properties)


def recorded(*reports, exitstatus=pytest.ExitCode.OK):
    recorder = Recorder()
    for each in reports:
        recorder.pytest_runtest_logreport(each)
    recorder.pytest_sessionfinish(exitstatus)
    return passed()


def test_an_exercise_is_recorded_when_all_its_tests_passed():
    one, other = "transformer/attention", "transformer/block"
    assert recorded(
        report("passed", one), report("failed", other), report("passed", other),
        exitstatus=pytest.ExitCode.TESTS_FAILED,
    ) == {one}  # fmt: skip


def test_nothing_is_recorded_where_the_run_was_cut_short_or_a_process_died():
    one = "transformer/attention"
    assert recorded(report("passed", one), exitstatus=pytest.ExitCode.INTERRUPTED) == set()
    died = report("failed")
    assert recorded(report("passed", one), died, exitstatus=pytest.ExitCode.TESTS_FAILED) == set()
