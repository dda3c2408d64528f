"""The examiner process: runs the tests of one notebook against answers that live in another process.

One examiner is forked for each notebook from a warm process. It asks the grader (the process that started
both sides) for learner processes, because only that one can start and kill them.
"""

import argparse
import base64
import dataclasses
import functools
import importlib
import json
import math
import pickle
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from autograder.loader import compiled, load, reference, run_cell
from autograder.misconceptions import Misconception, misconceptions, wrong_part
from autograder.source import (
    BEGIN_HIDDEN,
    END_HIDDEN,
    ROOT,
    Cell,
    Exercise,
    defined_names,
    read_exercise,
)
from autograder.split import zygote
from autograder.split.learner import given_classes, seed_torch
from autograder.split.peer import Peer, PeerGone, PeerTimeout, StandIn
from autograder.split.values import ProtocolError
from autograder.verdicts import cells_key, test_key
from lab import check
from lab.check import CheckFailed

__all__ = ["alike", "main"]

# A learner's functions are called; what the examiner hands out may be called and stepped, never looked into.
ALLOWED = frozenset({"backward", "call", "getitem", "iter", "len", "next"})
CELL_SECONDS = 10.0
# The learner process is ended after so many seconds of computing, and after so many times as long by the clock.
PATIENCE = 3.0
MAX_TEXT, MAX_SHOWN, MAX_LOG = 20_000, 20, 8_000
# What a test ends with when its learner process did.
ENDED = (PeerGone, PeerTimeout, ProtocolError)
NOT_ANSWERED = "NotImplementedError"
KEEPS_SOMETHING = (
    "This failed after other tests had run, and not by itself. "
    "Does your code keep something from one call to the next?"
)


class Learner:
    """A learner process in which the cells of a notebook have run.

    Attributes:
        outcomes: for each cell, by its place, what running it came to.
        seen_hidden: whether a hidden input may have reached the process.
    """

    def __init__(self, grader: "Grader", cells: list[dict], classes: dict[str, type]) -> None:
        self.grader = grader
        self.cells = cells
        self.classes = classes
        self.outcomes: dict[int, dict] = {}
        self.lent: list[Callable[[Learner], None]] = []
        self.seen_hidden = False
        self.peer: Peer | None = None
        self._start()

    def ask(self, service: str, *args: object, seconds: float) -> Any:
        """Asks the process for one of its services.

        Raises:
            ProtocolError: the service itself failed, which it does only where cells have tampered with it.
        """
        self.peer.deadline = time.monotonic() + PATIENCE * seconds
        try:
            return self.peer.ask("service", name=service, args=args, kwargs={})
        except Exception as error:
            raise ProtocolError("the notebook interferes with the process that runs it") from error

    def run(self, cell: dict) -> dict:
        """Runs a cell; what comes back is checked, for the process may say anything."""
        outcome = self.ask("run", CELL_SECONDS, cell["source"], seconds=CELL_SECONDS)
        # Only plain data is looked at: an object of theirs could answer with anything, and for any time.
        match outcome:
            case {
                "error": None | [str(), str()] as error,
                "stdout": str(stdout),
                "stderr": str(stderr),
                "shown": list(shown),
            } if all(
                type(bundle) is dict and {*map(type, bundle), *map(type, bundle.values())} <= {str}
                for bundle in shown
            ):
                return {
                    "error": error and [part[:2000] for part in error],
                    "stdout": stdout[:MAX_TEXT],
                    "stderr": stderr[:MAX_TEXT],
                    "shown": shown[:MAX_SHOWN],
                }
        raise ProtocolError("a cell's outcome is not one")

    def restart(self) -> None:
        """A fresh process in which the same cells have run and the same parts are lent."""
        self._start()
        try:
            for lend in self.lent:
                lend(self)
        except ENDED:
            return  # the next test will find the process gone, and say so

    def close(self) -> None:
        """Ends the process."""
        if self.peer is not None:
            self.peer.channel.close()
            self.grader.kill(self.number)
            self.peer = None

    def _start(self) -> None:
        """Runs the cells in order; one that never ends, or ends the process, is left out the next time."""
        while True:
            self.close()
            channel, self.number = self.grader.new_learner()
            self.seen_hidden = False
            self.peer = Peer(channel, allowed=ALLOWED, classes=self.classes)
            current = None
            try:
                # What fails here is ours, not the submission's.
                self.ask("begin", CELL_SECONDS, (), seconds=CELL_SECONDS)
                for current, cell in enumerate(self.cells):
                    if self.outcomes.get(current, {}).get("fatal"):
                        continue
                    start = time.monotonic()
                    self.outcomes[current] = self.run(cell)
                return
            except ENDED as error:
                if current is None:
                    raise
                why = _ended(error, time.monotonic() - start, CELL_SECONDS)
                self.outcomes[current] = {"error": ["Ended", why], "fatal": True}


