"""The course's secret, from which hidden inputs are drawn."""

import os
import secrets
from pathlib import Path

from autograder.source import ROOT

__all__ = ["course_secret"]

SECRET_FILE = ROOT / ".course-secret"


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
