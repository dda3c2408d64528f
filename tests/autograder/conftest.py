"""What the grader's tests share."""

import os

import pytest

from autograder.engine import CACHE, Engine


@pytest.fixture
def fresh(tmp_path):
    """An engine that knows no result, but what the exercises were prepared with."""
    for path in CACHE.glob("*.prepared"):
        os.link(path, tmp_path / path.name)
    grader = Engine(cache=tmp_path)
    yield grader
    grader.close()
