"""nbgrader's configuration of this course; ``nbgrader`` run in this folder uses it as it is."""

from pathlib import Path

import nbgrader
from nbconvert.preprocessors import CSSHTMLHeaderPreprocessor
from nbgrader.preprocessors import (
    AssignLatePenalties,
    GetGrades,
    IgnorePattern,
    LimitOutput,
    SaveAutoGrades,
)

from autograder.mathml import markdown_to_html
from autograder.preprocessors import HarmlessFeedback, Rebuild, SplitGrade

c = get_config()

c.CourseDirectory.course_id = "from-attention-to-reasoning"
c.CourseDirectory.root = str(Path(__file__).resolve().parent)
# Source notebooks are generated from solutions/ (autograder build); nobody edits them.
c.CourseDirectory.source_directory = "_build/source"
c.CourseDirectory.release_directory = "exercises"

c.ClearSolutions.enforce_metadata = True

# Rebuild takes every cell's metadata from the instructor's notebook, where generate_assignment has checked them.
# nbgrader's CheckCellMetadata would find the same again, twice for each submission, in a third of its bookkeeping.
c.Autograde.sanitize_preprocessors = [Rebuild]
c.Autograde.autograde_preprocessors = [
    SplitGrade,
    IgnorePattern,
    LimitOutput,
    SaveAutoGrades,
    AssignLatePenalties,
]

c.GenerateFeedback.preprocessors = [
    GetGrades,
    HarmlessFeedback,
    CSSHTMLHeaderPreprocessor,
]

# Feedback loads nothing from elsewhere: nbgrader's template, without its CDN.
here, nbgraders = Path(__file__).resolve().parent, Path(nbgrader.__file__).resolve().parent
templates = here / "autograder" / "templates"
c.GenerateFeedback.HTMLExporter.template_name = "offline"
c.GenerateFeedback.HTMLExporter.extra_template_basedirs = [
    str(templates),
    str(nbgraders / "server_extensions" / "formgrader" / "templates"),
]
# The form grader too shows a learner's Markdown, in a browser that is logged in to a Jupyter server.
c.HTMLExporter.filters = {"markdown2html": markdown_to_html}