class Grader:
    """The examiner's line to the process that can start and kill learner processes."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.processor = zygote.processor_here()
        zygote.stay_on(self.processor)

    def new_learner(self) -> tuple[socket.socket, int]:
        """A fresh learner process, on the processor of this one: its channel and its number."""
        wish = {"want": "learner", "processor": self.processor}
        self.channel.send(json.dumps(wish).encode())
        answer, descriptors, _, _ = socket.recv_fds(self.channel, 1024, 1)
        return socket.socket(fileno=descriptors[0]), json.loads(answer)["number"]

    def kill(self, number: int) -> None:
        """Ends a learner process and all it started."""
        self.channel.send(json.dumps({"want": "kill", "number": number}).encode())
        self.channel.recv(1024)

    def report(self, result: dict) -> None:
        """Hands the result over; it is the last thing an examiner does."""
        self.channel.send(
            json.dumps({"want": "result", "size": len(raw := json.dumps(result).encode())}).encode()
        )
        self.channel.recv(1024)
        for start in range(0, len(raw), 1 << 16):
            self.channel.send(raw[start : start + (1 << 16)])


def examine(
    exercise: Exercise,
    cells: list[dict],
    limits: dict[str, float],
    passed: dict[str, bool],
    grader: Grader,
) -> dict:
    """Grades the cells of one notebook.

    Args:
        exercise: the exercise as its author wrote it.
        cells: what the learner process runs, in order: ``{"name": part or "", "source": text}``.
        limits: seconds for each test.
        passed: whether a test passed, by key (:func:`autograder.verdicts.test_key`), where that is known: it is not
            run again.
        grader: starts and kills learner processes.

    Returns:
        What was found out, as a record of :mod:`autograder.verdicts`.
    """
    base = _given_namespace(exercise)
    theirs = reference(exercise.era, exercise.name)
    learner = Learner(grader, cells, given_classes(base))
    found: dict[str, dict] = {}
    failed: list[str] = []
    for part, test_cells in exercise.parts.items():
        _rerun_cell_that_failed(learner, part)
        keys = {test_key(exercise, cell, part, failed): cell for cell in test_cells}
        unknown = {key: cell for key, cell in keys.items() if key not in passed}
        before = cells_key(failed)
        for key, cell in unknown.items():
            found[key] = _run_test(exercise, cell, base, learner, limits[cell.name])
            if found[key].pop("missing", False):
                found[key]["message"] = _not_judged(learner, part) or found[key]["message"]
        for key, cell in unknown.items():
            if not (found[key]["passed"] or found[key]["ended"]):
                survey = _survey(exercise, cell, base, learner, limits[cell.name])
                found[key]["like"] = _explained_by(exercise, part, cell, survey)
        if not all(found[key]["passed"] if key in found else passed[key] for key in keys):
            failed.append(part)
            _lend(learner, exercise.cell(part), theirs)
    outcomes = [learner.outcomes[i] for i in range(len(cells))]
    learner.close()
    return {"tests": found, "cells": {before: outcomes}}


def prepare(exercise: Exercise, grader: Grader) -> dict:
    """What the same exercise is prepared with once, for any number of notebooks.

    Returns:
        ``{"seconds": {test: on the reference}, "bank": {mistake: {test: what its answers give}}}``.
    """
    seconds = _measure(exercise)
    base = _given_namespace(exercise)
    bank = {
        mistake.name: _surveys_of_mistake(exercise, mistake, base, grader)
        for mistake in misconceptions(exercise.era, exercise.name)
    }
    return {"seconds": seconds, "bank": bank}


def notice(
    exercise: Exercise, changes: list[dict], limits: dict[str, float], grader: Grader
) -> list[str]:
    """The first test that fails for each changed answer; ``""`` where none does.

    Args:
        exercise: the exercise.
        changes: ``{"part": solution cell, "source": its text}``, one answer changed in each.
        limits: seconds for each test.
        grader: starts and kills learner processes.
    """
    base = _given_namespace(exercise)
    noticed = []
    for change in changes:
        learner = Learner(
            grader, _cells_with(exercise, change["part"], change["source"]), given_classes(base)
        )
        failed = (
            cell.name
            for cell in exercise.parts[change["part"]]
            if not _run_test(exercise, cell, base, learner, limits[cell.name])["passed"]
        )
        noticed.append(next(failed, ""))
        learner.close()
    return noticed


def _cells_with(exercise: Exercise, part: str, source: str) -> list[dict]:
    """What a learner process runs of a notebook with the reference's answers, but for one part."""
    return [
        {"name": cell.name, "source": source if cell.name == part else cell.source}
        for cell in exercise.cells
        if cell.kind in ("given", "solution")
    ]


