"""Exercises that break a rule are refused, with file and line."""

import pytest

from autograder.source import SourceError, read_exercise

GOOD = '''\
# %% [markdown]
# # Title
#
# **You build** a thing · **Points** 5

# %%
import math

# %% solution="double"
def double(x):
    """Twice x."""
    ### BEGIN SOLUTION
    return 2 * x
    ### END SOLUTION

# %% test="double_small" points=3
assert double(1) == 2
### BEGIN HIDDEN TESTS
assert double(7) == 14
### END HIDDEN TESTS

# %% [markdown] written="why" points=2
# Why?

# %% experiment=true
print(double(3))
'''


@pytest.fixture
def exercise_file(tmp_path):
    path = tmp_path / "solutions" / "era" / "doubling.py"
    path.parent.mkdir(parents=True)

    def write(text):
        path.write_text(text)
        return path

    return write


def test_a_good_file_gives_its_cells_parts_and_points(exercise_file):
    exercise = read_exercise(exercise_file(GOOD))
    assert [cell.kind for cell in exercise.cells] == [
        "text", "given", "solution", "test", "written", "experiment",
    ]  # fmt: skip
    assert {part: [t.name for t in tests] for part, tests in exercise.parts.items()} == {
        "double": ["double_small"]
    }
    assert exercise.points == 5
    assert exercise.cell("double_small").visible == "assert double(1) == 2\n"


@pytest.mark.parametrize(
    "right, wrong, line, says",
    [
        ('test="double_small" points=3', 'test="double_small"', 16, "without points"),
        ('test="double_small" points=3', 'test="double_small" point=3', 16, "without points"),
        ('test="double_small" points=3', 'test="double_small", points=3', 16, "unknown marker"),
        ('test="double_small" points=3', "test=double_small points=3", 16, "unknown marker"),
        ('test="double_small" points=3', 'test="double_small" points="3"', 16, "unknown marker"),
        ("# %% experiment=true", "# %% experiment=True", 25, "unknown marker"),
        ("# %% experiment=true", "# %% experiement=true", 25, "unknown marker"),
        ("    ### BEGIN SOLUTION\n", "", 13, "without a"),
        ("    ### END SOLUTION\n", "", 12, "never closed"),
        ("### END HIDDEN TESTS\n", "", 18, "never closed"),
        (
            "    ### BEGIN SOLUTION\n    return 2 * x\n    ### END SOLUTION\n",
            "    return 2 * x\n",
            9,
            "has no",
        ),
        ('"double_small"', '"double"', 16, "is taken by line 9"),
        ("import math", "import math\nprint(double(2))", 8, "uses the answer 'double'"),
        ("import math", "%matplotlib inline", 7, "not plain Python"),
        ("**Points** 5", "**Points** 6", 1, "add up to 5"),
        ("# # Title", "# Title", 1, "begin with"),
        (
            "# %% [markdown]\n# # Title",
            "print(1)\n# %% [markdown]\n# # Title",
            1,
            "before the first cell",
        ),
        ("import math", "### BEGIN HIDDEN TESTS\n### END HIDDEN TESTS", 7, "does not belong"),
        (
            "assert double(1) == 2\n### BEGIN",
            "assert double(1) == 2\nif True:\n  ### BEGIN",
            19,
            "indented",
        ),
    ],
)
def test_a_broken_rule_is_named_with_its_line(exercise_file, right, wrong, line, says):
    assert GOOD.count(right) == 1
    with pytest.raises(SourceError, match=says) as error:
        read_exercise(exercise_file(GOOD.replace(right, wrong)))
    assert f"doubling.py:{line}:" in str(error.value)


def test_an_answer_at_class_level_is_refused_because_released_it_would_raise(exercise_file):
    source = GOOD.replace("def double(x):\n", "class double:\n", 1)
    with pytest.raises(SourceError, match="inside a function"):
        read_exercise(exercise_file(source))


def test_a_part_without_a_test_is_refused(exercise_file):
    extra = '# %% solution="triple"\ndef triple(x):\n    ### BEGIN SOLUTION\n    return 3 * x\n    ### END SOLUTION\n'
    with pytest.raises(SourceError, match="'triple' has no test"):
        read_exercise(exercise_file(GOOD + extra))


def test_a_test_before_any_solution_is_refused(exercise_file):
    test = '# %% test="early" points=1\nassert True\n\n'
    source = GOOD.replace("# %%\nimport", test + "# %%\nimport").replace(
        "**Points** 5", "**Points** 6"
    )
    with pytest.raises(SourceError, match="before any solution"):
        read_exercise(exercise_file(source))
