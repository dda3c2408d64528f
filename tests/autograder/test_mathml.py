"""Mathematics on feedback pages: every formula of the course becomes MathML, what is none stays as written."""

import re
from html.parser import HTMLParser

import nbformat
import pytest

from autograder.mathml import markdown_to_html
from autograder.source import ROOT

NOTEBOOKS = sorted((ROOT / "exercises").glob("*/*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_formula_of_the_course_is_drawn(path):
    cells = nbformat.read(path, 4).cells
    pages = [markdown_to_html(cell.source) for cell in cells if cell.cell_type == "markdown"]
    assert any("<math" in page for page in pages)
    for page in pages:
        outside_code = re.sub(r"<code>.*?</code>", "", page, flags=re.DOTALL)
        assert "$" not in outside_code
        # What the converter does not know it leaves as a word with its backslash.
        assert not re.search(r"<m[a-z]+>\\[a-zA-Z]+<", outside_code)


def test_a_formula_in_a_line_and_one_of_its_own():
    assert 'display="inline"' in markdown_to_html("so $x^2$ is")
    assert 'display="block"' in markdown_to_html("$$\nx^2\n$$")
    assert "<math" in markdown_to_html(r"\begin{align}x &= 1\end{align}")


def test_what_is_no_latex_stays_as_it_was_written():
    assert markdown_to_html(r"$\left( <b>$").strip() == r"<p><code>\left( &lt;b&gt;</code></p>"
    assert "<code>$5</code>" in markdown_to_html("costs `$5`")


@pytest.mark.parametrize(
    "latex",
    [
        r"\text{<img src=x onerror=alert(1)>}",
        r"\text{&lt;img src=x onerror=alert(1)&gt;}",
        r"\text{<script>alert(1)</script>}",
        r"\href{javascript:alert(1)}{x}",
        r"\style{background:url(//elsewhere)}{x}",
        r"\color{red\" onclick=\"alert(1)}{x}",
        r"\mbox{</math><script>alert(1)</script>}",
    ],
)
def test_a_formula_cannot_carry_anything_that_runs(latex):
    tags = []

    class Collect(HTMLParser):
        def handle_starttag(self, tag, attributes):
            tags.append((tag, dict(attributes)))

    Collect().feed(markdown_to_html(f"so ${latex}$"))
    assert tags
    for tag, attributes in tags:
        assert tag.startswith("m") or tag in ("p", "code")
        assert not attributes.keys() & {"href", "style", "onclick", "onerror", "src"}


@pytest.mark.parametrize(
    "markdown",
    [
        "<img src=nowhere onerror=alert(1)>",
        "<script>alert(1)</script>",
        "[click](javascript:alert(1))",
        "![a picture](https://elsewhere/pixel.png)",
        "<a href='x' onclick='alert(1)'>y</a>",
        "<math><mi onclick=alert(1) href='javascript:alert(1)'>x</mi></math>",
        "<svg onload=alert(1)>",
        "<style>* { display: none }</style>",
    ],
)
def test_markdown_cannot_carry_anything_that_runs_or_loads(markdown):
    page = markdown_to_html(f"so\n\n{markdown}\n\nand *so* on")
    assert "<em>so</em>" in page
    for word in (
        "onerror",
        "onclick",
        "onload",
        "<script",
        "javascript:",
        "<img",
        "<style",
        "<svg",
    ):
        assert word not in page


def test_tables_lists_code_and_links_stay():
    page = markdown_to_html(
        "| a | b |\n| - | - |\n| 1 | `x < y` |\n\n1. one\n\n[page](../book/page.md)"
    )
    for piece in (
        "<td>1</td>",
        "<code>x &lt; y</code>",
        "<li>one</li>",
        '<a href="../book/page.md">',
    ):
        assert piece in page


def test_a_picture_that_is_named_and_not_attached_stops_nobody():
    assert "before" in markdown_to_html("before ![x](attachment:x.svg) after")
    assert "<img" not in markdown_to_html("![x](https://example.org/x.png)")
