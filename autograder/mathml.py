"""Mathematics on the pages nbgrader makes, as MathML: browsers draw it without a script from elsewhere."""

import html
from xml.etree import ElementTree

from latex2mathml.converter import convert_to_element
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

__all__ = ["markdown_to_html"]

# What \href, \style, \class and \cssId set.
ACTIVE = {"class", "href", "id", "style"}


def markdown_to_html(source: str) -> str:
    """A Markdown cell as HTML. What is no LaTeX stays as it was written."""
    return MarkdownWithMath(renderer=_Renderer(escape=False)).render(source)


class _Renderer(IPythonRenderer):
    def block_math(self, body: str) -> str:
        return f"<p>{_mathml(body, 'block')}</p>"

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(rf"\begin{{{name}}}{body}\end{{{name}}}")

    def inline_math(self, body: str) -> str:
        return _mathml(body, "inline")


def _mathml(latex: str, display: str) -> str:
    try:
        root = convert_to_element(latex, display=display)
    except Exception:  # whatever a learner wrote between two dollars
        return f"<code>{html.escape(latex)}</code>"
    for element in root.iter():
        for name in ACTIVE & element.attrib.keys():
            del element.attrib[name]
        # The converter writes characters as entities, and a learner's text as it is: here each becomes text again,
        # and is escaped once, below.
        element.text = html.unescape(element.text or "")
    return ElementTree.tostring(root, encoding="unicode")
