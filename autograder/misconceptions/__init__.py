"""What is known of an exercise's possible answers: one file an exercise.

``MISCONCEPTIONS`` are wrong answers that learners really write, one change of the reference each. ``EQUIVALENT``
are changes which the mutation run makes (:mod:`autograder.mutation`) and no test can notice, because the answer
stays right. ``EXAMPLES`` draws inputs for each part that has one of those, and calls the part with them.
"""

import importlib
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autograder.source import Exercise

if TYPE_CHECKING:  # whoever only asks for a score need not wait for it
    import torch

__all__ = [
    "Equivalent",
    "Example",
    "Misconception",
    "equivalents",
    "examples",
    "misconceptions",
    "wrong_part",
]

Example = Callable[[types.ModuleType, "torch.Generator"], object]


@dataclass(frozen=True)
class Misconception:
    """A wrong answer.

    Attributes:
        name: unique within the exercise.
        part: the solution cell it changes.
        says: the sentence the learner reads when an answer behaves like this one.
        wrong: texts of the reference, each with what the mistake writes in its place.
    """

    name: str
    part: str
    says: str
    wrong: Mapping[str, str]


@dataclass(frozen=True)
class Equivalent:
    """A small change of the reference that leaves it right.

    Attributes:
        part: the solution cell.
        before: the lines it changes, as ``ast.unparse`` writes them.
        after: what stands there instead.
        because: why nobody can tell the difference.
    """

    part: str
    before: str
    after: str
    because: str


def misconceptions(era: str, exercise: str) -> list[Misconception]:
    """The bank of an exercise; empty where there is none yet."""
    return getattr(_bank(era, exercise), "MISCONCEPTIONS", [])


def equivalents(era: str, exercise: str) -> list[Equivalent]:
    """The changes of an exercise's answers that leave them right."""
    return getattr(_bank(era, exercise), "EQUIVALENT", [])


def examples(era: str, exercise: str) -> dict[str, Example]:
    """For each part, what draws inputs for an answer and gives what the answer makes of them."""
    return getattr(_bank(era, exercise), "EXAMPLES", {})


def _bank(era: str, exercise: str) -> types.ModuleType | None:
    module_name = f"autograder.misconceptions.{era}.{exercise}"
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and module_name.startswith(error.name):
            return None
        raise


def wrong_part(exercise: Exercise, misconception: Misconception) -> str:
    """The solution cell as the misconception writes it.

    Raises:
        ValueError: a text to change is not in the cell exactly once.
    """
    source = exercise.cell(misconception.part).source
    for right, wrong in misconception.wrong.items():
        if source.count(right) != 1:
            raise ValueError(
                f"{exercise.era}/{exercise.name}: the misconception {misconception.name!r} changes "
                f"{right!r}, which stands {source.count(right)} times in the part {misconception.part!r}."
            )
        source = source.replace(right, wrong)
    return source
