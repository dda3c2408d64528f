"""Where a class's files are."""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["ClassFolder"]


@dataclass(frozen=True)
class ClassFolder:
    """Where a class's files are.

    Attributes:
        folder: with what was submitted; all else is written below it.
        database: the gradebook as SQLAlchemy names it, ``postgresql+psycopg://…``; a SQLite file in the folder if
            ``None``.
    """

    folder: Path
    database: str | None = None

    @property
    def submitted(self) -> Path:
        """What learners handed in, untouched."""
        return self.folder / "submitted"

    @property
    def intake(self) -> Path:
        """The same, rebuilt upon the instructor's notebooks; what nbgrader works on."""
        return self.folder / ".intake"

    @property
    def autograded(self) -> Path:
        """What nbgrader graded."""
        return self.folder / "autograded"

    @property
    def feedback(self) -> Path:
        """What goes back to learners."""
        return self.folder / "feedback"

    @property
    def logs(self) -> Path:
        """For the instructor: why each test failed, hidden lines and all."""
        return self.folder / "logs"

    @property
    def recorded(self) -> Path:
        """Marks of what nbgrader has recorded."""
        return self.folder / ".recorded"

    @property
    def gradebook(self) -> Path:
        """The SQLite gradebook."""
        return self.folder / "gradebook.db"

    @property
    def db_url(self) -> str:
        """The gradebook as SQLAlchemy names it."""
        return self.database or f"sqlite:///{self.gradebook.resolve()}"

    def handed_in(self) -> set[tuple[str, str, str]]:
        """Student, era and exercise of each notebook that nbgrader graded; it gives one that is missing no points."""
        paths = self.autograded.glob("*/*/*.ipynb")
        return {(path.parent.parent.name, path.parent.name, path.stem) for path in paths}