def _measure(exercise: Exercise) -> dict[str, float]:
    """Seconds each test takes on the reference, in this process."""
    answers = load(exercise)
    seconds = {}
    for cell in exercise.cells:
        if cell.kind == "test":
            start = time.monotonic()
            run_cell(cell.source, dict(vars(answers)), f"{exercise.name}:{cell.line}")
            seconds[cell.name] = time.monotonic() - start
    return seconds


def _label(exercise: Exercise, cell: Cell) -> str:
    return f"{exercise.name}:{cell.name or cell.line}"


def _given_namespace(exercise: Exercise) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": f"examiner_{exercise.era}_{exercise.name}"}
    for cell in exercise.cells:
        if cell.kind == "given":
            run_cell(cell.source, namespace, _label(exercise, cell))
    return namespace


def _run_test(exercise: Exercise, cell: Cell, base: dict, learner: Learner, seconds: float) -> dict:
    """One test in the learner's current process; a fresh process afterwards where it did not survive."""
    start = time.monotonic()
    try:
        verdict = _judge(exercise, cell, _namespace(exercise, base, learner, seconds))
        if verdict.pop("visible", False) and learner.seen_hidden:
            verdict["message"] = _said_afresh(exercise, cell, base, learner, seconds)
        # What comes back from now on may tell of hidden inputs.
        learner.seen_hidden = True
    except ENDED as error:
        why = _ended(error, time.monotonic() - start, seconds)
        verdict = _failed(why, log=repr(error)) | {"ended": True}
        learner.restart()
    return verdict | {"seconds": time.monotonic() - start}


def _said_afresh(
    exercise: Exercise, cell: Cell, base: dict, learner: Learner, seconds: float
) -> str:
    """What a visible failure says in a process that has met no hidden input and so can tell of none."""
    learner.restart()
    namespace = _namespace(exercise, base, learner, seconds)
    for segment, hidden in _segments(cell.source):
        if hidden:
            break
        try:
            run_cell(segment, namespace, _label(exercise, cell))
        except Exception as error:
            return _visible_message(error)
    return KEEPS_SOMETHING


