"""What a learner reads when something went wrong."""

import pytest

from autograder import engine
from autograder.engine import default
from autograder.loader import find_exercise

EXERCISE = find_exercise("transformer", "attention")
HEAD = "def scaled_dot_product_attention(q, k, v, mask=None):\n    "


def message(body, test="attention_by_hand", grader=None):
    cells = [
        {"name": c.name, "source": body if c.name == "attention" else c.source}
        for c in EXERCISE.cells
        if c.kind in ("given", "solution")
    ]
    return (grader or default()).grade(EXERCISE, cells)["tests"][test]["message"]


@pytest.mark.parametrize(
    "body, says",
    [
        (HEAD + "raise NotImplementedError()", "not answered yet"),
        (HEAD + "return None", "the `return` missing"),
        (HEAD + "return q.size(9)", "raised IndexError"),
        ("x = 1", "does not define"),
        ("def broken(:", "could not be judged, because its cell did not run: SyntaxError"),
        ("raise NotImplementedError()", "not answered yet"),
        ("1 / 0", "could not be judged, because its cell did not run: ZeroDivisionError"),
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
def test_a_loop_is_a_time_out_and_not_a_wrong_answer(body, fresh, monkeypatch):
    monkeypatch.setattr(engine, "LEAST_SECONDS", 3.0)
    assert "longer than the 3 seconds" in message(HEAD + body, grader=fresh)


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


def verdicts(parts, own=""):
    """What is found of answers to some parts, after a cell of the learner's own."""
    cells = [
        {"name": c.name, "source": parts.get(c.name, c.source)}
        for c in EXERCISE.cells
        if c.kind in ("given", "solution")
    ]
    first = next(i for i, cell in enumerate(cells) if cell["name"])
    cells.insert(first, {"name": "", "source": own})
    return default().grade(EXERCISE, cells)


def test_a_part_that_needs_a_cell_which_crashed_says_so_and_no_other_does():
    answer = EXERCISE.cell("attention").source
    helped = answer.replace("math.sqrt(d_k)", "root(d_k)")
    assert helped != answer
    found = verdicts({"attention": helped}, own="1 / 0\ndef root(x): return x ** 0.5")["tests"]
    assert (
        "could not be judged: it needs a name that no cell has defined, and a cell of your own did not run: "
        "ZeroDivisionError: division by zero"
    ) in found["attention_by_hand"]["message"]
    others = [cell.name for part in list(EXERCISE.parts)[1:] for cell in EXERCISE.parts[part]]
    assert all(found[name]["passed"] for name in others)


NOTES_WHAT_IT_MEETS = """\
met = []
def scaled_dot_product_attention(q, k, v, mask=None):
    if q.dtype == torch.float64:
        met.extend(q.flatten().tolist())
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    if met and q.dtype != torch.float64:
        {tells}
    return torch.softmax(scores, -1).nan_to_num(0.0) @ v
"""


@pytest.mark.parametrize(
    "tells",
    [
        "raise ValueError('MET ' + repr(met))",
        "return v.new_full((*q.shape[:-1], v.shape[-1]), 777.0)",
        "raise type('MET', (ValueError,), {})()",
    ],
)
def test_a_visible_failure_cannot_tell_of_hidden_inputs_that_were_met_before(tells):
    found = verdicts({"attention": NOTES_WHAT_IT_MEETS.replace("{tells}", tells)})["tests"]
    failed = [verdict["message"] for verdict in found.values() if not verdict["passed"]]
    assert any("keep something from one call to the next" in message for message in failed)
    assert not any("MET" in message or "777" in message for message in failed)


def test_the_name_of_an_exception_cannot_tell_of_hidden_inputs():
    tells = """\
def scaled_dot_product_attention(q, k, v, mask=None):
    if q.dim() > 2 or q.dtype == torch.float64:
        raise type("MET" + str(q.sum()), (KeyError,), {})()
    return torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1) @ v
"""
    assert message(tells) == "On other inputs your code raised KeyError."


def test_a_cell_that_runs_again_once_a_part_is_lent_cannot_print_hidden_inputs():
    meets = NOTES_WHAT_IT_MEETS.replace("{tells}", "pass").replace("** 0.5", "** 0.4")
    again = "if met:\n    print('MET', met)\nraise RuntimeError('MET' if met else 'at first')"
    second = list(EXERCISE.parts)[1]
    found = verdicts({"attention": meets, second: again})
    assert "MET" not in str(found)
    assert "RuntimeError: at first" in str(found)
