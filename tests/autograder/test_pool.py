"""Many notebooks at once: what dies costs nothing but time."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time

import pytest

from autograder import engine, pool
from autograder.engine import Engine
from autograder.loader import find_exercise
from autograder.pool import ClusterMissing, Job, grade_all

ATTENTION = find_exercise("transformer", "attention")


class Grades:
    """Stands in for an engine: an answer says what happens to the process that grades it."""

    def __init__(self, folder):
        self.folder = folder

    def key(self, exercise, cells):
        return cells[0]

    def prepare(self, exercise):
        pass

    def find_out(self, exercise, cells):
        answer = cells[0]
        once = self.folder / f"{answer}.tried"
        if answer == "kills" or (answer.startswith("kills once") and not once.exists()):
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def record(self, exercise, cells):
        return {"graded": cells[0]}

    def keep(self, exercise, cells, record):
        if record:
            (self.folder / f"{cells[0]}.result").write_text(record["graded"])

    def kept(self):
        return {path.stem for path in self.folder.glob("*.result")}


@pytest.fixture
def grades(tmp_path, monkeypatch):
    stand_in = Grades(tmp_path)
    monkeypatch.setattr(engine, "default", lambda isolation: stand_in)
    return stand_in


def jobs(answers):
    return [Job("transformer", "attention", [answer], answer, {}) for answer in answers]


def test_a_worker_that_dies_costs_its_notebook_another_try_and_nothing_else(grades):
    answers = [*(f"fine {n}" for n in range(20)), "kills once", "kills once more"]
    found = list(grade_all(jobs(answers), "process"))
    assert sorted(found) == [(number, "") for number in range(len(answers))]
    assert grades.kept() == set(answers)


def test_a_notebook_that_kills_every_worker_is_given_up_and_the_others_are_graded(grades):
    answers = [*(f"fine {n}" for n in range(5)), "kills"]
    found = dict(grade_all(jobs(answers), "process"))
    assert "killed 3 times" in found.pop(5)
    assert found == {number: "" for number in range(5)}
    assert grades.kept() == set(answers) - {"kills"}


def test_a_worker_with_another_version_of_the_course_grades_nothing(grades):
    [(_, trouble)] = grade_all(
        [Job("transformer", "attention", ["fine"], "another key", {})], "process"
    )
    assert "another version of the course" in trouble
    assert not grades.kept()


def test_nothing_to_grade_starts_nothing():
    assert list(grade_all([], "sandbox", "tcp://127.0.0.1:1")) == []


def test_a_scheduler_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(pool, "CONNECT_SECONDS", 1)
    with pytest.raises(ClusterMissing, match=r"tcp://127\.0\.0\.1:1 .*dask scheduler"):
        list(grade_all(jobs(["fine"]), "process", "tcp://127.0.0.1:1"))


# -- a cluster of real processes --------------------------------------------------------------------------


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    """A scheduler and two workers, with a course secret of their own, so that nothing is known before."""
    monkeypatch.setenv("COURSE_SECRET", secrets.token_hex(8))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    dask = [sys.executable, "-m", "dask"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    here = ["--host", "127.0.0.1", "--no-dashboard"]
    processes = [subprocess.Popen([*dask, "scheduler", *here, "--port", str(port)], **quiet)]
    worker = [*dask, "worker", address, *here, "--nthreads", "1"]
    processes += [subprocess.Popen(worker, **quiet) for _ in range(2)]
    yield address, processes
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()


def some_jobs(here):
    """An empty notebook and answers to the first part, right and wrong."""
    for source in ("pass", *(cell.source for cell in ATTENTION.cells if cell.kind == "solution")):
        cells = [
            {"id": cell.name, "name": cell.name, "source": source if cell.name else cell.source}
            for cell in ATTENTION.cells
            if cell.kind in ("given", "solution")
        ]
        key = here.key(ATTENTION, cells)
        yield Job("transformer", "attention", cells, key, here.record(ATTENTION, cells))


@pytest.mark.slow
def test_a_cluster_finds_what_one_machine_finds_even_when_a_worker_is_killed(
    cluster, tmp_path, monkeypatch
):
    from distributed import Client

    address, _ = cluster
    here = Engine("process", cache=tmp_path / "here")
    monkeypatch.setattr(engine, "default", lambda isolation: here)
    waiting = list(some_jobs(here))
    with Client(address) as client:
        client.wait_for_workers(2, timeout=60)
        victims = list(client.run(os.getpid).values())
        found = []
        for number, trouble in grade_all(waiting, "process", address):
            found.append((number, trouble))
            if len(found) == 1:
                os.kill(victims[0], signal.SIGKILL)
    assert sorted(found) == [(number, "") for number in range(len(waiting))]
    alone = Engine("process", cache=tmp_path / "alone")
    for job in waiting:
        assert here.known(ATTENTION, job.cells)
        assert passed(here, job) == passed(alone, job)
    for each in (here, alone):
        each.close()


def passed(by, job):
    return {
        name: verdict["passed"] for name, verdict in by.grade(ATTENTION, job.cells)["tests"].items()
    }


@pytest.mark.slow
def test_the_end_of_the_scheduler_is_said_and_loses_nothing(cluster, tmp_path, monkeypatch):
    address, processes = cluster
    here = Engine("process", cache=tmp_path / "here")
    monkeypatch.setattr(engine, "default", lambda isolation: here)
    waiting = list(some_jobs(here))
    done = []
    with pytest.raises(ClusterMissing, match="stopped answering"):
        for number, trouble in grade_all(waiting, "process", address):
            assert not trouble
            done.append(number)
            processes[0].send_signal(signal.SIGKILL)
            time.sleep(1)
    assert done
    for number in done:
        assert here.known(ATTENTION, waiting[number].cells)
