"""Markdown on the pages nbgrader makes: mathematics as MathML, which needs no script, and nothing that runs.

A learner's Markdown is shown in feedback, and in the form grader, whose page may do on the Jupyter server whatever
the instructor may.
"""

import html
from xml.etree import ElementTree

import bleach
from latex2mathml.converter import convert_to_element
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

__all__ = ["markdown_to_html"]

HARMLESS = """
    a b blockquote br code dd del details div dl dt em h1 h2 h3 h4 h5 h6 hr i kbd li ol p pre s span strong sub summary
    sup table tbody td th thead tr u ul
    math menclose mfrac mi mmultiscripts mn mo mover mpadded mphantom mprescripts mroot mrow ms mspace msqrt mstyle
    msub msubsup msup mtable mtd mtext mtr munder munderover none
"""
TAGS = frozenset(HARMLESS.split())
# What \href, \style, \class and \cssId set.
ACTIVE = {"class", "href", "id", "style"}


def markdown_to_html(source: str) -> str:
    """A Markdown cell as HTML: no scripts, no pictures from elsewhere. What is no LaTeX stays as it was written."""
    page = MarkdownWithMath(renderer=_Renderer(escape=False)).render(source)
    return bleach.clean(page, tags=TAGS, attributes=_may_stay, strip=True)


def _may_stay(tag: str, attribute: str, value: str) -> bool:
    if tag.startswith("m"):
        return attribute not in ACTIVE and not attribute.startswith("on")
    return (tag == "a" and attribute in ("href", "title")) or attribute == "align"


class _Renderer(IPythonRenderer):
    def block_math(self, body: str) -> str:
        return f"<p>{_mathml(body, 'block')}</p>"

    def latex_environment(self, name: str, body: str) -> str:
        return self.block_math(rf"\begin{{{name}}}{body}\end{{{name}}}")

    def inline_math(self, body: str) -> str:
        return _mathml(body, "inline")

    def image(self, *args: object, **kwargs: object) -> str:
        # None is shown; nbconvert's own would stop over one that is named and not attached.
        return ""


def _mathml(latex: str, display: str) -> str:
    try:
        root = convert_to_element(latex, display=display)
    except Exception:  # whatever a learner wrote between two dollars
        return f"<code>{html.escape(latex)}</code>"
    for element in root.iter():
        # The converter writes characters as entities, and a learner's text as it is: here each becomes text again,
        # and is escaped once, below.
        element.text = html.unescape(element.text or "")
    return ElementTree.tostring(root, encoding="unicode")