def _survey(
    exercise: Exercise, cell: Cell, base: dict, learner: Learner, seconds: float
) -> list[tuple]:
    """Everything the answers gave in a test that goes on after its failed checks: how the answer behaves."""
    trace: list[tuple] = []
    try:
        namespace = _namespace(exercise, base, learner, seconds)
        learner.peer.trace = trace.append
        with check.surveying() as failures:
            verdict = _judge(exercise, cell, namespace)
    except ENDED:
        learner.restart()
        return []
    finally:
        learner.peer.trace = None
    # A wrong answer explains only the tests that it fails.
    return _plain_trace(trace) if failures or not verdict["passed"] else []


def _namespace(exercise: Exercise, base: dict, learner: Learner, seconds: float) -> dict[str, Any]:
    """What a test runs in: the given names, and stand-ins for those which the learner's cells define."""
    names = [
        name
        for cell in exercise.cells
        if cell.kind == "solution"
        for name in defined_names(cell.source)
    ]
    found = learner.ask("begin", seconds, tuple(names), seconds=seconds)
    if type(found) is not dict:
        raise ProtocolError("the notebook interferes with the process that runs it")
    # What a test draws from the global generators of this process is repeatable too.
    seed_torch()
    # A name that is missing is missed by the test, which says which.
    return dict(base) | {name: found[name] for name in names if name in found}


def _judge(exercise: Exercise, cell: Cell, namespace: dict) -> dict:
    for segment, hidden in _segments(cell.source):
        try:
            run_cell(segment, namespace, _label(exercise, cell))
        except Exception as error:
            message = _hidden_message(error) if hidden else _visible_message(error)
            log = "".join(traceback.format_exception(error))[-MAX_LOG:]
            telling = not hidden and getattr(error, "raised_there", None) != NOT_ANSWERED
            about = {"missing": isinstance(error, NameError), "visible": telling}
            return _failed(message, log) | about
    return {"passed": True, "message": "", "like": [], "log": "", "ended": False}


def _not_judged(learner: Learner, part: str) -> str:
    """Why a part that lacks a name says nothing of the answer: which cell did not run."""
    raised = {
        cell["name"]: learner.outcomes[i]["error"]
        for i, cell in reversed(list(enumerate(learner.cells)))
        if learner.outcomes[i]["error"]
    }
    if part in raised:
        name, text = raised[part]
        if name == NOT_ANSWERED:
            return "This part is not answered yet."
        return f"This part could not be judged, because its cell did not run: {name}: {text}"
    for before, (name, text) in raised.items():
        if name != NOT_ANSWERED:
            which = f"the cell of {before}" if before else "a cell of your own"
            return (
                f"This part could not be judged: it needs a name that no cell has defined, and {which} did not run: "
                f"{name}: {text}"
            )
    return ""


def _failed(message: str, log: str) -> dict:
    return {"passed": False, "message": message, "like": [], "log": log, "ended": False}


def _ended(error: BaseException, taken: float, seconds: float) -> str:
    # The kernel ends a process that has computed for too long without saying why.
    if isinstance(error, PeerTimeout) or (isinstance(error, PeerGone) and taken >= seconds):
        return f"This took longer than the {seconds:.0f} seconds it may take. Is there a loop that never ends?"
    if isinstance(error, ProtocolError):
        return f"What your code returned could not be read: {error}."
    return "Your code ended the whole process (out of memory, a crash, or an exit)."


def _visible_message(error: Exception) -> str:
    if isinstance(error, CheckFailed):
        return str(error)
    theirs = getattr(error, "raised_there", None)
    if theirs == NOT_ANSWERED:
        return "This part is not answered yet."
    if theirs:
        return f"Your code raised {theirs}: {error}"
    if isinstance(error, NameError):
        return f"Your notebook does not define what this test needs: {error}."
    return (
        f"{type(error).__name__}: {error}"
        if str(error)
        else f"A check of this test failed: {type(error).__name__}"
    )


