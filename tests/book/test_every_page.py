"""The gates: what must hold on every page of the published book, and of the sample book."""

from __future__ import annotations

import gzip
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag

import pytest
from axe_playwright_python.sync_playwright import Axe

BUDGETS = {"text": 350_000, "mathematics": 650_000, "widgets": 900_000}  # gzipped, cold
WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")
SHORTEST_ALT = 30


@pytest.fixture(params=["book", "sample"], scope="module")
def published(request):
    """Each test runs on the book, and on the sample book, which has every element."""
    return request.getfixturevalue("site" if request.param == "book" else "sample")


@dataclass
class Visit:
    """What a page was found to be.

    Attributes:
        problems: what it complained of, and what it asked for elsewhere or in vain.
        weights: the gzipped bytes of each address it asked for, with nothing in the browser's cache.
        text: its document once everything stands.
        violations: what axe finds, by scheme and width.
        kept: how many rules axe finds kept, by scheme and width.
        width: of the document on a phone.
        alts: each picture's text alternative, with how its element begins.
    """

    problems: list[str] = field(default_factory=list)
    weights: dict[str, int] = field(default_factory=dict)
    text: str = ""
    violations: dict[tuple[str, int], list] = field(default_factory=dict)
    kept: dict[tuple[str, int], int] = field(default_factory=dict)
    width: int = 0
    alts: list[tuple[str, str]] = field(default_factory=list)


@pytest.fixture(scope="module")
def visits(published, browser):
    """Every page, opened once in each scheme and width, and asked everything then."""
    found = {name: Visit() for name in published.pages}
    for scheme in SCHEMES:
        for width in WIDTHS:
            size = {"width": width, "height": 900}
            for name, visit in found.items():
                # A new context for each page: its cache is empty.
                with browser.new_context(color_scheme=scheme, viewport=size) as context:
                    look_around(context.new_page(), published.url, name, (scheme, width), visit)
    return found


def look_around(page, root: str, name: str, how: tuple[str, int], visit: Visit) -> None:
    """Open a page in a scheme and a width, and note what there is to see."""
    problems, responses = [], []
    watch(page, root, problems)
    page.on("response", lambda response: responses.append(response))  # a builtin is refused
    settle(page, root + name)
    visit.problems += problems  # a copy: axe asks for things that are not there
    visit.weights = {r.url: len(gzip.compress(r.body(), 6)) for r in responses if r.ok}
    visit.text = page.content()
    visit.alts = page.evaluate(ALTS)
    if how[1] == WIDTHS[-1]:
        visit.width = max(visit.width, page.evaluate("document.documentElement.scrollWidth"))
    # Of a rule that is kept one element is enough: to list all takes half of the time.
    result = Axe().run(page, options={"resultTypes": ["violations"]}).response
    visit.kept[how] = len(result["passes"])
    visit.violations[how] = [
        (violation["id"], [node["html"][:200] for node in violation["nodes"][:3]])
        for violation in result["violations"]
    ]


def watch(page, root: str, problems: list[str]) -> None:
    """Collect the page's complaints, and what it asks for outside of ``root`` or in vain."""
    page.on("pageerror", lambda error: problems.append(f"page error: {error}"))
    page.on(
        "console",
        lambda message: problems.append(message.text) if message.type == "error" else None,
    )
    page.on(
        "request",
        lambda request: (
            problems.append(f"asks for {request.url}")
            if not request.url.startswith((root, "data:", "blob:"))
            else None
        ),
    )
    page.on("requestfailed", lambda request: problems.append(f"no answer from {request.url}"))


def settle(page, url: str) -> None:
    """Open the page and wait until mathematics and widgets stand."""
    page.goto(url)
    page.wait_for_load_state("networkidle")
    page.evaluate("() => window.MathJax?.startup?.promise")


@pytest.mark.slow
def test_asks_nobody_outside_and_complains_of_nothing(visits):
    assert not {name: visit.problems for name, visit in visits.items() if visit.problems}


@pytest.mark.slow
def test_opened_as_a_file_it_asks_nobody_outside_and_complains_of_nothing(published, browser):
    root = published.folder.as_uri() + "/"
    found = {name: [] for name in published.pages}
    with browser.new_context() as context:
        for name, problems in found.items():
            page = context.new_page()
            watch(page, root, problems)
            settle(page, root + name)
            page.close()
    assert not {name: problems for name, problems in found.items() if problems}


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_axe_finds_no_violation(visits, scheme, width):
    blind = [name for name, visit in visits.items() if visit.kept[scheme, width] <= 10]
    assert not blind, f"axe saw nothing on {blind}"
    found = {name: visit.violations[scheme, width] for name, visit in visits.items()}
    assert not {name: violations for name, violations in found.items() if violations}


