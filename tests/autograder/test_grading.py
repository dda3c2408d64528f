"""The split grader on right and wrong answers: full marks for every right one, a name for every wrong one."""

import pytest

from autograder.engine import default
from autograder.misconceptions import misconceptions, wrong_part
from autograder.sample_class.styles import styles
from autograder.source import BEGIN_HIDDEN, exercise_paths, read_exercise
from tests.unchanged import named

EXERCISES = [read_exercise(path) for path in exercise_paths()]


def graded(exercise, replaced):
    cells = [
        {"name": cell.name, "source": replaced.get(cell.name, cell.source)}
        for cell in exercise.cells
        if cell.kind in ("given", "solution")
    ]
    return default().grade(exercise, cells)


def failed(result):
    return {name: verdict for name, verdict in result["tests"].items() if not verdict["passed"]}


@pytest.mark.parametrize("exercise", EXERCISES, ids=named)
def test_the_reference_gets_full_marks(exercise):
    assert failed(graded(exercise, {})) == {}


STYLES = [(e, s, parts) for e in EXERCISES for s, parts in styles(e).items()]


@pytest.mark.of_exercise
@pytest.mark.slow
@pytest.mark.parametrize(
    "exercise, style, parts", STYLES, ids=[f"{named(e)}-{s}" for e, s, _ in STYLES]
)
def test_a_right_answer_in_another_style_gets_full_marks(exercise, style, parts):
    assert failed(graded(exercise, parts)) == {}


MISTAKES = [(e, m) for e in EXERCISES for m in misconceptions(e.era, e.name)]


@pytest.mark.of_exercise
@pytest.mark.slow
@pytest.mark.parametrize(
    "exercise, mistake", MISTAKES, ids=[f"{named(e)}-{m.name}" for e, m in MISTAKES]
)
def test_a_misconception_loses_points_in_its_part_alone_and_is_named(exercise, mistake):
    wrong = failed(graded(exercise, {mistake.part: wrong_part(exercise, mistake)}))
    own = {cell.name for cell in exercise.parts[mistake.part]}
    assert wrong
    assert set(wrong) <= own, "a part that builds on this one must be judged on its own"
    assert {verdict["misconception"] for verdict in wrong.values()} == {mistake.name}
    for verdict in wrong.values():
        assert verdict["message"].startswith(mistake.says)


@pytest.mark.parametrize("exercise", EXERCISES, ids=named)
def test_a_blank_notebook_gets_nothing_and_is_told_so(exercise):
    blank = {part: _stubbed(exercise.cell(part).source) for part in exercise.parts}
    result = graded(exercise, blank)
    assert len(failed(result)) == len(result["tests"])
    assert {verdict["message"] for verdict in result["tests"].values()} == {
        "This part is not answered yet."
    }


@pytest.mark.of_exercise
@pytest.mark.parametrize("exercise", EXERCISES, ids=named)
def test_no_message_holds_a_line_of_a_hidden_test(exercise):
    hidden = {
        line.strip()
        for cell in exercise.cells
        if cell.kind == "test"
        for line in cell.source.partition(BEGIN_HIDDEN)[2].splitlines()
        if len(line.strip()) > 20
        and "because=" not in line
        and not line.strip().startswith(('"', 'f"'))
    }
    for mistake in misconceptions(exercise.era, exercise.name)[:10]:
        result = graded(exercise, {mistake.part: wrong_part(exercise, mistake)})
        for verdict in result["tests"].values():
            assert not [line for line in hidden if line in verdict["message"]]


def _stubbed(source):
    lines, hidden = [], False
    for line in source.splitlines():
        if line.strip() == "### BEGIN SOLUTION":
            hidden = True
            lines.append(line.replace("### BEGIN SOLUTION", "raise NotImplementedError()"))
        if not hidden:
            lines.append(line)
        if line.strip() == "### END SOLUTION":
            hidden = False
    return "\n".join(lines)
