"""nbgrader's configuration of this course; ``nbgrader`` run in this folder uses it as it is."""

from pathlib import Path

from nbconvert.preprocessors import CSSHTMLHeaderPreprocessor
from nbgrader.preprocessors import (
    AssignLatePenalties,
    CheckCellMetadata,
    GetGrades,
    IgnorePattern,
    LimitOutput,
    SaveAutoGrades,
)

from autograder.preprocessors import HarmlessFeedback, Rebuild, SplitGrade

c = get_config()

c.CourseDirectory.course_id = "from-attention-to-reasoning"
c.CourseDirectory.root = str(Path(__file__).resolve().parent)
# Source notebooks are generated from solutions/ (autograder build); nobody edits them.
c.CourseDirectory.source_directory = "_build/source"
c.CourseDirectory.release_directory = "exercises"

c.ClearSolutions.enforce_metadata = True

c.Autograde.sanitize_preprocessors = [Rebuild, CheckCellMetadata]
c.Autograde.autograde_preprocessors = [
    SplitGrade,
    IgnorePattern,
    LimitOutput,
    SaveAutoGrades,
    AssignLatePenalties,
    CheckCellMetadata,
]

c.GenerateFeedback.preprocessors = [
    GetGrades,
    HarmlessFeedback,
    CSSHTMLHeaderPreprocessor,
]