def _hidden_message(error: Exception) -> str:
    """What a learner may know of a failure on a hidden input: no line of the test, and no value."""
    if isinstance(error, CheckFailed):
        return "\n".join(
            part for part in ("On other inputs: " + error.summary, error.because) if part
        )
    theirs = getattr(error, "raised_there", None)
    if theirs == NOT_ANSWERED:
        return "This part is not answered yet."
    if theirs:
        # The built-in type it derives from: a class's own name can say anything.
        return f"On other inputs your code raised {type(error).__name__}."
    if isinstance(error, NameError):
        return "Your notebook does not define all that this test needs."
    return "On other inputs what your code returned could not be used as the docstring says."


def _segments(source: str) -> list[tuple[str, bool]]:
    """The test's text cut where hidden blocks begin and end; line numbers stay those of the cell."""
    segments, lines, hidden = [], source.splitlines(keepends=True), False
    start = 0
    for number, line in enumerate(lines):
        if line.strip() in (BEGIN_HIDDEN, END_HIDDEN):
            segments.append((start, number, hidden))
            start, hidden = number + 1, line.strip() == BEGIN_HIDDEN
    segments.append((start, len(lines), hidden))
    return [
        ("\n" * first + "".join(lines[first:last]), hid)
        for first, last, hid in segments
        if first < last
    ]


# -- lending ----------------------------------------------------------------------------------------------


def _lend(learner: Learner, part: Cell, theirs: Any) -> None:
    """Puts the reference in the place of a failed part, as something to call: its code stays here."""
    for name in defined_names(part.source):
        answer = getattr(theirs, name)
        if isinstance(answer, type) and issubclass(answer, torch.nn.Module):
            arguments = ("lend_module", name, _constructor(answer), _module_forward)
        elif callable(answer):
            arguments = ("lend", name, _as_function(answer))
        else:
            arguments = ("lend", name, answer)

        def lend(to: Learner, arguments: tuple = arguments) -> None:
            to.ask(*arguments, seconds=CELL_SECONDS)

        learner.lent.append(lend)
        try:
            lend(learner)
        except ENDED:
            learner.restart()
            return


def _as_function(answer: Callable) -> Callable:
    def lent(*args: object, **kwargs: object) -> object:
        return answer(*args, **kwargs)

    return lent


def _constructor(kind: type[torch.nn.Module]) -> Callable:
    def construct(*args: object, **kwargs: object) -> tuple:
        module = kind(*args, **kwargs)
        return module, dict(module.named_parameters()), dict(module.named_buffers())

    return construct


def _module_forward(
    module: torch.nn.Module, state: dict, training: bool, args: tuple, kwargs: dict
) -> object:
    module.train(training)
    return torch.func.functional_call(module, state, args, kwargs)


def _rerun_cell_that_failed(learner: Learner, part: str) -> None:
    """A cell that needed an earlier part when it was defined gets its chance once that part is lent."""
    for i, cell in enumerate(learner.cells):
        outcome = learner.outcomes[i]
        if cell["name"] == part and learner.lent and outcome["error"] and not outcome.get("fatal"):
            try:
                # Whether it runs now is all that is taken: by now it could print hidden inputs.
                if learner.run(cell)["error"] is None:
                    learner.outcomes[i] = outcome | {"error": None}
            except ENDED:
                learner.restart()


# -- misconceptions ---------------------------------------------------------------------------------------


def _surveys_of_mistake(
    exercise: Exercise, mistake: Misconception, base: dict, grader: Grader
) -> dict[str, list[tuple]]:
    """What a wrong answer of the bank gives in each test of its part."""
    cells = _cells_with(exercise, mistake.part, wrong_part(exercise, mistake))
    wrong = Learner(grader, cells, given_classes(base))
    try:
        tests = exercise.parts[mistake.part]
        return {cell.name: _survey(exercise, cell, base, wrong, CELL_SECONDS) for cell in tests}
    finally:
        wrong.close()


