"""The same submission gets the same score and the same words: always, on every machine, however busy it is."""

import itertools
import os

import pytest

from autograder import engine, pool, sandbox
from autograder.engine import default
from autograder.loader import find_exercise
from autograder.misconceptions import misconceptions, wrong_part
from autograder.pool import Job, grade_all
from autograder.sample_class.styles import styles
from autograder.source import exercise_paths, read_exercise

pytestmark = pytest.mark.slow
REPEATS = 100
MACHINES = [
    {"ATEN_CPU_CAPABILITY": "default"},
    {"ATEN_CPU_CAPABILITY": "avx2"},
    {"OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": "4"},
]
EXERCISES = [read_exercise(path) for path in exercise_paths()]
ATTENTION = find_exercise("transformer", "attention")


def cells(exercise, answers):
    return [
        {"name": c.name, "source": answers.get(c.name, c.source)}
        for c in exercise.cells
        if c.kind in ("given", "solution")
    ]


def notebooks(exercise, mistakes=2):
    """Right answers in every style, the first wrong ones, and none."""
    for answers in styles(exercise).values():
        yield cells(exercise, answers)
    for mistake in misconceptions(exercise.era, exercise.name)[:mistakes]:
        yield cells(exercise, {mistake.part: wrong_part(exercise, mistake)})
    yield cells(exercise, dict.fromkeys(exercise.parts, "raise NotImplementedError()"))


def said(result):
    """All of a result but the seconds, and the log, which has addresses in it."""
    return {
        name: (verdict["passed"], verdict["misconception"], verdict["message"])
        for name, verdict in result["tests"].items()
    }


def forget(grader):
    for path in grader.cache.glob("*.json"):
        path.unlink()


def test_a_hundred_times_the_same(fresh):
    few = list(notebooks(ATTENTION, mistakes=1))[-3:]
    first = [said(default().grade(ATTENTION, notebook)) for notebook in few]
    for number, notebook in zip(range(REPEATS), itertools.cycle(few), strict=False):
        forget(fresh)
        assert said(fresh.grade(ATTENTION, notebook)) == first[number % len(few)]


@pytest.mark.of_exercise
@pytest.mark.parametrize("machine", MACHINES, ids=lambda m: "-".join(m.values()))
@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.name)
def test_the_same_on_other_processors_and_with_other_threads(exercise, machine, fresh, monkeypatch):
    environment = sandbox.environment
    monkeypatch.setattr("autograder.session.environment", lambda role: environment(role) | machine)
    for notebook in notebooks(exercise):
        assert said(fresh.grade(exercise, notebook)) == said(default().grade(exercise, notebook))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_same_with_any_number_of_workers(workers, fresh, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: workers)
    monkeypatch.setattr(engine, "default", lambda isolation: fresh)
    monkeypatch.setattr(pool.engine, "default", lambda isolation: fresh)
    every = list(notebooks(ATTENTION))
    jobs = [
        Job(
            "transformer",
            "attention",
            notebook,
            fresh.key(ATTENTION, notebook),
            {"tests": {}, "cells": {}},
        )
        for notebook in every
    ]
    expected = [said(default().grade(ATTENTION, notebook)) for notebook in every]
    assert sorted(grade_all(jobs, "sandbox")) == [(number, "") for number in range(len(jobs))]
    assert [said(fresh.known(ATTENTION, notebook)) for notebook in every] == expected
