"""Two warm processes, learner and examiner, and the grading of one notebook after the other with them."""

import base64
import contextlib
import json
import select
import socket
import subprocess
import time
from types import TracebackType

from autograder.sandbox import Isolation, command, environment

__all__ = ["GradingFailed", "Session"]

CHUNK = 1 << 16
WARM_UP_SECONDS = 180


class GradingFailed(Exception):
    """The grader itself failed on a notebook; nothing is said about the answers."""


class Session:
    """Grades notebooks one at a time. Use it as a context manager.

    Args:
        isolation: ``"sandbox"``, or ``"process"`` where the instructor has chosen to do without.

    Raises:
        SandboxMissing: a sandbox is asked for and cannot be made.
    """

    def __init__(self, isolation: Isolation = "sandbox") -> None:
        self.isolation = isolation
        self._number = 0
        self._examiner, self._examiner_control = self._start("examiner", "autograder.examiner")
        self._learner, self._learner_control = self._start(
            "learner", "autograder.split.zygote", "--isolated", str(int(isolation == "sandbox"))
        )
        for process, control in (
            (self._examiner, self._examiner_control),
            (self._learner, self._learner_control),
        ):
            self._await_ready(process, control)

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends both warm processes and everything they started."""
        for control in (self._examiner_control, self._learner_control):
            control.close()
        for process in (self._examiner, self._learner):
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def prepare(self, exercise: str) -> tuple[dict[str, float], bytes]:
        """Seconds each test of ``<era>/<exercise>`` takes on the reference, and what :meth:`keep` wants."""
        found = self._run({"do": "prepare", "exercise": exercise}, seconds=900)
        return found["seconds"], base64.b64decode(found["prepared"])

    def keep(self, exercise: str, prepared: bytes) -> None:
        """Hands what an exercise was prepared with to the examiners to come; once for each exercise."""
        self._order(self._examiner_control, {"keep": exercise, "size": len(prepared)})
        for start in range(0, len(prepared), CHUNK):
            self._examiner_control.send(prepared[start : start + CHUNK])

    def grade(
        self,
        exercise: str,
        cells: list[dict],
        limits: dict[str, float],
        passed: dict[str, bool] | None = None,
    ) -> dict:
        """What the examiner finds out of the cells of one notebook (:func:`autograder.examiner.examine`).

        Raises:
            GradingFailed: the grader itself failed.
        """
        # Every test may use its limit, and start over, and be compared with the bank.
        seconds = 120 + 10 * sum(limits.values()) + 20 * len(cells)
        job = {"do": "examine", "exercise": exercise, "cells": cells, "limits": limits}
        job["passed"] = passed or {}
        return self._run(job, seconds)

    def notice(self, exercise: str, changes: list[dict], limits: dict[str, float]) -> list[str]:
        """The first test that fails for each changed answer (:func:`autograder.examiner.notice`).

        Raises:
            GradingFailed: the grader itself failed.
        """
        job = {"do": "notice", "exercise": exercise, "changes": changes, "limits": limits}
        return self._run(job, 120 + 10 * sum(limits.values()) * len(changes))["noticed"]

    def _run(self, job: dict, seconds: float) -> dict:
        raw = json.dumps(job).encode()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        number = self._next_number()
        learners: list[int] = []
        deadline = time.monotonic() + seconds
        try:
            self._order(self._examiner_control, {"spawn": number, "size": len(raw)}, theirs)
            for start in range(0, len(raw), CHUNK):
                ours.send(raw[start : start + CHUNK])
            while True:
                wish = json.loads(self._receive(ours, deadline))
                if wish["want"] == "learner":
                    learners.append(self._next_number())
                    self._give_learner(ours, learners[-1], wish["processor"])
                elif wish["want"] == "kill":
                    self._order(self._learner_control, {"kill": wish["number"]})
                    ours.send(b"{}")
                else:
                    return self._result(ours, wish["size"], deadline)
        finally:
            ours.close()
            for learner in learners:
                self._order(self._learner_control, {"kill": learner})
            self._order(self._examiner_control, {"kill": number})

    def _result(self, channel: socket.socket, size: int, deadline: float) -> dict:
        channel.send(b"{}")
        raw = b""
        while len(raw) < size:
            raw += self._receive(channel, deadline)
        result = json.loads(raw)
        if "crashed" in result:
            raise GradingFailed(result["crashed"])
        return result

    def _receive(self, channel: socket.socket, deadline: float) -> bytes:
        ready, _, _ = select.select([channel], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise GradingFailed("the examiner did not finish in time")
        data = channel.recv(CHUNK * 2)
        if not data:
            raise GradingFailed("the examiner ended without a result")
        return data

    def _give_learner(self, channel: socket.socket, number: int, processor: int | None) -> None:
        examiners, learners = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with examiners:
            order = {"spawn": number, "processor": processor}
            self._order(self._learner_control, order, learners)
            socket.send_fds(
                channel, [json.dumps({"number": number}).encode()], [examiners.fileno()]
            )

    def _order(
        self, control: socket.socket, order: dict, descriptor: socket.socket | None = None
    ) -> None:
        raw = json.dumps(order).encode()
        try:
            if descriptor is None:
                control.send(raw)
            else:
                socket.send_fds(control, [raw], [descriptor.fileno()])
        except OSError as error:
            raise GradingFailed(f"a warm process has ended: {error}") from error
        finally:
            if descriptor is not None:
                descriptor.close()

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    def _start(
        self, role: str, module: str, *arguments: str
    ) -> tuple[subprocess.Popen, socket.socket]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [
                    *command(role, self.isolation, module),
                    "--control",
                    str(theirs.fileno()),
                    *arguments,
                ],
                pass_fds=[theirs.fileno()],
                env=environment(role),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        return process, ours

    def _await_ready(self, process: subprocess.Popen, control: socket.socket) -> None:
        ready, _, _ = select.select([control], [], [], WARM_UP_SECONDS)
        data = b""
        if ready:
            with contextlib.suppress(OSError):
                data = control.recv(1024)
        if not data:
            process.kill()
            said = process.stderr.read().decode(errors="replace")[-2000:]
            raise GradingFailed(f"a warm process did not start: {said or 'no reason given'}")
        # From here on nobody reads what it writes; a full pipe must not stop it.
        process.stderr.close()
