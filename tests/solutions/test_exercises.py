"""Every exercise: its reference passes, every misconception fails, every other right style passes."""

import pytest
import torch

from autograder.loader import load, reference, run_cell
from autograder.misconceptions import misconceptions, wrong_part
from autograder.sample_class.styles import styles
from autograder.source import exercise_paths, read_exercise
from lab.check import CheckFailed
from tests.unchanged import named

EXERCISES = [read_exercise(path) for path in exercise_paths()]


def failing_tests(exercise, replaced=None, part=None):
    """The names of the tests (of one part, or of all) which the answers fail, each with the error."""
    answers = load(exercise, replaced)
    failed = {}
    for cell in exercise.parts[part] if part else exercise.cells:
        if cell.kind == "test":
            try:
                run_cell(cell.source, dict(vars(answers)), f"{exercise.name}:{cell.line}")
            except Exception as error:
                failed[cell.name] = error
    return failed


@pytest.fixture(params=["cpu", "cuda"])
def on_each_device(request, monkeypatch):
    """The answers and tests on this device; the reference is loaded anew, for it keeps the device it was loaded on."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU here")
    monkeypatch.setenv("LAB_DEVICE", request.param)
    reference.cache_clear()
    yield
    reference.cache_clear()


@pytest.mark.usefixtures("on_each_device")
@pytest.mark.parametrize("exercise", EXERCISES, ids=named)
def test_reference_passes_every_test(exercise):
    assert failing_tests(exercise) == {}


@pytest.mark.usefixtures("on_each_device")
@pytest.mark.parametrize("exercise", EXERCISES, ids=named)
def test_visible_part_of_each_test_passes_alone(exercise):
    answers = load(exercise)
    for cell in exercise.cells:
        if cell.kind == "test":
            run_cell(cell.visible, dict(vars(answers)), f"{exercise.name}:{cell.line}")


@pytest.mark.parametrize("exercise", EXERCISES, ids=named)
def test_size_is_that_of_the_house(exercise):
    assert 3 <= len(exercise.parts) <= 6
    assert 10 <= exercise.points <= 20
    assert sum(cell.kind == "written" for cell in exercise.cells) >= 1
    assert sum(cell.kind == "experiment" for cell in exercise.cells) >= 1
    assert len(misconceptions(exercise.era, exercise.name)) >= 6
    assert len(styles(exercise)) >= 5


MISTAKES = [(e, m) for e in EXERCISES for m in misconceptions(e.era, e.name)]


@pytest.mark.of_exercise
@pytest.mark.parametrize(
    "exercise, mistake", MISTAKES, ids=[f"{named(e)}-{m.name}" for e, m in MISTAKES]
)
def test_misconception_loses_points_in_its_part(exercise, mistake):
    wrong = {mistake.part: wrong_part(exercise, mistake)}
    failed = failing_tests(exercise, wrong, mistake.part)
    assert failed, f"no test of the part {mistake.part!r} notices {mistake.name!r}"
    for name, error in failed.items():
        assert isinstance(error, CheckFailed | AssertionError), (
            f"{name} crashed instead of failing with a message: {error!r}"
        )


STYLES = [(e, s, parts) for e in EXERCISES for s, parts in styles(e).items()]


@pytest.mark.of_exercise
@pytest.mark.parametrize(
    "exercise, style, parts", STYLES, ids=[f"{named(e)}-{s}" for e, s, _ in STYLES]
)
def test_right_answer_in_another_style_passes(exercise, style, parts):
    assert failing_tests(exercise, parts) == {}
