"""The extension's and the vendor step's own errors, each provoked."""

from __future__ import annotations

import hashlib
import io
import re
import sys
import tarfile
from base64 import b64encode

import pytest
from conftest import ROOT, build, write_sample
from jupyter_cache.executors.base import ExecutorRunResult

sys.path[:0] = [str(ROOT / "book" / "assets"), str(ROOT / "book" / "extensions")]

import course_book  # noqa: E402
import execute  # noqa: E402
import vendor  # noqa: E402

FRONT = (ROOT / "tests/book/sample/widgets.md").read_text().split("# Plain")[0]
FAULTS = {
    "unknown figure": (
        "```{course-figure} no_such\n:label: x\n:alt: y\n```",
        "no figure 'no_such'",
    ),
    "no alt": ("```{course-figure} positions\n:label: x\n```", "needs :alt:"),
    "poor alt": ("```{course-figure} positions\n:label: x\n:alt: plot.png\n```", "file name"),
    "bad json": (
        "```{course-figure} positions\n:label: x\n:alt: an alternative of more than thirty characters\n{oops\n```",
        "course-figure positions",
    ),
    "no right option": ("```{self-check} Why?\n- ( ) Because.\n\n  No.\n```", "exactly one item"),
    "no reply": (
        "```{self-check} Why?\n- (x) Because.\n```",
        "an option, an empty line, and a reply",
    ),
    "unknown term": ("{term}`no such term`", "no such term"),
    "unknown citation": ("{cite:p}`nobody1999`", "nobody1999"),
    "broken link": ("[text](no_such_page.md)", "no_such_page"),
    "cell that raises": ("```{code-cell} ipython3\n1 / 0\n```", "ZeroDivisionError"),
}


@pytest.mark.slow
def test_a_faulty_page_fails_the_build_and_is_named(tmp_path):
    write_sample(tmp_path)
    names = []
    for i, (text, _) in enumerate(FAULTS.values()):
        names.append(f"fault{i}")
        (tmp_path / f"fault{i}.md").write_text(f"{FRONT}# Fault {i}\n\n{text}\n")
    (tmp_path / "_toc.yml").write_text(
        "format: jb-book\nroot: index\nchapters:\n" + "".join(f"  - file: {n}\n" for n in names)
    )
    # A cell that raises ends the build at once, so it is tried last, on its own.
    raising = tmp_path / f"{names[-1]}.md"
    text = raising.read_text()
    raising.write_text(text.replace("1 / 0", "1 / 1"))
    run = build(tmp_path)
    output = run.stdout + run.stderr
    assert run.returncode != 0
    missing = [name for name, (_, said) in list(FAULTS.items())[:-1] if said not in output]
    assert not missing, output[-4000:]
    raising.write_text(text)
    run = build(tmp_path)
    assert run.returncode != 0
    assert "ZeroDivisionError" in run.stdout + run.stderr


def test_a_module_becomes_a_classic_script():
    script = course_book.classic(
        "name", "export function f() {}\nconst g = 1;\nexport const h = 2;\n"
    )
    assert "export" not in script
    assert ").name = { f, h };" in script
    with pytest.raises(course_book.ExtensionError, match="no import but"):
        course_book.classic("name", 'import { f } from "./other.js";\n')


def test_what_a_figure_imports_from_the_parts_stands_in_its_script():
    script = course_book.classic(
        "name", 'import { make } from "./parts.js";\nexport function f() {}\n'
    )
    assert not re.search("^(import|export)", script, re.MULTILINE)
    assert "function make(" in script and ").name = { f };" in script
    assert "parts" not in course_book.FIGURES


def test_results_are_forgotten_when_what_pages_use_changes(tmp_path):
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "models.py").write_text("a = 1\n")
    cache = tmp_path / "_build" / "cache"
    execute.forget_stale_results(cache, tmp_path)
    (cache / "result").write_text("kept")
    execute.forget_stale_results(cache, tmp_path)
    assert (cache / "result").exists()
    (tmp_path / "lab" / "models.py").write_text("a = 2\n")
    execute.forget_stale_results(cache, tmp_path)
    assert not (cache / "result").exists()


class Executor:
    """Runs pages as it is told: a list of results for each page, one for each try."""

    def __init__(self, **outcomes):
        self.outcomes = outcomes

    def run_and_cache(self, filter_uris, timeout):
        result = ExecutorRunResult()
        for page in filter_uris:
            getattr(result, self.outcomes[page].pop(0)).append(page)
        return result


def test_a_page_whose_kernel_did_not_start_is_tried_once_more():
    executor = Executor(
        a=["succeeded"], b=["errored", "succeeded"], c=["errored", "errored"], d=["excepted"]
    )
    succeeded, failed = execute.run(executor, ["a", "b", "c", "d"], timeout=1)
    assert (succeeded, failed) == (["a", "b"], ["d", "c"])
    assert not any(executor.outcomes.values())


@pytest.fixture
def tarball(tmp_path):
    path = tmp_path / "thing-1.0.0.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("package/dist/a.js", "package/dist/deep/b.js", "package/LICENSE"):
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"text"))
    return path


def test_vendor_takes_the_files_named_and_no_others(tarball, tmp_path):
    vendor.unpack(tarball, ["dist/*.js", "LICENSE"], "dist", tmp_path / "out")
    files = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.*")}
    assert files == {"a.js"}
    assert (tmp_path / "out" / "LICENSE").is_file()
    with pytest.raises(vendor.VendorError, match=r"nothing\.js"):
        vendor.unpack(tarball, ["nothing.js"], "dist", tmp_path / "out")


def test_vendor_refuses_a_changed_tarball(tarball):
    right = b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    vendor.check_integrity(tarball, f"sha512-{right}")
    tarball.write_bytes(tarball.read_bytes() + b" ")
    with pytest.raises(vendor.VendorError, match="sha512"):
        vendor.check_integrity(tarball, f"sha512-{right}")


def test_vendor_without_a_network_says_so(tmp_path):
    with pytest.raises(vendor.VendorError, match="needs the network, once"):
        vendor.pack("mathjax@3.2.2", tmp_path, ["false"])


def test_vendor_is_what_the_manifest_says():
    assert vendor.bring() is False, "run `python book/assets/vendor.py`"
