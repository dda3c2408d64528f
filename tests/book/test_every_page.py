"""The gates: what must hold on every page of the published book, and of the sample book."""

from __future__ import annotations

import gzip
import re
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag

import pytest
from axe_playwright_python.sync_playwright import Axe

BUDGETS = {"text": 350_000, "mathematics": 650_000, "widgets": 900_000}  # gzipped, cold
WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")
SHORTEST_ALT = 30


@pytest.fixture(params=["book", "sample"])
def published(request):
    """Each test runs on the book, and on the sample book, which has every element."""
    return request.getfixturevalue("site" if request.param == "book" else "sample")


def watch(page) -> list[str]:
    """Collect the page's complaints."""
    problems = []
    page.on("pageerror", lambda error: problems.append(f"page error: {error}"))
    page.on(
        "console",
        lambda message: problems.append(message.text) if message.type == "error" else None,
    )
    return problems


def settle(page, url: str) -> None:
    """Open the page and wait until mathematics and widgets stand."""
    page.goto(url)
    page.wait_for_load_state("networkidle")
    page.evaluate("() => window.MathJax?.startup?.promise")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "file"])
def test_asks_nobody_outside_and_complains_of_nothing(published, browser, scheme):
    root = published.url if scheme == "http" else published.folder.as_uri() + "/"
    found = {}
    with browser.new_context() as context:
        for name in published.pages:
            page = context.new_page()
            problems = watch(page)
            page.on(
                "request",
                lambda request, problems=problems: (
                    problems.append(f"asks for {request.url}")
                    if not request.url.startswith((root, "data:", "blob:"))
                    else None
                ),
            )
            page.on(
                "requestfailed",
                lambda request, problems=problems: problems.append(f"no answer from {request.url}"),
            )
            settle(page, root + name)
            if problems:
                found[name] = problems
            page.close()
    assert not found


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_axe_finds_no_violation(published, browser, scheme, width):
    found = {}
    with browser.new_context(
        color_scheme=scheme, viewport={"width": width, "height": 900}
    ) as context:
        for name in published.pages:
            page = context.new_page()
            settle(page, published.url + name)
            result = Axe().run(page).response
            assert len(result["passes"]) > 10, f"axe saw nothing on {name}"
            for violation in result["violations"]:
                nodes = [node["html"][:200] for node in violation["nodes"][:3]]
                found.setdefault(name, []).append((violation["id"], nodes))
            page.close()
    assert not found


@pytest.mark.slow
def test_fits_a_phone(published, browser):
    found = {}
    with browser.new_context(viewport={"width": 390, "height": 900}) as context:
        page = context.new_page()
        for name in published.pages:
            settle(page, published.url + name)
            width = page.evaluate("document.documentElement.scrollWidth")
            if width > 390:
                found[name] = width
    assert not found


@pytest.mark.slow
def test_weighs_no_more_than_its_class_allows(published, browser, record_property):
    too_heavy, weights = {}, {}
    for name in published.pages:
        responses = []
        with browser.new_context() as context:  # a new one for each page: a cold cache
            page = context.new_page()
            page.on("response", lambda response, seen=responses: seen.append(response))
            settle(page, published.url + name)
            sizes = {r.url: len(gzip.compress(r.body(), 6)) for r in responses if r.ok}
            text = page.content()
        if "application/vnd.jupyter.widget" in text or "course-stepper" in text:
            kind = "widgets"
        else:
            kind = "mathematics" if any("mathjax" in url for url in sizes) else "text"
        weights[name] = (kind, sum(sizes.values()))
        if weights[name][1] > BUDGETS[kind]:
            largest = sorted(((size, url) for url, size in sizes.items()), reverse=True)[:5]
            too_heavy[name] = (*weights[name], largest)
    record_property("weights", weights)
    print("\n".join(f"{size:>9,} {kind:<12} {name}" for name, (kind, size) in weights.items()))
    assert not too_heavy


FILE_NAME = re.compile(r"\S+\.(png|svg|jpe?g|gif|webp|pdf)", re.IGNORECASE)

ALTS = """() => [...document.querySelectorAll("article img, article svg, article canvas")]
  .filter((e) => !e.closest("button, .headerlink, mjx-container, [aria-hidden=true]"))
  .map((e) => [e.getAttribute("aria-label") ?? e.getAttribute("alt") ?? "", e.outerHTML.slice(0, 120)])"""


@pytest.mark.slow
def test_every_figure_says_what_it_shows(published, browser):
    found = {}
    with browser.new_context() as context:
        page = context.new_page()
        for name in published.pages:
            settle(page, published.url + name)
            for alt, start in page.evaluate(ALTS):
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
