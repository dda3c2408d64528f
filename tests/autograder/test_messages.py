"""What a learner reads when something went wrong."""

import pytest

from autograder.engine import default
from autograder.loader import find_exercise

EXERCISE = find_exercise("transformer", "attention")
HEAD = "def scaled_dot_product_attention(q, k, v, mask=None):\n    "


def message(body, test="attention_by_hand"):
    cells = [
        {"name": c.name, "source": body if c.name == "attention" else c.source}
        for c in EXERCISE.cells
        if c.kind in ("given", "solution")
    ]
    return default().grade(EXERCISE, cells)["tests"][test]["message"]


@pytest.mark.parametrize(
    "body, says",
    [
        (HEAD + "raise NotImplementedError()", "not answered yet"),
        (HEAD + "return None", "the `return` missing"),
        (HEAD + "return q.size(9)", "raised IndexError"),
        ("x = 1", "does not define"),
        ("def broken(:", "does not define"),
        (HEAD + "import os; os._exit(3)", "ended the whole process"),
        (
            HEAD + "import ctypes; ctypes.string_at(0)",
            "ended the whole process",
        ),
        (HEAD + "return torch.zeros(1, 1)", "Expected shape (1, 3), got (1, 1)"),
        (HEAD + "return object()", "Expected a tensor"),
        (HEAD + "return [[float('nan')] * 3]", "NaN"),
    ],
)
def test_the_message_says_what_happened(body, says):
    assert says in message(body)


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [
        "while True: pass",
        "import time; time.sleep(1000)",
        "import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\n    while True: pass",
    ],
    ids=["computes", "sleeps", "ignores the signal"],
)
def test_a_loop_is_a_time_out_and_not_a_wrong_answer(body):
    assert "longer than the 10 seconds" in message(HEAD + body)


def test_a_visible_failure_shows_values_and_a_hidden_one_does_not():
    visible = message(HEAD + "return v.mean(-2, keepdim=True) + 1")
    assert "expected 3, got 4" in visible
    right_by_hand = """\
def scaled_dot_product_attention(q, k, v, mask=None):
    scores = q @ k.mT / q.shape[-1] ** 0.5
    return torch.softmax(scores, -1) @ v + (0.5 if q.dim() == 3 else 0)
"""
    hidden = message(right_by_hand)
    assert hidden.startswith("On other inputs:")
    assert "expected" not in hidden


def test_what_an_exception_says_of_a_hidden_input_is_not_passed_on():
    leaks = (
        HEAD + "raise ValueError(str(q.tolist())) if q.dim() > 2 else None\n    return v * 0 + 3"
    )
    assert "raised" not in message(leaks) or "[" not in message(leaks)
    tells = """\
def scaled_dot_product_attention(q, k, v, mask=None):
    if q.dim() > 2 or q.dtype == torch.float64:
        raise ValueError("SECRET" + str(q.tolist()))
    return torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v
"""
    assert message(tells) == "On other inputs your code raised ValueError."
