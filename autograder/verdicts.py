"""What is known of one notebook, test by test, so that a changed test is the only one that runs again.

A record is ``{"tests": {key: verdict}, "cells": {key: outcomes}}``. A test's key is a hash of what its verdict depends
on besides the notebook: its text, the wrong answers that are known of its part, and which earlier parts failed, because
the reference is lent in their place. So a record can hold a test's verdicts in several states of the course.
"""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence

from autograder.misconceptions import Misconception, misconceptions
from autograder.source import Cell, Exercise

__all__ = ["assembled", "cells_key", "hashed", "joined", "test_key"]


def hashed(*parts: str) -> str:
    """A hash of texts in this order."""
    whole = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        whole.update(len(raw).to_bytes(8, "big") + raw)
    return whole.hexdigest()


def test_key(exercise: Exercise, cell: Cell, part: str, failed: Sequence[str]) -> str:
    """What a verdict on a test is kept under.

    Args:
        exercise: the exercise as it is now.
        cell: the test.
        part: the part it tests.
        failed: the earlier parts that failed, in order.
    """
    bank = _bank(exercise.era, exercise.name, part)
    return hashed(cell.source, bank, json.dumps(list(failed)))


test_key.__test__ = False  # for pytest: it is none


def cells_key(failed: Sequence[str]) -> str:
    """What the cells came to, where these parts had failed before the last one."""
    return json.dumps(list(failed))


def joined(*records: Mapping) -> dict:
    """All that is in these records."""
    return {
        kind: {key: found for record in records for key, found in record[kind].items()}
        for kind in ("tests", "cells")
    }


def assembled(exercise: Exercise, record: Mapping) -> dict | None:
    """The result for a notebook, or ``None`` where a test must run first.

    Returns:
        ``{"tests": {name: {"passed", "message", "misconception", "seconds", "log", "ended"}}, "cells": outcomes}``.
    """
    tests: dict[str, dict] = {}
    failed: list[str] = []
    cells = None
    for part, test_cells in exercise.parts.items():
        found = {
            cell.name: record["tests"].get(test_key(exercise, cell, part, failed))
            for cell in test_cells
        }
        if None in found.values():
            return None
        tests |= _named(exercise, part, found)
        cells = record["cells"].get(cells_key(failed))
        if not all(verdict["passed"] for verdict in found.values()):
            failed.append(part)
    return None if cells is None else {"tests": tests, "cells": cells}


def _named(exercise: Exercise, part: str, found: Mapping[str, Mapping]) -> dict[str, dict]:
    """The verdicts of a part, each failed test with the wrong answer of the bank that the learner's behaves like.

    An answer can share one test's behaviour with several of the bank; the one that explains most tests wins.
    """
    tests = {name: {**verdict, "misconception": None} for name, verdict in found.items()}
    explained = [
        (mistake, [name for name, verdict in tests.items() if mistake.name in verdict["like"]])
        for mistake in _of_part(exercise, part)
    ]
    for mistake, names in sorted(explained, key=lambda pair: -len(pair[1])):
        for name in names:
            if tests[name]["misconception"] is None:
                tests[name]["misconception"] = mistake.name
                tests[name]["message"] = f"{mistake.says}\n{tests[name]['message']}"
    for verdict in tests.values():
        del verdict["like"]
    return tests


@functools.cache
def _bank(era: str, name: str, part: str) -> str:
    """The wrong answers to a part, without the sentences on them: a better sentence runs nothing again."""
    mistakes = [m for m in misconceptions(era, name) if m.part == part]
    return json.dumps([[mistake.name, *mistake.wrong.items()] for mistake in mistakes])


def _of_part(exercise: Exercise, part: str) -> list[Misconception]:
    return [m for m in misconceptions(exercise.era, exercise.name) if m.part == part]