@pytest.mark.slow
def test_fits_a_phone(visits):
    assert not {name: visit.width for name, visit in visits.items() if visit.width > WIDTHS[-1]}


@pytest.mark.slow
def test_weighs_no_more_than_its_class_allows(visits, record_property):
    too_heavy, weights = {}, {}
    for name, visit in visits.items():
        if "application/vnd.jupyter.widget" in visit.text or "course-stepper" in visit.text:
            kind = "widgets"
        else:
            kind = "mathematics" if any("mathjax" in url for url in visit.weights) else "text"
        weights[name] = (kind, sum(visit.weights.values()))
        if weights[name][1] > BUDGETS[kind]:
            largest = sorted(((size, url) for url, size in visit.weights.items()), reverse=True)
            too_heavy[name] = (*weights[name], largest[:5])
    record_property("weights", weights)
    print("\n".join(f"{size:>9,} {kind:<12} {name}" for name, (kind, size) in weights.items()))
    assert not too_heavy


FILE_NAME = re.compile(r"\S+\.(png|svg|jpe?g|gif|webp|pdf)", re.IGNORECASE)

ALTS = """() => [...document.querySelectorAll("article img, article svg, article canvas")]
  .filter((e) => !e.closest("button, .headerlink, mjx-container, [aria-hidden=true]"))
  .map((e) => [e.getAttribute("aria-label") ?? e.getAttribute("alt") ?? "", e.outerHTML.slice(0, 120)])"""


@pytest.mark.slow
def test_every_figure_says_what_it_shows(visits):
    found = {}
    for name, visit in visits.items():
        for alt, start in visit.alts:
            if len(alt.strip()) < SHORTEST_ALT or FILE_NAME.fullmatch(alt.strip()):
                found.setdefault(name, []).append((alt, start))
    assert not found


FORBIDDEN = (
    "BEGIN SOLUTION",
    "END SOLUTION",
    "BEGIN HIDDEN",
    "END HIDDEN",
    "autograder.hidden",
    "autograder.misconceptions",
    "solutions/",
)


def test_publishes_no_answer(published):
    found = []
    for path in published.folder.rglob("*"):
        if path.is_file() and path.suffix in {
            ".html",
            ".js",
            ".json",
            ".ipynb",
            ".md",
            ".txt",
            ".py",
        }:
            if "vendor" in path.parts:
                continue
            text = path.read_text(encoding="utf-8", errors="replace")
            found += [(path.name, word) for word in FORBIDDEN if word in text]
    assert not found
    assert not (published.folder / "_sources").exists()


class Links(HTMLParser):
    """Addresses that a page names, and anchors that it has."""

    def __init__(self, text: str):
        super().__init__()
        self.addresses, self.anchors = set(), set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for key, value in attributes:
            if key in {"href", "src"} and value:
                self.addresses.add(value)
            if key in {"id", "name"} and value:
                self.anchors.add(value)


def test_no_link_within_the_book_is_broken(published):
    pages = {
        path.resolve(): Links(path.read_text(encoding="utf-8"))
        for path in published.folder.rglob("*.html")
        if "_static" not in path.parts
    }
    broken, followed = [], 0
    for source, links in pages.items():
        for address in links.addresses:
            if re.match(r"[a-z]+:|//", address) or address == "#":
                continue
            target, anchor = urldefrag(address)
            target = target.split("?")[0]
            path = (source.parent / unquote(target)).resolve() if target else source
            path = path / "index.html" if path.is_dir() else path
            followed += 1
            if not path.is_file() or (
                anchor and path in pages and unquote(anchor) not in pages[path].anchors
            ):
                broken.append((source.name, address))
    assert followed > 20
    assert not broken


def test_no_block_is_published_as_its_own_source(published):
    """A fence of backticks whose first line has a backtick is none: its page shows what should have been made of it."""
    unread = {}
    for name in published.pages:
        text = (published.folder / name).read_text(encoding="utf-8")
        prose = re.sub(r"<(pre|script)\b.*?</\1>", "", text, flags=re.DOTALL)
        if fences := re.findall(r"(?:```|:::)\{?[\w-]*", prose):
            unread[name] = fences
    assert not unread


def test_every_exercise_can_be_downloaded(site):
    shown = [name for name in site.pages if name.startswith("exercises/")]
    assert shown
    for name in shown:
        notebook = site.folder / "_downloads" / name.replace(".html", ".ipynb")
        assert notebook.is_file(), name
        text = (site.folder / name).read_text(encoding="utf-8")
        assert re.search(r'<a href="[^"]*_downloads/[^"]+\.ipynb" download', text), name