def _explained_by(exercise: Exercise, part: str, cell: Cell, survey: list[tuple]) -> list[str]:
    """The wrong answers of the bank which give in a test, call by call, what the learner's gave."""
    bank = _prepared[f"{exercise.era}/{exercise.name}"]["bank"]
    return [
        mistake.name
        for mistake in misconceptions(exercise.era, exercise.name)
        if mistake.part == part and survey and alike(survey, bank[mistake.name][cell.name])
    ]


def _plain_trace(value: Any) -> Any:
    """A trace that can be kept: stand-ins become a word, tensors leave their graphs, records become tuples."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if type(value) is StandIn:
        return "<an object of the answer>"
    if type(value) in (list, tuple):
        return type(value)(_plain_trace(item) for item in value)
    if type(value) is dict:
        return {key: _plain_trace(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value):
        fields = [getattr(value, field.name) for field in dataclasses.fields(value)]
        return (type(value).__name__, *map(_plain_trace, fields))
    if isinstance(value, tuple):  # a named one
        return (type(value).__name__, *map(_plain_trace, value))
    return value


def alike(one: Any, other: Any) -> bool:
    """Whether what two answers gave is the same up to rounding."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        one, other = (tensor.detach().to("cpu", torch.float64) for tensor in (one, other))
        return torch.allclose(one, other, rtol=1e-4, atol=1e-5, equal_nan=True)
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return (
            one == other
            or math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-5)
            or (one != one and other != other)
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(alike(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, np.ndarray):
        return one.shape == other.shape and np.allclose(
            one, other, rtol=1e-4, atol=1e-5, equal_nan=True
        )
    if isinstance(one, torch.Generator):
        return torch.equal(one.get_state(), other.get_state())
    return bool(one == other)


# -- the process ------------------------------------------------------------------------------------------


# What main processes have handed over, by exercise: every forked examiner finds it in its memory.
_prepared: dict[str, dict] = {}


def keep(name: str, raw: bytes) -> None:
    """Keeps what :func:`prepare` found for an exercise. It comes from an examiner, never from a submission."""
    _prepared[name] = pickle.loads(raw)
    exercise = _exercise(name)
    reference(*name.split("/"))
    for part, tests in exercise.parts.items():
        for cell in tests:
            test_key(exercise, cell, part, [])  # reads the bank
    for cell in exercise.cells:
        if cell.kind == "given":
            compiled(cell.source, f"<{_label(exercise, cell)}>")
        for segment, _ in _segments(cell.source) if cell.kind == "test" else ():
            compiled(segment, f"<{_label(exercise, cell)}>")


@functools.cache
def _exercise(name: str) -> Exercise:
    return read_exercise(ROOT / "solutions" / f"{name}.py")


def start(channel: socket.socket, order: dict) -> None:
    """Becomes the examiner of one notebook."""
    grader = Grader(channel)
    job = json.loads(_receive_all(channel, order["size"]))
    exercise = _exercise(job["exercise"])
    try:
        if job["do"] == "prepare":
            prepared = prepare(exercise, grader)
            raw = base64.b64encode(pickle.dumps(prepared)).decode()
            grader.report({"seconds": prepared["seconds"], "prepared": raw})
        elif job["do"] == "notice":
            grader.report({"noticed": notice(exercise, job["changes"], job["limits"], grader)})
        else:
            about = job["cells"], job["limits"], job["passed"]
            grader.report(examine(exercise, *about, grader))
    except Exception:
        grader.report({"crashed": traceback.format_exc()})


def _receive_all(channel: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += channel.recv(1 << 17)
    return data


def main() -> None:
    """Entry of the warm examiner process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--control", type=int, required=True)
    control = socket.socket(fileno=parser.parse_args().control)
    torch.set_num_threads(1)
    # What the first backward pass and the tests would import.
    importlib.import_module("torch.fx.experimental.symbolic_shapes")
    importlib.import_module("autograder.hidden")
    zygote.run(control, start, keep)


if __name__ == "__main__":
    main()
