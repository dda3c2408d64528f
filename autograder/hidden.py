"""What hidden tests are written with: inputs nobody can foresee, and the reference to compare with."""

import torch
from torch import Tensor, nn

from autograder.loader import reference
from autograder.secret import course_secret
from autograder.split.peer import each
from lab.seeds import generator

__all__ = ["each", "gradients", "inputs", "reference"]


def inputs(name: str) -> torch.Generator:
    """A generator for one draw of hidden inputs, the same in every run of one course and in no other.

    A submission that holds a table of the test's inputs therefore knows nothing of this course's.
    """
    return generator(f"{course_secret()}/{name}")


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    """The gradient of each parameter, by name, with one question to the answer instead of one for each step of a path.

    A parameter that no gradient has reached has ``None``, as a buffer has.
    """
    # Without gradients on, parameters arrive with the ones they hold, not as part of a graph.
    with torch.no_grad():
        return {name: value.grad for name, value in model.state_dict(keep_vars=True).items()}
