"""What hidden tests are written with: inputs nobody can foresee, and the reference to compare with."""

import torch

from autograder.loader import reference
from autograder.secret import course_secret
from lab.seeds import generator

__all__ = ["inputs", "reference"]


def inputs(name: str) -> torch.Generator:
    """A generator for one draw of hidden inputs, the same in every run of one course and in no other.

    A submission that holds a table of the test's inputs therefore knows nothing of this course's.
    """
    return generator(f"{course_secret()}/{name}")
