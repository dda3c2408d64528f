"""Small changes of the reference answers: every one is noticed by a test, or leaves the answer right."""

import ast
import json

import pytest

from autograder import mutation
from autograder.loader import find_exercise
from autograder.misconceptions import Equivalent, equivalents
from autograder.mutation import differs, is_recorded, mutants, try_all
from autograder.source import exercise_paths, read_exercise

EXERCISES = [read_exercise(path) for path in exercise_paths()]
SOURCE = '''\
# %% [markdown]
# # Title
#
# **You build** a thing · **Points** 1

# %% solution="shorten"
def shorten(values: "list[int]", n: int = 2) -> "list[int]":
    """All but the last n."""
    ### BEGIN SOLUTION
    if n < 0:
        raise ValueError(f"n = {n + 1}")
    return sorted(values)[: len(values) - n]
    ### END SOLUTION

# %% test="shortens" points=1
assert shorten([1, 2, 3]) == [1]
'''


@pytest.fixture
def exercise(tmp_path):
    path = tmp_path / "solutions" / "era" / "shortening.py"
    path.parent.mkdir(parents=True)
    path.write_text(SOURCE)
    return read_exercise(path)


def named(exercise):
    return f"{exercise.era}/{exercise.name}"


@pytest.mark.parametrize(
    "after",
    [
        "if n <= 0:",
        "if n > 0:",
        "if n < 1:",
        "if n < -1:",
        "if True:",
        "pass",
        "return sorted(values)[:len(values) + n]",
        "return sorted(values)[:n - len(values)]",
        "return sorted(values)[:len(values) - n + 1]",
        "return sorted(values)[:len(values) - n - 1]",
        "return sorted(values)[:]",
        "return values[:len(values) - n]",
        "return",
    ],
)
def test_an_answer_is_changed_in_every_small_way(exercise, after):
    assert after in {mutant.after for mutant in mutants(exercise)}


def test_every_change_is_a_program_and_no_two_are_the_same(exercise):
    sources = [mutant.source for mutant in mutants(exercise)]
    assert len(sources) == len(set(sources)) > 13
    for source in sources:
        ast.parse(source)


@pytest.mark.parametrize("spared", ["list[int]", "All but the last n.", "f'n = {n + 1}'"])
def test_types_documentation_and_messages_are_left_alone(exercise, spared):
    for mutant in mutants(exercise):
        assert spared in mutant.source or "pass" in mutant.after


def test_what_no_test_notices_and_nobody_lists_is_found(monkeypatch):
    monkeypatch.setattr(mutation, "equivalents", lambda era, name: [])
    found = try_all(find_exercise("transformer", "attention"))
    listed = {(e.part, e.after) for e in equivalents("transformer", "attention")}
    assert {(m.part, m.after) for m in found.unnoticed} == listed
    assert not found.clean


def test_what_is_listed_without_being_equivalent_is_found(monkeypatch):
    exercise = find_exercise("transformer", "attention")
    wrong = Equivalent(
        part="masks",
        before="return torch.ones(length, length, dtype=torch.bool, device=device).tril()",
        after="return torch.ones(length, length, dtype=torch.bool, device=device)",
        because="It is not.",
    )
    [mutant] = [m for m in mutants(exercise) if (m.part, m.after) == (wrong.part, wrong.after)]
    assert differs(exercise, mutant) is not None
    monkeypatch.setattr(mutation, "equivalents", lambda era, name: [wrong])
    found = try_all(exercise)
    assert found.noticed_after_all == [wrong]
    assert [listed for listed, _ in found.different] == [wrong]


@pytest.mark.slow
@pytest.mark.parametrize("exercise", EXERCISES, ids=named)
def test_every_small_change_of_every_answer_is_noticed_or_leaves_it_right(exercise):
    if is_recorded(exercise):  # by `autograder mutate`, of the exercise as it is
        return
    found = try_all(exercise)
    assert found.clean, f"run: .venv/bin/autograder mutate {named(exercise)}\n{found}"


@pytest.mark.parametrize("exercise", EXERCISES, ids=named)
def test_at_most_one_change_in_twenty_is_equivalent(exercise):
    if is_recorded(exercise):
        tried = json.loads(mutation._record_of(exercise).read_text())["mutants"]
    else:
        tried = len(mutants(exercise))
    assert len(equivalents(exercise.era, exercise.name)) <= tried / 20
