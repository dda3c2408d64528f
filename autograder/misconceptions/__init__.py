"""Wrong answers that learners really write: one file an exercise, one change of the reference each."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass

from autograder.source import Exercise

__all__ = ["Misconception", "misconceptions", "wrong_part"]


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


def misconceptions(era: str, exercise: str) -> list[Misconception]:
    """The bank of an exercise; empty where there is none yet."""
    module_name = f"autograder.misconceptions.{era}.{exercise}"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and module_name.startswith(error.name):
            return []
        raise
    return module.MISCONCEPTIONS


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
