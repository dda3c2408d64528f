"""What hidden tests are written with: inputs nobody can foresee, and the reference to compare with."""

import os
import secrets
from pathlib import Path

import torch

from autograder.loader import reference
from autograder.source import ROOT
from lab.seeds import generator

__all__ = ["course_secret", "inputs", "reference"]

SECRET_FILE = ROOT / ".course-secret"


def inputs(name: str) -> torch.Generator:
    """A generator for one draw of hidden inputs, the same in every run of one course and in no other.

    A submission that holds a table of the test's inputs therefore knows nothing of this course's.
    """
    return generator(f"{course_secret()}/{name}")


def course_secret(file: Path = SECRET_FILE) -> str:
    """The secret of this course: ``COURSE_SECRET``, else the file ``.course-secret``, written when missing."""
    from_environment = os.environ.get("COURSE_SECRET")
    if from_environment:
        return from_environment
    if not file.exists():
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as handle:
            handle.write(secrets.token_hex(16))
    return file.read_text().strip()
