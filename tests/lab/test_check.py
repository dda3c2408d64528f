"""Checks pass what is right, fail what is wrong, and say what a learner needs."""

import math

import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from lab import check
from lab.check import CheckFailed


def message(function, *args, **kwargs):
    with pytest.raises(CheckFailed) as error:
        function(*args, **kwargs)
    return str(error.value)


@pytest.mark.parametrize(
    "got",
    [torch.tensor([1.0, 2.0]), np.array([1.0, 2.0]), [1, 2], (1.0, 2.0), torch.tensor([1, 2])],
)
def test_close_takes_any_kind_of_numbers(got):
    check.close(got, [1.0, 2.0])


def test_close_says_where_and_how_much_they_differ_and_why():
    said = message(check.close, torch.tensor([[1.0, 2.0]]), [[1.0, 2.5]], because="The mistake.")
    assert "1 of 2 values differ" in said
    assert "index (0, 1): expected 2.5, got 2" in said
    assert said.endswith("The mistake.")


def test_close_names_a_wrong_shape_a_nan_and_a_missing_return():
    assert "Expected shape (2,), got (3,)" in message(check.close, torch.zeros(3), torch.zeros(2))
    assert "1 of 2 values are NaN" in message(
        check.close, torch.tensor([math.nan, 0]), torch.zeros(2)
    )
    assert "`return` missing" in message(check.close, None, torch.zeros(2))
    assert "got a str" in message(check.close, "text", torch.zeros(2))


def test_close_takes_nan_for_nan_and_an_infinity_for_itself():
    check.close(torch.tensor([math.nan, math.inf]), [math.nan, math.inf])
    message(check.close, torch.tensor([math.inf]), [-math.inf])


def test_the_tolerance_is_that_of_the_coarser_dtype():
    check.close(torch.tensor([1.0]) + 5e-5, torch.ones(1, dtype=torch.float64))
    message(
        check.close, torch.ones(1, dtype=torch.float64) + 5e-5, torch.ones(1, dtype=torch.float64)
    )
    message(check.close, torch.tensor([1.0]) + 5e-3, torch.ones(1))
    check.close(torch.tensor([3]), torch.tensor([3]))
    message(check.close, torch.tensor([3]), torch.tensor([4]))


def test_a_lower_precision_of_the_same_answer_does_not_have_the_shape_of_another():
    check.close(torch.tensor(0.5, dtype=torch.bfloat16), 0.501)


@pytest.mark.parametrize(
    "got, expected",
    [
        ([1, "a"], [1, "a"]),
        ({"a": [1]}, {"a": [1]}),
        (torch.tensor([True]), [True]),
        (math.nan, math.nan),
        (b"x", b"x"),
    ],
)
def test_equal_passes_what_is_equal(got, expected):
    check.equal(got, expected)


@pytest.mark.parametrize(
    "got, expected, says",
    [
        ([1, 2], [1, 3], "[1]"),
        ([1], [1, 2], "length 1 instead of 2"),
        ((1,), [1], "expected [1]"),
        ({"a": 1}, {"b": 1}, "'b'] is missing"),
        ({"a": 1, "b": 2}, {"a": 1}, "'b'] should not be there"),
        (1, True, "expected True"),
        ("a", b"a", "expected b'a'"),
    ],
)
def test_equal_says_what_differs(got, expected, says):
    assert says in message(check.equal, got, expected)


def test_that_takes_nothing_for_true_but_true():
    check.that(True, "")
    check.that(np.bool_(True), "")
    check.that(torch.tensor(True), "")
    for almost in (1, "yes", object(), [1], None):
        assert message(check.that, almost, "It is not.") == "It is not."


def raising(error):
    def function(*args):
        raise error

    return function


def test_raises_wants_the_kind_and_the_word():
    check.raises(ValueError, raising(ValueError("bad d_model")), mentions="d_model")
    assert "nothing was raised" in message(check.raises, ValueError, lambda: None)
    assert "a TypeError came" in message(check.raises, ValueError, raising(TypeError("x")))
    assert "does not say it" in message(
        check.raises, ValueError, raising(ValueError("x")), mentions="d_model"
    )


def test_raises_does_not_take_an_answer_not_yet_written_for_a_wrong_one():
    with pytest.raises(NotImplementedError):
        check.raises(ValueError, raising(NotImplementedError()))


def test_what_a_hidden_test_may_show_holds_no_value():
    with pytest.raises(CheckFailed) as error:
        check.close(torch.tensor([1.2345]), [5.4321], because="Why.")
    shown = error.value.summary + error.value.because
    assert "1.23" not in shown
    assert "5.43" not in shown


def test_surveying_goes_on_after_a_failure_and_ends_with_its_block():
    with check.surveying() as failures:
        check.equal(1, 2)
        check.that(False, "second")
    assert len(failures) == 2
    message(check.equal, 1, 2)


def test_a_notebook_shows_the_check_and_not_the_way_to_it():
    shell = InteractiveShell()
    shell.run_cell("from lab import check")
    with capture_output() as shown:
        shell.run_cell(
            "def answer():\n    return 2\n\ncheck.equal(\n    answer(),\n    1,\n    because='One is wanted.',\n)"
        )
    assert "line 4" in shown.stdout
    assert "because='One is wanted.'," in shown.stdout
    assert "expected 1" in shown.stdout
    assert "check.py" not in shown.stdout
