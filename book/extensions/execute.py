"""Run the pages' code in parallel, into the cache from which the build takes every result.

    python book/extensions/execute.py

A result is kept while the page's code, the package `lab` and the recorded runs stay as they are.
The cache by itself looks at the page's code only.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import sys
import time
from pathlib import Path

import yaml
from jupyter_cache import get_cache
from jupyter_cache.executors import load_executor
from jupyter_cache.executors.base import JupyterExecutorAbstract

ROOT = Path(__file__).resolve().parents[2]
READER = {"name": "myst_nb_md", "type": "plugin"}


def inputs_hash(root: Path = ROOT) -> str:
    """A hash of what pages import or read."""
    digest = hashlib.sha256()
    files = [
        *root.glob("lab/**/*.py"),
        *root.glob("book/**/*.json"),
        *root.glob("lab/**/*.safetensors"),
    ]
    for path in sorted(files):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def forget_stale_results(cache: Path, root: Path = ROOT) -> None:
    """Empty the cache if what the pages import or read has changed since it was filled."""
    stamp = cache / "inputs.sha256"
    now = inputs_hash(root)
    if not stamp.is_file() or stamp.read_text() != now:
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir(parents=True)
        stamp.write_text(now)


def pages_with_code(root: Path = ROOT) -> list[Path]:
    """The book's pages, in order, that a kernel runs."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    names = [toc["root"]] + [c["file"] for part in toc["parts"] for c in part["chapters"]]
    files = [root / f"{name}.md" for name in names if (root / f"{name}.md").is_file()]
    return [f for f in files if "\nkernelspec:" in f.read_text(encoding="utf-8")[:500]]


def run(executor: JupyterExecutorAbstract, pages: list[str], timeout: int) -> tuple[list, list]:
    """Runs pages that the cache does not hold; returns those that ran and those that did not.

    A page whose kernel did not start is tried once more: two that start at once may choose the same port.
    """
    first = executor.run_and_cache(filter_uris=pages, timeout=timeout)
    if not first.errored:
        return first.succeeded, first.excepted
    second = executor.run_and_cache(filter_uris=first.errored, timeout=timeout)
    return first.succeeded + second.succeeded, first.excepted + second.excepted + second.errored


def main() -> int:
    """Run what the cache does not hold; 1 if a page raises, with its traceback."""
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["execute"]
    folder = ROOT / config["cache"]
    forget_stale_results(folder)
    cache = get_cache(folder)
    pages = [str(page) for page in pages_with_code()]
    for page in pages:
        cache.add_nb_to_project(page, read_data=READER)
    logger = logging.getLogger("jupyter_cache")
    logger.setLevel(logging.ERROR)  # a page that raises is printed below
    executor = load_executor("local-parallel", cache, logger=logger)
    started = time.monotonic()
    succeeded, failed = run(executor, pages, config["timeout"])
    for page in failed:
        print(
            cache.get_project_record(page).traceback or f"{page} could not be run", file=sys.stderr
        )
    print(
        f"pages: {len(pages)}, run {len(succeeded)}, failed {len(failed)}, "
        f"{time.monotonic() - started:.1f} s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
