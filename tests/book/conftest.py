"""The built book, a sample book with every element, one browser, and servers for both."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / "_build" / "book" / "_build" / "html"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Site:
    """A built site: its folder and where it is served."""

    folder: Path
    url: str

    @property
    def pages(self) -> list[str]:
        """Every page but the one that only leads to the first."""
        pages = sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*.html"))
        return [p for p in pages if not p.startswith("_") and not is_redirect(self.folder / p)]


def is_redirect(page: Path) -> bool:
    return 'http-equiv="refresh"' in page.read_text(encoding="utf-8")[:400].lower()


def sources() -> Iterator[Path]:
    """What the site is made of."""
    yield from (ROOT / "_config.yml", ROOT / "_toc.yml")
    for folder, pattern in (("book", "**/*"), ("exercises", "**/*.ipynb"), ("lab", "**/*.py")):
        for path in (ROOT / folder).glob(pattern):
            if path.is_file() and "__pycache__" not in path.parts and "vendor" not in path.parts:
                yield path


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """The book, built and up to date; `make book` does that."""
    stamp = BUILT / "_static" / "course.js"  # copied at the end of every build that succeeds
    if not stamp.is_file():
        pytest.fail(f"the book is not built: {BUILT.relative_to(ROOT)} is missing; run `make book`")
    built = stamp.stat().st_mtime
    if newer := [p for p in sources() if p.stat().st_mtime > built]:
        names = ", ".join(str(p.relative_to(ROOT)) for p in newer[:5])
        pytest.fail(f"the built book is older than {names}; run `make book`")
    with serve(BUILT) as site:
        yield site


@pytest.fixture(scope="session")
def sample_folder(tmp_path_factory) -> Path:
    """The source of the sample book, with the book's own configuration."""
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder)
    return folder


def write_sample(folder: Path) -> None:
    """Write the sample book's source into `folder`."""
    shutil.copytree(Path(__file__).parent / "sample", folder, dirs_exist_ok=True)
    shutil.copyfile(ROOT / "book" / "assets" / "favicon.svg", folder / "favicon.svg")
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    config["bibtex_bibfiles"] = [str(ROOT / "book" / "references.bib")]
    config["sphinx"]["local_extensions"] = {"course_book": str(ROOT / "book" / "extensions")}
    config["sphinx"]["config"]["html_favicon"] = "favicon.svg"
    (folder / "_config.yml").write_text(yaml.safe_dump(config), encoding="utf-8")


def build(folder: Path) -> subprocess.CompletedProcess:
    """Build the book in `folder` as the Makefile builds the course."""
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", "."]
    command += ["--path-output", "_build/book", "-W", "-n", "--keep-going"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="session")
def sample(sample_folder: Path) -> Iterator[Site]:
    """The sample book, built here."""
    run = build(sample_folder)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    with serve(sample_folder / "_build" / "book" / "_build" / "html") as site:
        yield site


class serve:
    """Serve a folder on a free port of this machine."""

    def __init__(self, folder: Path):
        handler = functools.partial(QuietHandler, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.site = Site(folder, f"http://127.0.0.1:{self.server.server_port}/")

    def __enter__(self) -> Site:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self.site

    def __exit__(self, *problem) -> None:
        self.server.shutdown()
        self.server.server_close()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture(scope="session")
def browser():
    """Debian's Chromium. Where there is none the tests are skipped, but never in CI."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        reason = "no Chromium: `apt-get install chromium`"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A fresh page in a context of its own."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    yield context.new_page()
    context.close()
